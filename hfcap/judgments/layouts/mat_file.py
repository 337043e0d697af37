"""MATLAB 5 files: text, numbers, cells and structs, which is all that human judgments are kept in.

Source: MAT-File Format, The MathWorks (the part about level 5).
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from hfcap.errors import UserError

_HEADER = 128
_COMPRESSED, _MATRIX = 15, 14
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MOST_BYTES = 512 * 2**20
_DEEPEST = 20


class _DamagedError(Exception):
    pass


def read_mat(path: Path) -> dict[str, Any]:
    """Return name -> value of the variables in a file.

    Text is str; an array of cells, numbers or structs is a list in MATLAB's order (column by column), a struct a dict.

    Raises:
        UserError: the file is missing, damaged, or of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the file of human judgments") from None
    if len(content) < _HEADER or content[126:128] not in (b"IM", b"MI"):
        raise UserError(f"{path}: no MATLAB 5 file; save it with `save -v6` or `-v7`")
    order = "<" if content[126:128] == b"IM" else ">"
    found: dict[str, Any] = {}
    place = _HEADER
    try:
        while place < len(content):
            kind, data, place = _element(content, place, order)
            if kind == _COMPRESSED:
                kind, data, _ = _element(_inflated(data), 0, order)
            if kind == _MATRIX:
                name, value = _matrix(data, order, 0)
                found[name] = value
    except (_DamagedError, struct.error, zlib.error, UnicodeDecodeError, IndexError) as error:
        raise UserError(f"{path}: damaged MATLAB file ({error}); download it again") from None
    return found


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(data, _MOST_BYTES)
    if inflater.unconsumed_tail:
        raise _DamagedError(f"more than {_MOST_BYTES:,} bytes")
    return content


def _element(content: bytes, place: int, order: str) -> tuple[int, bytes, int]:
    """Return (type, data, place after it) of the element at `place`."""
    (head,) = struct.unpack_from(order + "I", content, place)
    if head >> 16:  # small: the size stands next to the type, up to four bytes of data after it
        return head & 0xFFFF, content[place + 4 : place + 4 + (head >> 16)], place + 8
    (size,) = struct.unpack_from(order + "I", content, place + 4)
    end = place + 8 + size
    if end > len(content):
        raise _DamagedError("it ends too early")
    padding = 0 if head == _COMPRESSED else -size % 8
    return head, content[place + 8 : end], end + padding


def _numbers(kind: int, data: bytes, order: str) -> list[float]:
    letter = _NUMBERS.get(kind)
    if letter is None:
        raise _DamagedError(f"numbers of type {kind}")
    return list(struct.unpack(f"{order}{len(data) // struct.calcsize(letter)}{letter}", data))


def _matrix(data: bytes, order: str, depth: int) -> tuple[str, Any]:
    if not data:
        return "", []
    if depth > _DEEPEST:
        raise _DamagedError("nested too deeply")
    _, flags, place = _element(data, 0, order)
    array_class = struct.unpack_from(order + "I", flags)[0] & 0xFF
    kind, shape, place = _element(data, place, order)
    count = 1
    for side in _numbers(kind, shape, order):
        count *= int(side)
    _, name, place = _element(data, place, order)

    def nested() -> Any:
        nonlocal place
        _, inner, place = _element(data, place, order)
        return _matrix(inner, order, depth + 1)[1]

    if count > len(data):
        raise _DamagedError("more values than bytes")
    if array_class == _CELL:
        value: Any = [nested() for _ in range(count)]
    elif array_class == _STRUCT:
        kind, width, place = _element(data, place, order)
        (length,) = _numbers(kind, width, order)
        _, joined, place = _element(data, place, order)
        size = max(1, int(length))
        names = [joined[at : at + size].split(b"\0")[0].decode("ascii") for at in range(0, len(joined), size)]
        value = [{field: nested() for field in names} for _ in range(count)]
    elif array_class == _CHAR:
        kind, text, place = _element(data, place, order)
        encoding = _TEXTS.get(kind, "latin-1")
        ending = ("-le" if order == "<" else "-be") if encoding in ("utf-16", "utf-32") else ""
        value = text.decode(encoding + ending)
    else:
        kind, numbers, place = _element(data, place, order)
        value = _numbers(kind, numbers, order)
    return name.decode("ascii", "replace"), value
