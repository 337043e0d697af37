"""Whether a faster way of computing may be taken: found out once on a tiny input, remembered by versions.

Where speed needs more of a library than its documentation promises, hfcap has a plain way next to the faster one. A new
release may change what the faster one relies on; then it gives way, and one line says so: slower, never wrong.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hfcap import registry
from hfcap.errors import UserError
from hfcap.files import cache_folder, write_text
from hfcap.progress import error_console

LIBRARY_CHANGES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What code raises whose library is no longer as it expects."""

TESTED_TRANSFORMERS = ("5.23.0", "5.24.0")
"""The least and the newest release that the whole test suite passed with (docs/tested_versions.md)."""

PLAIN_VARIABLE = "HFCAP_PLAIN"

_known: dict[str, bool] = {}


def holds(purpose: str, facts: dict[str, Any], check: Callable[[], bool | None], plain: str) -> bool:
    """Return whether the faster way gives what the plain one gives; `check` is run the first time that it is asked.

    Args:
        purpose: what is faster, for the warning ("faster generation of BLIP").
        facts: JSON values that the answer depends on, besides versions of libraries and hfcap's own code.
        check: compares the two; None where it cannot tell: then the answer is no.
        plain: what is used instead ("plain generate").

    The environment variable HFCAP_PLAIN=1 says no to all of them, to find out which way a caption is wrong in.
    """
    if os.environ.get(PLAIN_VARIABLE) == "1":
        return False
    name = hashlib.sha256(json.dumps([purpose, _versions(), facts], sort_keys=True).encode()).hexdigest()[:32]
    if name not in _known:
        remembered = cache_folder() / "probes" / f"{name}.json"
        if remembered.is_file():
            _known[name] = True
        else:
            answer = _checked(check)
            if answer is None:
                return False
            _known[name] = answer is True
            if answer is True:
                _remember(remembered, purpose)
            else:
                reason = "its results differ" if answer is False else answer
                say_plain(purpose, reason, plain)
    return _known[name]


def _checked(check: Callable[[], bool | None]) -> bool | str | None:
    try:
        return check()
    except (torch.OutOfMemoryError, UserError):
        raise
    except LIBRARY_CHANGES as error:
        return described(error)


def described(error: Exception) -> str:
    """Return an error in a few words, for the warning."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def say_plain(purpose: str, reason: str, plain: str) -> None:
    """Warn, once in a process, that the plain way is taken."""
    _say(f"{purpose} does not work with {_installed()} ({reason}); {plain} is used: slower, but right")


def _remember(path: Path, purpose: str) -> None:
    try:
        write_text(path, json.dumps({"purpose": purpose, "versions": _versions()}, indent=2) + "\n")
    except OSError:
        # A cache that cannot be written costs the next process the check.
        return


def forget_verdicts() -> None:
    """Ask all checks again in this process, as after a change of what they look at; for tests."""
    _known.clear()


def note_untested_release() -> None:
    """Print one line where transformers is newer than what hfcap was tested with."""
    installed = version("transformers")
    if _numbers(installed) > _numbers(TESTED_TRANSFORMERS[1]):
        least, newest = TESTED_TRANSFORMERS
        _say(
            f"hfcap was tested with transformers {least} to {newest}; here is {installed}. What is faster in hfcap is "
            "checked against plain transformers before it is used"
        )


@functools.cache
def _say(message: str) -> None:
    """Print a warning, each only once in a process."""
    error_console.print(f"warning: {message}", markup=False, soft_wrap=True)


def _installed() -> str:
    return ", ".join(f"{name} {number}" for name, number in _versions().items() if name != "hfcap code")


@functools.cache
def _versions() -> dict[str, str]:
    own = hashlib.sha256()
    package = Path(registry.__file__).parent
    for folder in ("captioners", "generation"):
        for path in sorted(package.joinpath(folder).rglob("*.py")):
            own.update(path.read_bytes())
    return {name: version(name) for name in ("transformers", "torch")} | {"hfcap code": own.hexdigest()[:16]}


def _numbers(release: str) -> tuple[int, ...]:
    """5.24.0.dev0 -> (5, 24, 0)."""
    return tuple(int(part) for part in release.split(".")[:3] if part.isdecimal())
