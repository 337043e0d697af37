"""How fast a sharded captioning is, all workers together, when it will be done, and what it costs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from hfcap.captioning.sharded.claims import Effort, effort_of
from hfcap.captioning.sharded.folder import OutputFolder
from hfcap.progress import error_console, progress_bar

_LOOK_SECONDS = 2.0
_SAY_SECONDS = 30.0


class Speed:
    """A bar on a terminal; elsewhere a line twice a minute.

    Args:
        quiet: say nothing; another process does.
        price: of a process and hour; None = nothing is said of costs.
    """

    def __init__(self, folder: OutputFolder, n_shards: int, quiet: bool, price: float | None = None) -> None:
        self.folder, self.n_shards, self.quiet, self.price = folder, n_shards, quiet, price
        self._known: set[str] = set()
        self._effort = Effort(0.0, 0)
        self._bar = progress_bar("speed")

    def __enter__(self) -> Self:
        if not self.quiet:
            self.folder.records(self._known)
            self._at_start, self._images = len(self._known), 0
            self._started = self._said = self._looked = time.monotonic()
            self._bar.start()
            self._task = self._bar.add_task("Shards", total=self.n_shards, completed=self._at_start, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.quiet:
            return
        self._bar.stop()
        if self.price is not None:
            hours = self._effort.seconds / 3600
            said = f"Until now {hours:,.3f} hours of processes, which cost {hours * self.price:,.2f}"
            error_console.print(said, markup=False, soft_wrap=True)

    def show(self) -> None:
        """Look at what is done by all, and show it if it is time."""
        now = time.monotonic()
        if self.quiet or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        parts = ("failures", "duplicates")
        for row in self.folder.records(self._known):
            self._images += row["images"] + sum(len(row.get(part, ())) for part in parts)
        speed = f"{self._images / (now - self._started):,.1f} images/s{self._cost(now)}"
        self._bar.update(self._task, completed=len(self._known), speed=speed)
        if self._bar.disable and now - self._said > _SAY_SECONDS:
            self._said = now
            said = f"{len(self._known):,} of {self.n_shards:,} shards, {speed}{self._remaining(now)}"
            error_console.print(said, markup=False, soft_wrap=True)

    def _seconds_left(self, now: float) -> float | None:
        done = len(self._known) - self._at_start
        return (now - self._started) / done * (self.n_shards - len(self._known)) if done else None

    def _cost(self, now: float) -> str:
        """Return what is spent, and about how much that will be in the end if as many processes go on."""
        if self.price is None:
            return ""
        effort, left = effort_of(self.folder.workers), self._seconds_left(now)
        if effort.seconds > self._effort.seconds:  # in the end the workers' files are gone
            self._effort = effort
        spent = self._effort.seconds / 3600 * self.price
        said = f", {spent:,.2f} spent"
        return said if left is None else f"{said} of about {spent + left * effort.alive / 3600 * self.price:,.2f}"

    def _remaining(self, now: float) -> str:
        left = self._seconds_left(now)
        if left is None:
            return ""
        minutes = left / 60
        return f", about {minutes / 60:,.1f} hours left" if minutes > 90 else f", about {minutes:,.0f} minutes left"
