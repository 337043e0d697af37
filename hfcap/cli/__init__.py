"""The command line: thin commands over functions; exit code 0 done, 1 the work failed, 2 the input is wrong."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hfcap import __version__
from hfcap.cli import captions, datasets, publications, runs, scores  # noqa: F401  # each adds its commands to `app`
from hfcap.cli.common import app
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.progress import console, error_console

__all__ = ["app", "main"]

_STOPPED = 130


def _show_version(value: bool) -> None:
    if value:
        console.print(f"hfcap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and turn known errors into one message and an exit code."""
    try:
        app()
    except UserError as error:
        error_console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except (WorkError, OSError) as error:
        error_console.print(f"failed: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except StoppedError as error:
        error_console.print(str(error), style="yellow", markup=False, soft_wrap=True)
        sys.exit(_STOPPED)
    except SystemExit as stop:
        # Typer turns Ctrl-C into this code without a word.
        if stop.code == _STOPPED:
            said = "stopped; no file is half-written, and the same command goes on from what is finished"
            error_console.print(said, style="yellow", soft_wrap=True)
        raise
