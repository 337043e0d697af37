"""Commands that a fork runs are processes like those of the interpreter."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forking.start import ADDRESS, forking_python

IN_SECONDS = 60
SAYS = "import os, sys; print('torch' in sys.modules, os.environ.get('HF_HOME'), os.getcwd(), sys.argv[1:])"
SLEEPS = "import sys, time; print('here', flush=True); time.sleep(60)"


def run(python: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [python, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=IN_SECONDS, check=False, **options)  # type: ignore[call-overload]


def test_a_fork_has_arguments_environment_folder_and_streams(forking: str, tmp_path: Path) -> None:
    done = run(forking, "-c", SAYS, "a b", cwd=tmp_path, env={**os.environ, "HF_HOME": "/x"})
    assert (done.stdout, done.stderr) == (f"True /x {tmp_path} ['a b']\n", "")
    asks = "import huggingface_hub.constants; print(huggingface_hub.constants.HF_HOME)"
    assert run(forking, "-c", asks, env={**os.environ, "HF_HOME": "/x"}).stdout == "/x\n"
    assert run(forking, "-c", asks).stdout != "/x\n", "a library had read another environment"
    done = run(forking, "-c", "import sys; print(sys.stdin.read().upper())", input="said")
    assert done.stdout == "SAID\n"


def test_a_fork_is_as_the_interpreter(forking: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys; print(__name__, sys.argv, sys.path[0])")
    for arguments in (
        ("-c", "raise SystemExit(7)"),
        ("-c", "raise SystemExit('no')"),
        ("-c", "1 / 0"),
        ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        ("-c", "import atexit; atexit.register(print, 'last'); print('first', end='')"),
        ("-c", "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()"),
        ("-c", "import signal; print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGCHLD))"),
        ("-m", "hfcap", "--version"),
        (str(tmp_path / "script.py"), "x"),
        ("-X", "utf8", "-c", "print(1)"),
    ):
        fork, interpreter = run(forking, *arguments), run(sys.executable, *arguments)
        assert (fork.returncode, fork.stdout, fork.stderr) == (
            interpreter.returncode,
            interpreter.stdout,
            interpreter.stderr,
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_fork_gets_signals(forking: str, number: signal.Signals) -> None:
    command = [forking, "-c", SLEEPS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=IN_SECONDS)  # the streams are closed: the fork has ended
    assert process.returncode == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)


def test_a_client_that_is_killed_before_it_has_asked_ends_nothing(forking: str) -> None:
    address = str(Path(forking).parents[1] / ADDRESS)
    for said in (b"", (99).to_bytes(8, "big"), (99).to_bytes(8, "big") + b'{"arg'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address)
            connection.sendall(said)
    assert run(forking, "-c", SAYS).stdout.startswith("True ")


def test_the_server_ends_though_another_process_holds_its_standard_input() -> None:
    with forking_python() as python:
        if (holder := os.fork()) == 0:
            time.sleep(IN_SECONDS)
            os._exit(0)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert not Path(python).exists()


def test_what_libraries_have_read_is_left_to_the_interpreter(forking: str) -> None:
    done = run(forking, "-c", SAYS, env={**os.environ, "OMP_NUM_THREADS": "3"})
    assert done.stdout.startswith("False "), done
