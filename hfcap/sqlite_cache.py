"""Facts about images that are expensive to find out, remembered between runs in a small database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from hfcap.files import cache_folder
from hfcap.progress import error_console

_AT_A_TIME = 512
_DAMAGED = (sqlite3.Error, UnicodeDecodeError)
"""The second is raised where the name of a table is damaged, which the message would hold."""
_CREATE = "CREATE TABLE IF NOT EXISTS facts (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"


class SqliteCache:
    """A table key -> value (bytes) in `<cache folder>/<name>.sqlite`; use it as a context manager.

    Where the database cannot be used (full disk, network folder without locks), nothing is remembered and a warning
    says so: that costs time, not the run.

    Args:
        name: of the file, without ending.
        otherwise: what happens where nothing can be remembered, for the warning.
    """

    def __init__(self, name: str, otherwise: str) -> None:
        self._path, self._otherwise = cache_folder() / f"{name}.sqlite", otherwise
        self._database = sqlite3.connect(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=30)
            self._database.execute(_CREATE)
        except (OSError, *_DAMAGED) as error:
            self._go_without(error)

    def _go_without(self, error: Exception) -> None:
        """Remember from now on only as long as this object lives."""
        error_console.print(f"warning: {self._path} cannot be used ({error}); {self._otherwise}", markup=False)
        self._database.close()
        self._database = sqlite3.connect(":memory:")
        self._database.execute(_CREATE)

    def known(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that have one."""
        wanted = list(keys)
        found: dict[bytes, bytes] = {}
        for start in range(0, len(wanted), _AT_A_TIME):
            batch = wanted[start : start + _AT_A_TIME]
            marks = ",".join("?" * len(batch))
            try:
                found.update(self._database.execute(f"SELECT key, value FROM facts WHERE key IN ({marks})", batch))
            except _DAMAGED as error:  # a damaged page shows only when it is read
                self._go_without(error)
        return found

    def remember(self, facts: Mapping[bytes, bytes] | Sequence[tuple[bytes, bytes]]) -> None:
        """Keep values, replacing what is there."""
        rows = list(facts.items() if isinstance(facts, Mapping) else facts)
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)
        except _DAMAGED as error:
            error_console.print(f"warning: nothing can be remembered about images ({error})", markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._database.close()
