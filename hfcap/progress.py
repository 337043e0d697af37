"""What is said while work goes on: consoles and progress bars for commands, `logging` for Python programs."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

_ANY_WIDTH = 10_000
_LOG_WIDTH = 200
_WARNING = "warning: "
_LOG_SECONDS = 10.0
"""How often a running count is logged at most."""

logger = logging.getLogger("hfcap")
_to_logging: ContextVar[bool] = ContextVar("hfcap_to_logging", default=False)
_noted: ContextVar[list[str] | None] = ContextVar("hfcap_noted", default=None)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Give a list in which everything is noted that the consoles say inside the block."""
    said: list[str] = []
    token = _noted.set(said)
    try:
        yield said
    finally:
        _noted.reset(token)


@contextmanager
def reported(progress: bool) -> Iterator[None]:
    """Send what is said inside the block to the logger "hfcap"; with `progress`, to the consoles, as commands do.

    Warnings have the level WARNING, everything else INFO. Other threads are not concerned.
    """
    token = _to_logging.set(not progress)
    try:
        yield
    finally:
        _to_logging.reset(token)


class _Console(Console):
    """A console whose text goes to `logging` where `reported` says so."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, or log at the level that the style stands for."""
        if (said := _noted.get()) is not None:
            said.append(" ".join(map(str, objects)))
        if not _to_logging.get():
            super().print(*objects, **options)
            return
        plain = Console(file=io.StringIO(), width=_LOG_WIDTH, highlight=False, color_system=None)
        plain.print(*objects, **(options | {"soft_wrap": True}))
        assert isinstance(plain.file, io.StringIO)
        text = plain.file.getvalue().strip()
        alarming = options.get("style") in ("yellow", "red") or text.startswith(_WARNING)
        logger.log(logging.WARNING if alarming else logging.INFO, "%s", text.removeprefix(_WARNING))


class _Progress(Progress):
    """Progress bars that are logged where `reported` says so, now and then and when a task is done."""

    def __init__(self, *columns: str | ProgressColumn, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._logged_at = time.monotonic()
        self._finished: set[TaskID] = set()

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        """Begin a task; one with nothing to do has no bar, which would stand at 0/0 for good."""
        return super().add_task(description, start, total, completed, visible and total != 0, **fields)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count on."""
        super().advance(task_id, advance)
        self._log(task_id)

    def update(self, task_id: TaskID, **values: Any) -> None:
        """Change a task."""
        super().update(task_id, **values)
        self._log(task_id)

    def _log(self, task_id: TaskID) -> None:
        if not _to_logging.get():
            return
        task = self._tasks[task_id]
        finished = task.finished and task_id not in self._finished
        if finished or time.monotonic() - self._logged_at > _LOG_SECONDS:
            self._logged_at = time.monotonic()
            self._finished |= {task_id} if finished else set()
            total = "" if task.total is None else f" of {task.total:,.0f}"
            logger.info("%s: %s%s", task.description, f"{task.completed:,.0f}", total)


def _width(stream: TextIO) -> int | None:
    """None lets rich ask the terminal; a file or pipe has no width to which anything must be cut (COLUMNS sets one)."""
    return None if stream.isatty() or "COLUMNS" in os.environ else _ANY_WIDTH


console = _Console(highlight=False, width=_width(sys.stdout))
"""Results go to standard output; tables are cut to a terminal's width, and whole in a file or pipe."""

error_console = _Console(stderr=True, highlight=False)
"""Progress, warnings and errors go to standard error."""


def progress_bar(*extra_columns: str) -> Progress:
    """Return a rich Progress on standard error: count, elapsed and remaining time; invisible without a terminal.

    Inside `reported(progress=False)` its counts are logged instead.

    `extra_columns` are names of task fields shown at the end, e.g. "loss".
    """
    return _Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in extra_columns),
        console=error_console,
        disable=_to_logging.get() or not (sys.stderr.isatty() or error_console.is_jupyter),
    )


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` while a progress bar counts them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress_bar() as progress:
        yield from progress.track(items, description=description, total=total)
