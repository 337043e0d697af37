"""The parts of a score file that grow with the images, written and read line by line.

hfcap writes one line per image: `per_image` and the tables of `statistics` never stand in memory as text, nor as Python
objects. Files laid out otherwise are read as a whole (report_files.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.files import MAX_LINE_BYTES, MAX_TEXT_BYTES, parse_json
from hfcap.metrics.shared.bootstrap import Floats
from hfcap.scoring.image_values import ImageValues, Rows, Values

_LINES_AT_ONCE = 4096
_LARGEST_WHOLE = 2.0**53
_EXACT_IN_FLOAT32 = 2.0**24
_NUMBERS = {float, int, type(None)}

Table = Sequence[Sequence[float]]

_encode = json.JSONEncoder(allow_nan=False).encode


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _LINES_AT_ONCE) for start in range(0, count, _LINES_AT_ONCE))


def _lines_of_values(values: Values) -> Iterator[list[str]]:
    """Lines `"id": {...}` of some images at a time."""
    if not isinstance(values, ImageValues):
        yield [f"    {_encode(image_id)}: {_encode(row)}" for image_id, row in values.items()]
        return
    named = ", ".join(_encode(name).replace("%", "%%") + ": %s" for name in values.names)
    pattern = f"    %s: {{{named}}}"
    for part in _chunks(len(values)):
        columns = [["null" if isnan(value) else repr(value) for value in row] for row in values.table[part].T.tolist()]
        yield [pattern % row for row in zip(map(_encode, values.image_ids[part]), *columns, strict=True)]


def _short(row: Sequence[float]) -> list[float]:
    """Whole numbers without their point."""
    return [int(value) if value % 1 == 0 else value for value in row]


def _lines_of_table(table: Table) -> Iterator[list[str]]:
    """Lines `[...]` of some images at a time."""
    for part in _chunks(len(table)):
        if isinstance(table, Rows):
            rows = table.table[part]
            if bool((rows == np.rint(rows)).all()) and float(np.abs(rows).max(initial=0.0)) < _LARGEST_WHOLE:
                yield [f"      {row}" for row in rows.astype(np.int64).tolist()]
                continue
        yield [f"      {_encode(_short(row))}" for row in table[part]]


def write_lines(handle: BinaryIO, values: Values, statistics: Mapping[str, Table]) -> None:
    """Write the values of `per_image` and `statistics`, with their keys, as the last keys of a JSON object."""
    handle.write(b'  "per_image": {\n')
    _write_joined(handle, _lines_of_values(values))
    handle.write(b'\n  },\n  "statistics": {\n')
    for number, (name, table) in enumerate(statistics.items()):
        handle.write(((",\n" if number else "") + f"    {_encode(name)}: [\n").encode())
        _write_joined(handle, _lines_of_table(table))
        handle.write(b"\n    ]")
    handle.write(b"\n  }\n}\n")


def _write_joined(handle: BinaryIO, parts: Iterator[list[str]]) -> None:
    separator = ""
    for lines in parts:
        if lines:
            handle.write((separator + ",\n".join(lines)).encode("utf-8"))
            separator = ",\n"


class _OtherLayoutError(Exception):
    """The file is not laid out as hfcap writes it."""


class _Lines:
    """Lines of a file, one read at a time."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle

    def next(self) -> bytes:
        """Return the next line without its end."""
        line = self._handle.readline(MAX_LINE_BYTES + 1)
        if not line or len(line) > MAX_LINE_BYTES:
            raise _OtherLayoutError
        return line.rstrip(b"\n")

    def until(self, last: tuple[bytes, ...]) -> Iterator[list[bytes]]:
        """Yield lines before one of `last`, some at a time; blank ones are left out."""
        lines: list[bytes] = []
        while (line := self.next()) not in last:
            if line:
                lines.append(line)
            if len(lines) == _LINES_AT_ONCE:
                yield lines
                lines = []
        if lines:
            yield lines


def read_lines(path: Path) -> dict[str, Any] | None:
    """Return the content of a score file that is laid out as hfcap writes it, else None.

    `per_image` is an ImageValues and `statistics` name -> Rows; all other keys are as in the file.

    """
    try:
        with path.open("rb") as handle:
            return _parsed(_Lines(handle), path)
    except (_OtherLayoutError, OSError, ValueError, TypeError, OverflowError, UserError):
        return None  # whoever reads it as a whole says what is wrong


def _parsed(lines: _Lines, path: Path) -> dict[str, Any]:
    value = _head(lines, path)
    value["per_image"] = _values(lines, path)
    if lines.next() != b'  "statistics": {':
        raise _OtherLayoutError
    value["statistics"] = dict(_tables(lines, path, len(value["per_image"])))
    if lines.next() != b"}":
        raise _OtherLayoutError
    return value


def _json(text: bytes, path: Path) -> Any:
    return parse_json(text.decode("utf-8"), f"{path}: score file", lines=True, finite=True)


def _head(lines: _Lines, path: Path) -> dict[str, Any]:
    head: list[bytes] = []
    size = 0
    while (line := lines.next()) != b'  "per_image": {':
        head.append(line)
        size += len(line)
        if size > MAX_TEXT_BYTES or (len(head) == 1 and line != b"{"):
            raise _OtherLayoutError
    value = _json(b"\n".join(head).rstrip().removesuffix(b",") + b"}", path)
    if not isinstance(value, dict) or not {"per_image", "statistics"}.isdisjoint(value):
        raise _OtherLayoutError
    return value


def _values(lines: _Lines, path: Path) -> ImageValues:
    names: tuple[str, ...] | None = None
    image_ids: list[str] = []
    tables: list[NDArray[np.float64]] = []
    for part in lines.until((b"  },",)):
        rows = _json(b"{" + _joined(part) + b"}", path)
        if not rows or not all(isinstance(row, dict) for row in rows.values()):
            raise _OtherLayoutError
        names = tuple(next(iter(rows.values()))) if names is None else names
        if len(rows) != len(part) or any(tuple(row) != names for row in rows.values()):
            raise _OtherLayoutError
        image_ids += rows
        tables.append(_table([list(row.values()) for row in rows.values()], _NUMBERS))
    if len(set(image_ids)) != len(image_ids):
        raise _OtherLayoutError
    table = np.concatenate(tables) if tables else np.empty((0, 0))
    return ImageValues(image_ids, names or (), table)


def _tables(lines: _Lines, path: Path, n_images: int) -> Iterator[tuple[str, Rows]]:
    while (line := lines.next()) != b"  }":
        if not line:
            continue
        if not line.endswith(b": ["):
            raise _OtherLayoutError
        name = _json(line.strip().removesuffix(b": ["), path)
        end = (b"    ],", b"    ]")
        parts = [
            _short_floats(_table(_json(b"[" + _joined(part) + b"]", path), {float, int})) for part in lines.until(end)
        ]
        table = np.concatenate(parts) if parts else np.empty((0, 0))
        if not isinstance(name, str) or len(table) != n_images or table.ndim != 2:
            raise _OtherLayoutError
        yield name, Rows(table)


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join(lines).removesuffix(b",")


def _short_floats(table: NDArray[np.float64]) -> Floats:
    """Counts of words and matches in half the memory; numbers that single precision would change as they are."""
    is_exact = bool((table == np.rint(table)).all()) and float(np.abs(table).max(initial=0.0)) < _EXACT_IN_FLOAT32
    return table.astype(np.float32) if is_exact else table


def _table(rows: list[list[Any]], types: set[type]) -> NDArray[np.float64]:
    """Rows of numbers as an array, NaN for None."""
    if not set(map(type, chain.from_iterable(rows))) <= types:
        raise _OtherLayoutError
    return np.asarray(rows, dtype=np.float64)
