"""Commands that serve until Ctrl-C, as a person starts and ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, list[str]]]:
    """Start a command of hfcap, yield its first line and a list, press Ctrl-C, and put the rest of its output there.

    It must end with exit code 130 and without a traceback.
    """
    rest: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "hfcap", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell started in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            first = process.stdout.readline()
            assert first, process.stderr.read()
            yield first, rest
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
        rest += [process.stdout.read(), process.stderr.read()]
    assert "Traceback" not in "".join(rest), rest
