"""Paths of this machine, which tell strangers nothing and may tell them too much, taken out of what is published."""

from __future__ import annotations

import re
from typing import Any

_PATH_START = re.compile(r"(?<![\w.:/~-])(?:~?/(?!/)|[A-Za-z]:[\\/]|\\\\|file://)")


def is_machine_path(text: str) -> bool:
    """Whether the whole text is an absolute path, or one that leads out of the working folder."""
    return bool(_PATH_START.match(text)) or text.startswith(("../", "..\\", "./", "~")) or text in (".", "..")


def without_machine_path(text: str) -> str:
    """Return `path/to/<last part>` for a path of this machine, and any other text unchanged.

    Paths inside a longer text (a sentence, a command) are replaced too.
    """
    if is_machine_path(text) and "\n" not in text:
        last = re.split(r"[\\/]", text.rstrip("\\/"))[-1]
        return f"path/to/{last}" if last.strip(".~") else "path/to"
    return re.sub(r"(?<![\w.:/~-])(?:~?/(?!/)|[A-Za-z]:[\\/])[^\s'\",;]*[\\/]([^\s'\",;\\/]+)", r"path/to/\1", text)


def portable(value: Any) -> Any:
    """Return a JSON-like value with every machine path replaced (see `without_machine_path`), keys included."""
    if isinstance(value, str):
        return without_machine_path(value)
    if isinstance(value, dict):
        return {portable(key): portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return value
