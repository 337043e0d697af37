"""Progress bars for people at a terminal; silence everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

_ANY_WIDTH = 10_000


def _width(stream: TextIO) -> int | None:
    """None lets rich ask the terminal; a file or pipe has no width to which anything must be cut (COLUMNS sets one)."""
    return None if stream.isatty() or "COLUMNS" in os.environ else _ANY_WIDTH


console = Console(highlight=False, width=_width(sys.stdout))
"""Results go to standard output; tables are cut to a terminal's width, and whole in a file or pipe."""

error_console = Console(stderr=True, highlight=False)
"""Progress, warnings and errors go to standard error."""


def progress_bar(*extra_columns: str) -> Progress:
    """Return a rich Progress on standard error: count, elapsed and remaining time; invisible without a terminal.

    `extra_columns` are names of task fields shown at the end, e.g. "loss".
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in extra_columns),
        console=error_console,
        disable=not sys.stderr.isatty(),
    )


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` while a progress bar counts them."""
    with progress_bar() as progress:
        yield from progress.track(items, description=description, total=total)
