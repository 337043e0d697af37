"""What a generated scene shows: groups of equal objects, their places and the background, drawn from a seed.

Lengths are shares of the image's side; the origin is the top left corner, y grows downwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "flower")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
PATTERNS = ("plain", "striped", "dotted", "checked", "shaded")
TINTS = ("grey", "beige", "mint", "sky blue")

Size = Literal["small", "large"]
Arrangement = Literal["row", "column", "grid"]
Relation = Literal["left", "above"]
"""Where the first group is, seen from the second."""

_BOTH_SIZES: tuple[Size, ...] = ("small", "large")
_BOTH_RELATIONS: tuple[Relation, ...] = ("left", "above")
_RADIUS = {"small": (0.075, 0.1), "large": (0.15, 0.18)}
_JITTER = 0.025
_CORNERS = {
    "in the middle": (0.5, 0.5),
    "at the top left": (0.26, 0.26),
    "at the top right": (0.74, 0.26),
    "at the bottom left": (0.26, 0.74),
    "at the bottom right": (0.74, 0.74),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Equal objects: how many, how large, which colour and shape."""

    count: int
    size: Size
    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Placed:
    """One object of group number `group`: centre, radius and rotation in degrees."""

    group: int
    x: float
    y: float
    radius: float
    rotation: float


@dataclass(frozen=True, slots=True)
class Scene:
    """One image's content.

    Attributes:
        groups: one or two; 1 to 4 objects altogether.
        place: where a single object is, else "".
        arrangement: how the only group of several objects is laid out, else None.
        relation: how the first of two groups lies to the second, else None.
        variation: seed of what captions don't mention (shades, the pattern's phase).
    """

    groups: tuple[Group, ...]
    place: str
    arrangement: Arrangement | None
    relation: Relation | None
    pattern: str
    tint: str
    objects: tuple[Placed, ...]
    variation: int

    def meaning(self) -> str:
        """Return what is shown, without background and exact places: equal for scenes with equal captions."""
        return repr((self.groups, self.place, self.arrangement, self.relation))


def draw_scene(source: random.Random) -> Scene:
    """Draw a scene: one object, one group of 2 to 4, or two groups next to or above each other."""
    kind = source.choices(("single", "group", "pair"), weights=(25, 25, 50))[0]
    place = ""
    arrangement: Arrangement | None = None
    relation: Relation | None = None
    laid_out: Arrangement
    beside: Relation
    if kind == "single":
        groups: tuple[Group, ...] = (_draw_group(source, 1),)
        place = source.choice(tuple(_CORNERS))
        centres = [[_CORNERS[place]]]
    elif kind == "group":
        count = source.choice((2, 3, 4))
        arrangement = laid_out = source.choice(_arrangements(count))
        # Four large objects don't fit into one row.
        groups = (_draw_group(source, count, "small" if count == 4 and arrangement != "grid" else None),)
        centres = [_lay_out(count, laid_out)]
    else:
        groups = _draw_pair(source)
        relation = beside = source.choice(_BOTH_RELATIONS)
        centres = [_lay_beside(groups[0].count, beside, 0.26), _lay_beside(groups[1].count, beside, 0.74)]
    objects = [
        _place_object(source, number, group, centre)
        for number, (group, places) in enumerate(zip(groups, centres, strict=True))
        for centre in places
    ]
    pattern, tint = source.choice(PATTERNS), source.choice(TINTS)
    return Scene(groups, place, arrangement, relation, pattern, tint, tuple(objects), variation=source.getrandbits(32))


def _arrangements(count: int) -> tuple[Arrangement, ...]:
    return ("row", "column", "grid") if count == 4 else ("row", "column")


def _draw_group(source: random.Random, count: int, size: Size | None = None) -> Group:
    drawn: Size = source.choice(_BOTH_SIZES)
    return Group(count, size or drawn, source.choice(COLOURS), source.choice(SHAPES))


def _draw_pair(source: random.Random) -> tuple[Group, Group]:
    counts = source.choice(((1, 1), (1, 1), (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2)))
    first = _draw_group(source, counts[0])
    while True:
        second = _draw_group(source, counts[1])
        # Groups of the same look would be one group to anybody who sees the image.
        if (second.colour, second.shape) != (first.colour, first.shape):
            return first, second


def _lay_out(count: int, arrangement: Arrangement) -> list[tuple[float, float]]:
    if arrangement == "grid":
        return [(0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)]
    line = _line(count)
    return [(position, 0.5) for position in line] if arrangement == "row" else [(0.5, position) for position in line]


def _lay_beside(count: int, relation: Relation, across: float) -> list[tuple[float, float]]:
    """Groups left of another stand in columns, groups above another in rows, so that the relation holds for all."""
    return [(across, along) if relation == "left" else (along, across) for along in _line(count)]


def _line(count: int) -> list[float]:
    step = {1: 0.0, 2: 0.44, 3: 0.32, 4: 0.235}[count]
    return [0.5 + step * (index - (count - 1) / 2) for index in range(count)]


def _place_object(source: random.Random, number: int, group: Group, centre: tuple[float, float]) -> Placed:
    # Large objects of a group of three touch their neighbours when shifted.
    jitter = _JITTER if group.size == "small" or group.count < 3 else 0.0
    low, high = _RADIUS[group.size]
    radius = low if jitter == 0.0 else source.uniform(low, high)
    x, y = (value + source.uniform(-jitter, jitter) for value in centre)
    return Placed(number, x, y, radius, rotation=source.uniform(-12, 12))
