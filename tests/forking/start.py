"""Start of the server, and the file that tests give as their interpreter."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.forking import client

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "server"


@contextmanager
def forking_python() -> Iterator[str]:
    """Yield the path of a `python` next to an `hfcap`, as in the folder `bin` of a virtual environment."""
    # Addresses of sockets must be short, which pytest's folders are not.
    with tempfile.TemporaryDirectory(prefix="hfcap-") as place:
        folder = Path(place)
        (folder / "bin").mkdir()
        python = folder / "bin/python"
        variables = {
            "HFCAP_TESTS_PYTHON": sys.executable,
            "HFCAP_TESTS_CLIENT": str(python),
            "HFCAP_TESTS_SERVER": str(folder / ADDRESS),
        }
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        begin = f"exec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(Path(client.__file__)))}"
        for name, arguments in (("python", ""), ("hfcap", "-m hfcap ")):
            (folder / "bin" / name).write_text(f'#!/bin/sh\n{exports}{begin} {arguments}"$@"\n')
            (folder / "bin" / name).chmod(0o755)
        log = (folder / "log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking.server", place],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            process_group=0,
        )
        assert process.stdin is not None
        try:
            while process.poll() is None and not (folder / ADDRESS).exists():
                time.sleep(0.01)
            yield str(python)
        finally:
            # Not by closing its standard input alone: a process that a test has forked may hold it open too.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            log.close()
