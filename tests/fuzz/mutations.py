"""Damage to small valid files, by what they are: JSON, YAML, tables, safetensors, bytes."""

from __future__ import annotations

import copy
import csv
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml


@dataclass(frozen=True)
class Raw:
    """A piece of JSON that no Python value is written as."""

    text: str


@dataclass(frozen=True)
class Pairs:
    """An object in which a key may occur twice."""

    pairs: tuple[tuple[str, Any], ...]


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, [], {}, [None], [[]], [{}], {"": None}, {"a": {"b": [1]}}),
    *("", " ", "x", "nan", "None", "0", "-1", "true", "\0", "a\0b", "\ud800", "\u2028", "\u202e", "\x1b[2J", "é", "…"),
    *(
        "../../x",
        "/",
        ".",
        "..",
        "a/b/c",
        "~",
        "a" * 5000,
        "a dog\n" * 50,
        "['a', 'b']",
        "=cmd|' /C x'!A0",
        "<b>",
        "{{x}}",
    ),
    *(-1, 0, 1, 2, 255, 2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e300),
    *(float("nan"), float("inf"), float("-inf")),
    *(Raw("1" + "0" * 5000), Raw("-" + "9" * 4301), Raw("1e999"), Raw("0." + "1" * 3000), Raw('"\\ud800\\u0041"')),
    *(Raw("[" * 20_000 + "]" * 20_000), Raw('{"a":' * 5000 + "1" + "}" * 5000), Raw("[" * 900 + "]" * 900)),
)
"""What is put in the place of a value: every type, every bound, every way to be no number or no text."""

_NUMBERS = tuple(
    struct.pack(form, value) for form in ("<I", ">I", "<H", ">H", "<Q") for value in (0, 1, 0x7FFF, 0xFFFF, 0x80)
)


def dumped(value: Any, ascii_only: bool = True) -> str:
    """JSON of a value that may hold Raw and Pairs, numbers that are none, and halves of characters."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict | Pairs):
        pairs = value.pairs if isinstance(value, Pairs) else value.items()
        inside = ", ".join(
            f"{json.dumps(str(key), ensure_ascii=ascii_only)}: {dumped(v, ascii_only)}" for key, v in pairs
        )
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(dumped(item, ascii_only) for item in value)}]"
    return json.dumps(value, ensure_ascii=ascii_only, default=str)


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all nodes, the whole first."""
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += _nodes(value[key], (*path, key))
    elif isinstance(value, list):
        for position in range(min(len(value), 50)):
            found += _nodes(value[position], (*path, position))
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _tweaked(value: Any, draw: Random) -> Any:
    """A scalar that is nearly the same."""
    if isinstance(value, bool) or value is None:
        return draw.choice([not value, 0, 1, "true"])
    if isinstance(value, int):
        return draw.choice([value + 1, value - 1, -value, str(value & 0xFFFF), value & 0xFFFF, value * 10**9])
    if isinstance(value, float):
        return draw.choice([-value, value * 1e300, str(value), float("nan"), int(value) if abs(value) < 1e9 else 0])
    if isinstance(value, str):
        middle = draw.randrange(len(value) + 1)
        odd = draw.choice(["\0", "\ud800", "\n", "\u2028", "'", '"', "/", "\\", "%20", " ", "\x1b", "☃"])
        return draw.choice(
            [
                value[:middle],
                value + odd,
                odd + value,
                value[:middle] + odd + value[middle:],
                value.upper(),
                [value],
                value * 50,
            ]
        )
    return [value] if draw.random() < 0.5 else {"x": value}


def _hostile(draw: Random) -> Any:
    return copy.deepcopy(draw.choice(HOSTILE))


def _changed_node(value: Any, everything: Any, draw: Random) -> Any:
    """What is put in the place of a node."""
    kind = draw.random()
    if kind < 0.45:
        return _hostile(draw)
    if kind < 0.6:  # another part of the same file, where types are right and places wrong
        return copy.deepcopy(_at(everything, draw.choice(_nodes(everything))))
    if isinstance(value, dict) and value:
        keys = list(value)
        key = draw.choice(keys)
        return draw.choice(
            [
                {name: part for name, part in value.items() if name != key},
                Pairs((*value.items(), (key, draw.choice([value[key], None, "x"])))),
                {draw.choice(["", "x", *keys]) if name == key else name: part for name, part in value.items()},
                {**value, draw.choice(["", "x", "__class__", "\ud800", "problem"]): draw.choice([None, 1, "x", []])},
                {f"{name}{number}": part for number in range(40) for name, part in value.items()},
            ]
        )
    if isinstance(value, list) and value:
        place = draw.randrange(len(value))
        return draw.choice(
            [
                value[:place] + value[place + 1 :],
                [*value, value[place]],
                [*value[:place], _hostile(draw), *value[place:]],
                list(reversed(value)),
                value * 40,
                {str(number): item for number, item in enumerate(value)},
            ]
        )
    return _tweaked(value, draw)


def mutated_value(value: Any, draw: Random) -> Any:
    """A JSON value with one to four of its nodes changed."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        path = draw.choice(_nodes(value))
        new = _changed_node(_at(value, path), value, draw)
        if not path:
            value = new
        else:
            _at(value, path[:-1])[path[-1]] = new
    return value


def _encoded(text: str, draw: Random) -> bytes:
    """Text as a file: sometimes with a byte order mark, other line ends, or in another encoding."""
    kind = draw.random()
    if kind < 0.02:
        return text.encode("utf-16", "surrogatepass")
    if kind < 0.04:
        return text.encode("latin-1", "replace")
    if kind < 0.06:
        return text.replace("\n", "\r\n").encode("utf-8", "surrogatepass")
    return (b"\xef\xbb\xbf" if kind < 0.08 else b"") + text.encode("utf-8", "surrogatepass")


def mutated_bytes(content: bytes, draw: Random, at_most: int = 8) -> bytes:
    """Bytes with some of them flipped, cut, doubled, zeroed, moved or replaced by numbers that are bounds."""
    data = bytearray(content)
    for _ in range(draw.randint(1, at_most)):
        place = draw.randrange(len(data) + 1)
        end = min(len(data), place + draw.choice([1, 2, 4, 16, 200]))
        kind = draw.randrange(9)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[place:end] = bytes(draw.randrange(256) for _ in range(end - place))
        elif kind == 2:
            del data[place:end]
        elif kind == 3:
            data[place:place] = data[place:end] * draw.choice([1, 1, 20])
        elif kind == 4:
            data[place:end] = bytes(end - place)
        elif kind == 5:
            number = draw.choice(_NUMBERS)
            data[place : place + len(number)] = number
        elif kind == 6:
            data[place:place] = draw.choice([b"\xff", b"\xc3", b"\0" * 9, b"\n", b"{", b'"', b"\xff\xda\xff\xd8"])
        elif kind == 7 and draw.random() < 0.3:
            del data[place:]
        elif kind == 8 and len(data) > 1:
            other = draw.randrange(len(data))
            data[place:end] = data[other : other + end - place]
    return bytes(data)


def _mutated_json(content: bytes, draw: Random) -> bytes:
    value = mutated_value(json.loads(content), draw)
    return _encoded(dumped(value, ascii_only=draw.random() < 0.7), draw)


def _mutated_lines(content: bytes, draw: Random) -> bytes:
    lines = content.decode().splitlines()
    if draw.random() < 0.2 or not lines:
        place = draw.randrange(len(lines) + 1)
        lines[place:place] = draw.choice(
            [[""], ["{}"], ["null"], ["[]"], ["\0" * 50], lines[:1], ["{"], ["[" * 20_000]]
        )
    else:
        for _ in range(draw.choice([1, 1, 2])):
            place = draw.randrange(len(lines))
            try:
                lines[place] = dumped(mutated_value(json.loads(lines[place]), draw), draw.random() < 0.7)
            except (ValueError, RecursionError):
                lines[place] = lines[place][::-1]
    return _encoded("\n".join(lines) + draw.choice(["\n", "\n", "\n", ""]), draw)


def _mutated_yaml(content: bytes, draw: Random) -> bytes:
    if draw.random() < 0.7:
        value = mutated_value(yaml.safe_load(content) or {}, draw)
        return _encoded(dumped(value, ascii_only=draw.random() < 0.7), draw)
    lines = content.decode().splitlines()
    place = draw.randrange(len(lines) + 1)
    pieces = [
        "- 1",
        "  x: 1",
        "? [a]",
        "&a [*a]",
        "<<: *b",
        "!!python/object:os.system {}",
        "---",
        "\t",
        "%YAML 9",
        "a: &a b",
    ]
    lines[place:place] = [
        draw.choice([*pieces, "x: " + "[" * 3000, "x: 1" + "0" * 5000, "x: 2026-13-45", "x: 0x" + "f" * 5000])
    ]
    return _encoded("\n".join(lines) + "\n", draw)


def _mutated_csv(content: bytes, draw: Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode())))
    texts = [value for value in HOSTILE if isinstance(value, str)]
    for _ in range(draw.choice([1, 1, 2, 4])):
        row = draw.choice(rows)
        kind = draw.randrange(5)
        if kind == 0 and row:
            row[draw.randrange(len(row))] = draw.choice(texts)
        elif kind == 1:
            row.append(draw.choice(texts))
        elif kind == 2 and row:
            del row[draw.randrange(len(row))]
        elif kind == 3:
            rows.append(list(row))
        elif row:
            place = draw.randrange(len(row))
            row[place] = _tweaked(row[place], draw) if draw.random() < 0.7 else row[place] * 2000
    written = io.StringIO()
    csv.writer(written, delimiter=draw.choice(",,,,;\t|")).writerows([[str(cell) for cell in row] for row in rows])
    return _encoded(written.getvalue(), draw)


def _mutated_safetensors(content: bytes, draw: Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if draw.random() < 0.3:
        changed = mutated_bytes(content[: 8 + length], draw) + data
        return changed[: draw.randrange(len(changed))] if draw.random() < 0.2 else changed
    if draw.random() < 0.3:
        return content[: 8 + length] + mutated_bytes(data, draw)
    written = dumped(mutated_value(header, draw)).encode()
    told = len(written) if draw.random() < 0.9 else draw.choice([0, 1, 2**63, 2**64 - 1, len(written) + 1, 10**9])
    return struct.pack("<Q", told) + written + data


_BY_ENDING: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": _mutated_json,
    ".jsonl": _mutated_lines,
    ".yaml": _mutated_yaml,
    ".csv": _mutated_csv,
    ".tsv": _mutated_csv,
    ".safetensors": _mutated_safetensors,
}


def mutated(name: str, content: bytes, draw: Random) -> bytes:
    """Return a damaged copy of a file's content.

    Args:
        name: of the file; its ending says what the content is, that before `.part-` where there is one.
    """
    ending = ".jsonl" if ".part-" in name else Path(name).suffix
    by_kind = _BY_ENDING.get(ending)
    if by_kind is None or draw.random() < 0.15:
        return mutated_bytes(content, draw)
    changed = by_kind(content, draw)
    return mutated_bytes(changed, draw, at_most=2) if draw.random() < 0.05 else changed
