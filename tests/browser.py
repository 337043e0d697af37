"""A real browser for tests of pages: what a page looks like to its own scripts, and screenshots."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def chromium(page: str, folder: Path, *switches: str, dark: bool = False) -> str:
    """Return the document of a page after its scripts have run; a profile of its own is made in `folder`."""
    program = _program()
    colours = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    usual = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", colours]
    return subprocess.run(
        [program, *usual, *switches, "--dump-dom", page], capture_output=True, text=True, timeout=200, check=True
    ).stdout


def _program() -> str:
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium or Chrome")
    return program


class Browser:
    """A Chromium that a test drives like a person does: it clicks, uploads files and looks (DevTools over two pipes).

    Attributes:
        addresses: all that the page asked for, in order.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._number, self._read = 0, b""
        self._session: str | None = None
        self.addresses: list[str] = []

    def command(self, method: str, **values: Any) -> Any:
        """Send a command of the DevTools protocol; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Network.requestWillBeSent":
                self.addresses.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._read:
            chunk = os.read(self._answers, 2**20)
            assert chunk, "the browser ended"
            self._read += chunk
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def attach(self) -> None:
        """Open an empty page and talk to it from here on."""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.command(f"{domain}.enable")

    def open(self, address: str, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Show a page in a window of this size, as narrow as a telephone if wanted."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, which may be a promise."""
        found = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Wait until an expression holds; return its value."""
        return self.wait_for(lambda: self.run(script), script, seconds)

    def wait_for(self, found: Callable[[], Any], what: str = "", seconds: float = 60) -> Any:
        """Wait until a function returns something true; return that."""
        end = time.monotonic() + seconds
        while not (value := found()):
            assert time.monotonic() < end, f"{what}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def upload(self, selector: str, *paths: Path) -> None:
        """Choose files in a file input."""
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        assert node, selector
        self.command("DOM.setFileInputFiles", nodeId=node, files=list(map(str, paths)))

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """Write what is shown as a PNG; `full` is the whole page."""
        found = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a Chromium with a profile of its own in `folder`; it ends with the block."""
    read_by_it, commands = os.pipe()
    answers, written_by_it = os.pipe()
    usual = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--mute-audio"]
    arguments = [_program(), *usual, *quiet, "--remote-debugging-pipe", "about:blank"]
    # The browser reads from descriptor 3 and writes to 4.
    shell = f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *arguments], pass_fds=(read_by_it, written_by_it), stderr=subprocess.DEVNULL
    )
    os.close(read_by_it)
    os.close(written_by_it)
    driven = Browser(commands, answers)
    try:
        driven.attach()
        yield driven
    finally:
        os.close(commands)
        process.terminate()
        process.wait(timeout=30)
        os.close(answers)
