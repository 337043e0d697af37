"""Exceptions that a user can cause, and the exit code each one stands for."""

from importlib import metadata


class UserError(ValueError):
    """Wrong input (recipe, file, argument); the message names the file, the key and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class OptionError(UserError):
    """An option of captioning is unknown, out of its range, or would be ignored."""


class WorkError(RuntimeError):
    """The input was right but the work could not be done (network, disk, remote refusal); exit code 1."""


class StoppedError(RuntimeError):
    """The work was stopped on request (Ctrl-C, SIGTERM) and what was done is kept; exit code 130."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message says what to install.

    It names that package and not an extra of hfcap: no package index has hfcap, and may have something else by that
    name; and extras would have to be installed from where this hfcap came from.
    """

    def __init__(self, package: str, purpose: str, otherwise: str = "") -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install '{requirement(package)}'{otherwise}")


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
