"""How fast a sharded captioning is, all workers together, and when it will be done."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from hfcap.captioning.sharded.folder import OutputFolder
from hfcap.progress import error_console, progress_bar

_LOOK_SECONDS = 2.0
_SAY_SECONDS = 30.0


class Speed:
    """A bar on a terminal; elsewhere a line twice a minute.

    Args:
        quiet: say nothing; another process does.
    """

    def __init__(self, folder: OutputFolder, n_shards: int, quiet: bool) -> None:
        self.folder, self.n_shards, self.quiet = folder, n_shards, quiet
        self._known: set[str] = set()
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
        if not self.quiet:
            self._bar.stop()

    def show(self) -> None:
        """Look at what is done by all, and show it if it is time."""
        now = time.monotonic()
        if self.quiet or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        self._images += sum(row["images"] + len(row["failures"]) for row in self.folder.records(self._known))
        speed = f"{self._images / (now - self._started):,.1f} images/s"
        self._bar.update(self._task, completed=len(self._known), speed=speed)
        if self._bar.disable and now - self._said > _SAY_SECONDS:
            self._said = now
            said = f"{len(self._known):,} of {self.n_shards:,} shards, {speed}{self._remaining(now)}"
            error_console.print(said, markup=False, soft_wrap=True)

    def _remaining(self, now: float) -> str:
        done = len(self._known) - self._at_start
        if not done:
            return ""
        minutes = (now - self._started) / done * (self.n_shards - len(self._known)) / 60
        return f", about {minutes / 60:,.1f} hours left" if minutes > 90 else f", about {minutes:,.0f} minutes left"
