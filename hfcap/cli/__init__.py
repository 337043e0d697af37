"""The command line: thin commands over functions; exit code 0 done, 1 the work failed, 2 the input is wrong."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from typer.models import CommandInfo, TyperInfo

from hfcap import __version__
from hfcap.cli import (  # noqa: F401  # each adds its commands to `app`
    caption,
    captions,
    datasets,
    judging,
    probes,
    publications,
    runs,
    scores,
    watching,
)
from hfcap.cli.common import app, broken_torchvision
from hfcap.cli.examples import epilog
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.failures.system import problem_of
from hfcap.progress import console, error_console
from hfcap.text import printable

__all__ = ["app", "main"]

_STOPPED = 130

PANELS = {
    "Runs": ("run", "doctor", "train", "status", "plot", "watch", "card", "list", "recipe-schema"),
    "Captions": ("caption", "review", "explain", "demo", "ensemble", "search"),
    "Scores": ("score", "compare", "judge-metrics", "judge", "probe-objects"),
    "The Hub": ("publish", "verify", "merge", "export", "publish-space", "publish-metric"),
    "Data": ("data", "features"),
}
"""How `hfcap --help` groups the commands, in this order."""


def _arrange() -> None:
    panel_of = {name: panel for panel, group in PANELS.items() for name in group}
    order = list(panel_of)

    def name_of(entry: CommandInfo | TyperInfo) -> str:
        return str(entry.name or getattr(entry.callback, "__name__", ""))

    for entries in (app.registered_commands, app.registered_groups):
        for entry in entries:
            entry.rich_help_panel = panel_of[name_of(entry)]
        entries.sort(key=lambda entry: order.index(name_of(entry)))
    for entry in app.registered_commands:
        entry.epilog = epilog(name_of(entry))
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for entry in group.typer_instance.registered_commands:
            entry.epilog = epilog(f"{name_of(group)} {name_of(entry)}")


_arrange()


def _show_version(value: bool) -> None:
    if value:
        console.print(f"hfcap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit"),
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """Let what schedulers and closed terminals send (SIGTERM, SIGHUP) stop a command as Ctrl-C does, tidily.

    Who starts it with these signals ignored (nohup) has them ignored.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main() -> None:
    """Run the command line and turn known errors into one message and an exit code."""
    try:
        with _stopped_like_ctrl_c():
            app()
    except UserError as error:
        error_console.print(printable(f"error: {error}", "\n\t"), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (WorkError, OSError) as error:
        error_console.print(printable(f"failed: {error}", "\n\t"), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except StoppedError as error:
        error_console.print(str(error), style="yellow", markup=False, soft_wrap=True)
        sys.exit(_STOPPED)
    except (ImportError, RuntimeError, MemoryError) as error:
        if (failure := problem_of(error)) is not None:
            error_console.print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)
            sys.exit(1)
        problem = broken_torchvision(error)
        if problem is None:
            raise
        error_console.print(printable(f"error: {problem}", "\n\t"), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        # Typer turns Ctrl-C into this code without a word.
        if stop.code == _STOPPED:
            said = "stopped; no file is half-written, and the same command goes on from what is finished"
            error_console.print(said, style="yellow", soft_wrap=True)
        raise
