"""`transformers serve`, started for real on a model folder."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from transformers.utils.import_utils import is_serve_available

needs_serving = pytest.mark.skipif(not is_serve_available(), reason="needs pip install 'transformers[serving]'")

_COMMAND = "from transformers.cli.transformers import main; main()"
_STARTS_WITHIN = 120.0


@contextlib.contextmanager
def transformers_serve(model: Path, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Serve a model folder for the length of the block; gives the address with /v1.

    Args:
        arguments: of `transformers`, where a card says them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*(arguments or ("serve", str(model))), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = model.parent / f"{model.name}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *command], env=environment, stdout=output, stderr=output
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(30)


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < ends:
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"no answer: {log.read_text()[-3000:]}")
