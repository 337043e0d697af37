"""log.jsonl: a row for every few updates and every validation, read so that damage and length cost little."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from hfcap.progress import error_console

_LONGEST_LINE = 1_000_000
"""Bytes of a row; ours have hundreds."""
_MOST_ROWS = 100_000
_LARGEST = 1e300
_BLOCK = 4096


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of log.jsonl, as many as a curve can show: of a very long log evenly chosen ones.

    Rows of validations are all kept. Damaged lines (a power failure, a full disk) are left out, which is said.
    """
    with path.open("rb") as handle:
        n_lines = sum(block.count(b"\n") for block in iter(lambda: handle.read(2**20), b""))
    stride = -(-n_lines // _MOST_ROWS) or 1
    rows, damaged = [], 0
    with path.open("rb") as handle:
        for number, line in enumerate(iter(lambda: handle.readline(_LONGEST_LINE), b"")):
            if number % stride and b'"validation_' not in line:
                continue
            row = _row(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                damaged += 1
    if damaged:
        said = f"warning: {path}: {damaged:,} damaged lines are left out"
        error_console.print(said, markup=False, soft_wrap=True)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not _is_number(row["step"]):
        return None
    # A value that is no number (a flipped bit, a later version) is left out alone.
    return {key: value for key, value in row.items() if key == "samples" or _is_number(value)}


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= _LARGEST)  # NaN is not


def cut_end(path: Path, step: int) -> int:
    """Cut a log after its last row of an update up to `step`; returns how many damaged lines went with the end."""
    damaged = 0
    with path.open("r+b") as handle:
        end = handle.seek(0, os.SEEK_END) if step else 0
        while end > 0:
            start = _line_start(handle, end)
            handle.seek(start)
            line = handle.read(min(end - start, _LONGEST_LINE))
            row = _row(line) if line.endswith(b"\n") else None
            if row is not None and row["step"] <= step:
                break
            # A last line without its end was cut off by a kill, which is no damage worth a word.
            damaged += row is None and line.endswith(b"\n") and bool(line.strip())
            end = start
        handle.truncate(end)
        handle.flush()
        os.fsync(handle.fileno())
    return damaged


def _line_start(handle: BinaryIO, end: int) -> int:
    """Return where the line that ends before `end` begins."""
    position = end - 1
    while position > 0:
        first = max(0, position - _BLOCK)
        handle.seek(first)
        found = handle.read(position - first).rfind(b"\n")
        if found >= 0:
            return first + found + 1
        position = first
    return 0
