"""Exceptions that a user can cause, and the exit code each one stands for."""


class UserError(ValueError):
    """Wrong input (recipe, file, argument); the message names the file, the key and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


class WorkError(RuntimeError):
    """The input was right but the work could not be done (network, disk, remote refusal); exit code 1."""


class StoppedError(RuntimeError):
    """The work was stopped on request (Ctrl-C, SIGTERM) and what was done is kept; exit code 130."""


class MissingPackageError(UserError):
    """An optional package is not installed; the message names the pip extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'hfcap[{extra}]'")
