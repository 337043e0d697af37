"""A real browser for tests of pages: what a page looks like to its own scripts, and screenshots."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def chromium(page: str, folder: Path, *switches: str, dark: bool = False) -> str:
    """Return the document of a page after its scripts have run; a profile of its own is made in `folder`."""
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium or Chrome")
    colours = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    usual = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", colours]
    return subprocess.run(
        [program, *usual, *switches, "--dump-dom", page], capture_output=True, text=True, timeout=200, check=True
    ).stdout
