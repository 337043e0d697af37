"""Stands in for the interpreter: python -I -S client.py ARGUMENTS, with the variables that `start.py` sets.

It imports as little as it can, because it is started for every command.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: list[str]) -> None:
    """Have the command run in a fork, or by the interpreter."""
    python = os.environ["HFCAP_TESTS_PYTHON"]
    mask = os.umask(0o022)
    request: dict[str, Any] = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": _folder(),
        "mask": mask,
        "ignored": [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN],
        "group": os.getpgrp(),
        "session": "own" if os.getsid(0) == os.getpid() else os.getsid(0),
    }
    os.umask(mask)
    address = os.environ["HFCAP_TESTS_SERVER"]
    understood = (len(arguments) > 1 and arguments[0] in ("-m", "-c")) or bool(arguments and arguments[0][:1] != "-")
    while understood and request["folder"]:
        answer = _asked(address, request)
        if answer.get("ask"):
            address = answer["ask"]
            continue
        break
    os.execv(python, [python, *arguments])


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109  # pathlib takes long to import
    except OSError:  # deleted
        return None


def _asked(address: str, request: dict[str, Any]) -> dict[str, Any]:
    """Send the command; return only if no fork runs it."""
    with socket.socket(socket.AF_UNIX) as connection:
        pending: list[int] = []
        process: list[int] = []

        def passed_on(number: int, _: Any) -> None:
            if process:
                try:  # noqa: SIM105  # contextlib takes long to import
                    os.kill(process[0], number)
                except ProcessLookupError:
                    pass
            else:
                pending.append(number)

        for number in PASSED_ON:
            if number not in request["ignored"]:
                signal.signal(number, passed_on)
        try:
            connection.connect(address)
        except OSError:  # the server has ended
            return {}
        content = json.dumps(request).encode()
        socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(content)
        answers = connection.makefile("rb")
        first: dict[str, Any] = json.loads(answers.readline() or b"{}")
        if "process" not in first:
            for waiting in pending:  # from here on the interpreter is told
                signal.signal(waiting, signal.SIG_DFL)
                signal.raise_signal(waiting)
            return first
        process.append(first["process"])
        for waiting in pending:
            os.kill(process[0], waiting)
        code = json.loads(answers.readline() or b"1")
        if code < 0:
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
