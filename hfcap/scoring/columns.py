"""Columns by which scores are told apart: those of the scored files, and some that the human captions tell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hfcap.errors import UserError
from hfcap.metrics.shared.caption_files import Warn
from hfcap.metrics.shared.coco_objects import mentioned_objects
from hfcap.registry import did_you_mean

MOST_VALUES = 20
"""A column of more texts tells single images apart, not kinds of them."""

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", r"\d+")
_COUNTS = (*_NUMBERS, "dozen", "several", "many", "couple", "pair")
_COLOURS = (
    *("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "gr[ae]y"),
    *("golden", "silver", "beige", "tan", "turquoise"),
)
_RELATIONS = (
    *("left", "right", "above", "below", "under", "underneath", "beneath", "over", "behind", "between", "beside"),
    *("near", "inside", "outside", "around", "across", "against", "among"),
    *("next to", "in front of", "on top of", "close to"),
)

RELATION_PHRASES = tuple(phrase for phrase in _RELATIONS if " " in phrase)
"""Relations in space of several words."""

Human = Mapping[str, Sequence[str]]


def _mentions(words: tuple[str, ...]) -> Callable[[str], bool]:
    pattern = re.compile(rf"\b(?:{'|'.join(words)})\b")
    return lambda caption: pattern.search(caption.lower()) is not None


def _people(caption: str) -> bool:
    return "person" in mentioned_objects(re.findall(r"[a-z]+", caption.lower()))


_MENTIONED: dict[str, Callable[[str], bool]] = {
    "people": _people,
    "counts": _mentions(_COUNTS),
    "colours": _mentions(_COLOURS),
    "relations": _mentions(_RELATIONS),
}
"""Column -> whether an English caption mentions what it is about; of an image, at least half of its captions."""

FROM_CAPTIONS = ("length", *_MENTIONED)
"""Columns that no file needs to hold."""


def kind_of_word(word: str) -> str:
    """Return what an English word is about: count, colour or relation, else just "word"."""
    kinds = {"count": _COUNTS, "colour": _COLOURS, "relation": _RELATIONS}
    return next((kind for kind, words in kinds.items() if re.fullmatch("|".join(words), word)), "word")


def groups_by(
    names: Sequence[str],
    rows: Mapping[str, Mapping[str, Any]],
    human: Human,
    words: Callable[[str], str] | None,
    warn: Warn,
) -> dict[str, dict[str, str]]:
    """Return column -> image id -> value, for the images that have one.

    Args:
        names: columns of the files, or some of FROM_CAPTIONS.
        rows: image id -> what the scored files say of the image.
        human: image id -> human captions, of every scored image.
        words: takes a caption apart, in languages other than English; None = English.

    Raises:
        UserError: no file has the column, or it has too many values.
    """
    groups: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(names):
        found = {image_id: row[name] for image_id, row in rows.items() if image_id in human and _is_value(row, name)}
        if found:
            groups[name] = _few_values(found, name)
        elif name in FROM_CAPTIONS:
            groups[name] = _of_captions(name, human, words)
        else:
            raise _unknown(name, rows)
        if missing := len(human) - len(groups[name]):
            warn(f"{missing:,} of {len(human):,} images have no {name!r} and are in none of its slices")
    return groups


def _is_value(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _unknown(name: str, rows: Mapping[str, Mapping[str, Any]]) -> UserError:
    known = dict.fromkeys(key for row in rows.values() for key in row if _is_value(row, key))
    choice = [*known, *(one for one in FROM_CAPTIONS if one not in known)]
    hint = did_you_mean(name, choice) or f"; choose one of {', '.join(choice)}"
    return UserError(f"column {name!r}: neither the human captions nor the predictions have it{hint}")


def _few_values(found: Mapping[str, Any], name: str) -> dict[str, str]:
    """Values as text; numbers that are too many become thirds."""
    texts = {image_id: str(value).strip() for image_id, value in found.items()}
    if len(set(texts.values())) <= MOST_VALUES:
        return texts
    try:
        numbers = {image_id: float(text) for image_id, text in texts.items()}
    except ValueError:
        raise UserError(
            f"column {name!r} has {len(set(texts.values())):,} different texts; give one with at most {MOST_VALUES}"
        ) from None
    return _thirds(numbers)


def _thirds(numbers: Mapping[str, float]) -> dict[str, str]:
    low, high = (float(bound) for bound in np.quantile(list(numbers.values()), [1 / 3, 2 / 3], method="lower"))
    names = (f"up to {low:.4g}", f"above {low:.4g}, up to {high:.4g}", f"above {high:.4g}")
    return {image_id: names[(number > low) + (number > high)] for image_id, number in numbers.items()}


def _of_captions(name: str, human: Human, words: Callable[[str], str] | None) -> dict[str, str]:
    if name == "length":
        split = words or (lambda caption: caption)
        means = {key: float(np.mean([len(split(line).split()) for line in group])) for key, group in human.items()}
        return {key: f"{value} words" for key, value in _thirds(means).items()}
    if words is not None:
        raise UserError(f"column {name!r} knows English words only; leave it out for captions in other languages")
    mentions = _MENTIONED[name]
    return {
        image_id: "mentioned" if 2 * sum(map(mentions, group)) >= len(group) else "not mentioned"
        for image_id, group in human.items()
    }
