"""Where in a row a value stands: `sentences[].raw`, `conversations[from=gpt].value`, `{image_id:0>12}.jpg`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hfcap.errors import UserError

_STEP = re.compile(r"([^.\[\]]*)((?:\[[^\[\]]*\])*)(?:\.|$)")
_CONDITION = re.compile(r"\[([^\[\]]*)\]")


def values_at(row: Mapping[str, Any], path: str) -> list[Any]:
    """Return what stands at a place of a row; a place that is not there gives nothing, null is a value.

    Args:
        path: keys joined by dots. After a key `[]` stands for every item of its list, `[0]` for one, `[key=value]` for
            those whose key has the value, `[!key]` for those whose key is missing or false. Lists and objects that a
            program wrote into a cell as JSON are taken apart. A column whose name is the whole path comes first.
    """
    if path in row:
        return [row[path]]
    found: list[Any] = [row]
    for key, conditions in _steps(path):
        found = [item[key] for value in found if isinstance(item := parsed(value), Mapping) and key in item]
        for condition in conditions:
            found = [item for value in found for item in _chosen(parsed(value), condition)]
    return found


def template_text(row: Mapping[str, Any], template: str) -> str | None:
    """Return a text with the row's values for `{key}`; `{key:0>12}` fills up as Python's formats do.

    None where a key is missing or no text or number.
    """
    pieces: list[str] = []
    for literal, key, fill in re.findall(r"([^{}]*)(?:\{([^{}:]+)(?::([^{}]*))?\})?", template):
        pieces.append(literal)
        if key:
            values = values_at(row, key)
            if len(values) != 1 or isinstance(values[0], bool) or not isinstance(values[0], str | int):
                return None
            pieces.append(format(str(values[0]), fill))
    return "".join(pieces)


@lru_cache(maxsize=256)
def _steps(path: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    steps, place = [], 0
    while place < len(path):
        step = _STEP.match(path, place)
        if step is None or not step[1]:
            raise UserError(
                f"{path!r} is no place in a row; write keys joined by dots, such as caption or sentences[].raw"
            )
        steps.append((step[1], tuple(_CONDITION.findall(step[2]))))
        place = step.end()
    return tuple(steps)


def parsed(value: Any) -> Any:
    """Take apart an object or list that a program wrote as JSON into a cell of text."""
    if isinstance(value, str) and value[:1] in "[{" and value[-1:] in "]}":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _chosen(value: Any, condition: str) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    if not condition:
        return items
    if condition.isdecimal():
        return items[int(condition) : int(condition) + 1]
    objects = [item for item in items if isinstance(item, Mapping)]
    if condition.startswith("!"):
        return [item for item in objects if not item.get(condition[1:])]
    key, _, wanted = condition.partition("=")
    return [item for item in objects if key in item and same_value(item[key], wanted)]


def same_value(value: Any, wanted: Any) -> bool:
    """Whether a cell holds a value: numbers and truth values also where a table wrote them as text."""
    return value == wanted or str(value).strip().casefold() == str(wanted).strip().casefold()
