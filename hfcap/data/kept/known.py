"""What was found out about the images of kept records, next to their table: no look into a database for each image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import overload

import numpy as np
from numpy.typing import NDArray

from hfcap.data.kept.stamps import is_settled, stamps_of
from hfcap.data.kept.table import RecordTable
from hfcap.files import file_being_written, sha256_of, write_json
from hfcap.progress import error_console

_AT_A_TIME = 4096
"""Files that are looked at together, and hashes that are texts at a time."""


class KnownFacts:
    """One fact about each image of a table, such as the hash of its bytes, that holds while its file stays the same.

    Args:
        what: names the fact; with other rules, another name.
        width: bytes of the fact; 0 = that it holds is all there is to know.
    """

    def __init__(self, table: RecordTable, what: str, width: int) -> None:
        self.table, self._width = table, width
        name = hashlib.sha256(what.encode()).hexdigest()[:8]
        self._path = table.path.with_name(f"{table.path.stem}.{name}.npy")
        self._type = np.dtype([("stamp", "<i8", (4,)), ("known", "u1"), ("fact", "u1", (width,))])
        self._stamps: NDArray[np.int64] | None = None  # (N, 4), of the files as they were before facts were found out

    def read(self) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        """Return which images have the fact, (N,), and the facts, (N, width), zeros where not."""
        rows = self._rows()
        chosen = None if rows is None else rows[self._places()]
        if chosen is not None and self._all_hold(chosen):
            return np.ones(len(self.table), dtype=np.bool_), chosen["fact"]  # still in the file
        self._stamps = stamps_of(self.table.files(), len(self.table))
        if chosen is None:
            return np.zeros(len(self.table), dtype=np.bool_), np.zeros((len(self.table), self._width), dtype=np.uint8)
        known = _hold(chosen, self._stamps)
        return known, np.where(known[:, None], chosen["fact"], np.uint8(0))

    def _all_hold(self, chosen: NDArray[np.void]) -> bool:
        """Whether no file has changed; looked at in parts, for no stamps of millions of files stay in memory."""
        files = self.table.files()
        parts = (chosen[start : start + _AT_A_TIME] for start in range(0, len(chosen), _AT_A_TIME))
        return all(_hold(part, stamps_of(islice(files, len(part)), len(part))).all() for part in parts)

    def write(self, known: NDArray[np.bool_], facts: NDArray[np.uint8]) -> None:
        """Keep facts of the images for which they are known; those whose file changed just now are left out.

        What is known of other rows of the same table stays. Where another command has put a newer table in its place,
        nothing is kept.
        """
        assert self._stamps is not None, "read before, when facts were not known yet"
        if self.table.is_replaced:
            return
        rows = np.zeros(self.table.n_rows, dtype=self._type)
        if (kept := self._rows()) is not None:
            rows[:] = kept
        now = stamps_of(self.table.files(), len(self.table))  # a file that changed in the meantime keeps no fact
        fresh = np.zeros(len(self.table), dtype=self._type)
        fresh["stamp"], fresh["fact"] = self._stamps, facts
        fresh["known"] = known & (now == self._stamps).all(axis=1) & is_settled(now)
        rows[self._places()] = fresh
        try:
            with file_being_written(self._path) as handle:
                np.lib.format.write_array(handle, rows, allow_pickle=False)
            about = {"sha256": sha256_of(self._path), "table": _hash_of_table(self.table)}
            write_json(self._path.with_suffix(".json"), about)
        except OSError as error:
            error_console.print(f"warning: nothing can be remembered about images ({error})", markup=False)

    def _rows(self) -> NDArray[np.void] | None:
        try:
            about = json.loads(self._path.with_suffix(".json").read_text(encoding="utf-8"))
            if about != {"sha256": sha256_of(self._path), "table": _hash_of_table(self.table)}:
                return None
            rows = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return rows if rows.shape == (self.table.n_rows,) and rows.dtype == self._type else None

    def _places(self) -> slice | NDArray[np.int64]:
        numbers = self.table.numbers
        return slice(numbers.start, numbers.stop, numbers.step) if isinstance(numbers, range) else numbers


def _hold(rows: NDArray[np.void], stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows, (N,), tell a fact about files that have these stamps, (N, 4)."""
    held: NDArray[np.bool_] = (rows["known"] == 1) & (rows["stamp"] == stamps).all(axis=1)
    return held


def kept_texts(records: object, what: str, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return texts that follow from kept records themselves, made only the first time; of others they are made.

    Args:
        what: names them; with other rules, another name.
    """
    if not isinstance(records, RecordTable):
        return make()
    rows = hashlib.sha256(np.asarray(records.numbers, dtype="<i8").tobytes()).hexdigest()
    name = hashlib.sha256(f"{what} {rows}".encode()).hexdigest()[:8]
    path = records.path.with_name(f"{records.path.stem}.{name}.json")
    try:
        facts = {"what": what, "rows": rows, "table": _hash_of_table(records)}
    except (OSError, ValueError, KeyError):
        return make()
    if records.is_replaced:  # after its hash was read, which may be the new one's
        return make()
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if {key: about[key] for key in facts} == facts and about["sha256"] == _hash_of_texts(about["texts"]):
            return {str(key): str(text) for key, text in about["texts"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # made again
    texts = make()
    if not records.is_replaced:
        try:
            write_json(path, {**facts, "texts": texts, "sha256": _hash_of_texts(texts)})
        except OSError as error:
            error_console.print(f"warning: nothing can be remembered about images ({error})", markup=False)
    return texts


def _hash_of_texts(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _hash_of_table(table: RecordTable) -> str:
    about = json.loads(table.path.with_suffix(".json").read_text(encoding="utf-8"))
    return str(about["sha256"])


class HexDigests(Sequence[str]):
    """Hashes as hexadecimal digits, made when they are asked for.

    Args:
        values: (N, width) uint8.
    """

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, chosen: int) -> str: ...

    @overload
    def __getitem__(self, chosen: slice) -> HexDigests: ...

    def __getitem__(self, chosen: int | slice) -> str | HexDigests:
        """Return one hash, or some."""
        if isinstance(chosen, slice):
            return HexDigests(self._values[chosen])
        return self._values[chosen].tobytes().hex()

    def __iter__(self) -> Iterator[str]:
        """Yield all, of which many are made at a time."""
        digits = 2 * self._values.shape[1]
        for start in range(0, len(self), _AT_A_TIME):
            together = self._values[start : start + _AT_A_TIME].tobytes().hex()
            yield from (together[place : place + digits] for place in range(0, len(together), digits))


def known_facts(records: object, what: str, width: int, of_bytes: bool = False) -> KnownFacts | None:
    """Return what is known about the images of kept records; None where `records` are others.

    Args:
        of_bytes: the fact is about an image's very bytes; None where cells may name files, which change without them.
    """
    if not isinstance(records, RecordTable):
        return None
    cells = records.places.cells
    return None if of_bytes and cells is not None and not cells.hold_bytes else KnownFacts(records, what, width)
