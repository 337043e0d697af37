"""Five true sentences about a generated scene, each with other words and other details."""

from __future__ import annotations

import random

from hfcap.data.scenes.layout import Group, Scene

_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_ARRANGED = {
    "row": ("in a row", "a row of"),
    "column": ("one above the other", "a column of"),
    "grid": ("in two rows", "two rows with"),
}
_RELATIONS = {
    "left": ("to the left of", "to the right of", "on the left", "on the right", "next to"),
    "above": ("above", "below", "at the top", "at the bottom", "over"),
}


def captions_of(scene: Scene) -> tuple[str, ...]:
    """Return five captions; every one names count, colour or relation of the objects, so none fits most scenes."""
    source = random.Random(scene.variation)
    if len(scene.groups) == 2:
        return _about_two_groups(scene, source)
    return _about_single(scene, source) if scene.groups[0].count == 1 else _about_group(scene, source)


def _about_single(scene: Scene, source: random.Random) -> tuple[str, ...]:
    (group,) = scene.groups
    pronoun = source.choice(("nothing else", "no other shape"))
    return (
        f"{_phrase(group, size=True)} {scene.place}",
        f"{_phrase(group)} on {_background(scene)}",
        f"there is {_phrase(group)} {scene.place}",
        f"one {group.size} {group.shape} in {group.colour} and {pronoun}",
        f"a picture of {_phrase(group, size=True)} on {_background(scene, tint=False)}",
    )


def _about_group(scene: Scene, source: random.Random) -> tuple[str, ...]:
    (group,) = scene.groups
    assert scene.arrangement is not None
    arranged, an_arrangement = _ARRANGED[scene.arrangement]
    number = _NUMBERS[group.count]
    pronoun = "both" if group.count == 2 else "all"
    verb = source.choice(("standing", "placed"))
    return (
        f"{_phrase(group)} {arranged}",
        f"{_phrase(group, size=True)} on {_background(scene)}",
        f"{an_arrangement} {number} {group.size} {_plural(group.shape)} in {group.colour}",
        f"there are {number} {_plural(group.shape)} and {pronoun} are {group.colour}",
        f"{_phrase(group, size=True)} {verb} {arranged}",
    )


def _about_two_groups(scene: Scene, source: random.Random) -> tuple[str, ...]:
    first, second = scene.groups
    assert scene.relation is not None
    relation, inverse, at_first, at_second, loosely = _RELATIONS[scene.relation]
    total = first.count + second.count
    return (
        f"{_phrase(first)} {relation} {_phrase(second)}",
        f"{_phrase(second)} {inverse} {_phrase(first)}",
        f"{_phrase(first, size=True)} and {_phrase(second, size=True)} on {_background(scene, tint=False)}",
        f"{_phrase(first)} {at_first} and {_phrase(second)} {at_second}",
        source.choice(
            (
                f"{_NUMBERS[total]} shapes, {_phrase(first, size=True)} {loosely} {_phrase(second, size=True)}",
                f"{_phrase(first, size=True)} {loosely} {_phrase(second, size=True)}",
            )
        ),
    )


def _phrase(group: Group, size: bool = False) -> str:
    words: list[str] = [group.size] if size else []
    words += [group.colour, group.shape if group.count == 1 else _plural(group.shape)]
    if group.count > 1:
        return " ".join([_NUMBERS[group.count], *words])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _background(scene: Scene, tint: bool = True) -> str:
    return f"a {scene.pattern} {scene.tint} background" if tint else f"a {scene.pattern} background"
