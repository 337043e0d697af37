"""Exceptions that a user can cause, and the exit code each one stands for."""

import contextlib
import reprlib
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

LONGEST_MESSAGE = 4000
_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = 80


def shown(value: object) -> str:
    """Return a value that a file holds as messages show it: the beginning of what is long."""
    text = _VALUES.repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _within_bounds(message: object) -> object:
    """Leave out the middle of a message that nobody would read: its beginning says where, its end what to do."""
    if not isinstance(message, str) or len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[: LONGEST_MESSAGE - 1000]} [...] {message[-900:]}"


class UserError(ValueError):
    """Wrong input (recipe, file, argument); the message says where, what, and what to do (tests/test_messages.py).

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*map(_within_bounds, arguments))


class OptionError(UserError):
    """An option of captioning is unknown, out of its range, or would be ignored."""


class WorkError(RuntimeError):
    """The input was right but the work could not be done (network, disk, remote refusal); exit code 1."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*map(_within_bounds, arguments))


class StoppedError(RuntimeError):
    """The work was stopped on request (Ctrl-C, SIGTERM) and what was done is kept; exit code 130."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message says what to install.

    It names that package and not an extra of hfcap: no package index has hfcap, and may have something else by that
    name; and extras would have to be installed from where this hfcap came from.
    """

    def __init__(self, package: str, purpose: str, otherwise: str = "") -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install '{requirement(package)}'{otherwise}")


@contextlib.contextmanager
def library_faults(message: Callable[[Exception], str]) -> Iterator[None]:
    """Turn what a library raises on files that strangers wrote into a UserError; hfcap's own faults stay as they are.

    Args:
        message: what to say of the error.

    Raises:
        UserError: the error comes from code that is not hfcap's, and is not that the memory of a GPU is too small.
    """
    try:
        yield
    except (UserError, WorkError, StoppedError):
        raise
    except Exception as error:
        if _raised_by_library(error):
            raise UserError(message(error)) from error
        raise
    except BaseException as panic:
        # What a library in Rust (tokenizers, safetensors) did not foresee is no Exception.
        if type(panic).__name__ == "PanicException":
            fault = RuntimeError(str(panic))
            raise UserError(message(fault)) from panic
        raise


def _raised_by_library(error: Exception) -> bool:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    own = Path(__file__).parent
    inside = at is not None and Path(at.tb_frame.f_code.co_filename).is_relative_to(own)
    torch = sys.modules.get("torch")
    return not inside and (torch is None or not isinstance(error, torch.OutOfMemoryError))


def reason_of(error: Exception) -> str:
    """Return the first line of an error, with its kind where the line alone says little."""
    line = (str(error).strip().splitlines() or [""])[0]
    plain = isinstance(error, OSError | ValueError | RuntimeError) or type(error) is Exception
    return line if plain and line else f"{type(error).__name__}: {line}"


def requirement(package: str) -> str:
    """Return what pip is to be given for an optional package: its name, with the versions that hfcap works with.

    They are those of hfcap's extras; a copy of the source that was never installed knows only the name.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        declared = [Requirement(text) for text in metadata.requires("hfcap") or []]
    except metadata.PackageNotFoundError:
        declared = []
    for one in declared:
        if canonicalize_name(one.name) == canonicalize_name(package):
            return f"{one.name}{one.specifier}"
    return package
