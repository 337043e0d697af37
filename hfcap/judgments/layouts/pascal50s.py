"""Pascal-50S: pairs of captions, of which 48 people said which is more like a human one (Vedantam et al. 2015)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.judgments.layouts.mat_file import read_mat
from hfcap.judgments.records import JudgedCaption, Judgments, Preference, tidy

PAIRS, VOTES = "pair_pascal.mat", "consensus_pascal.mat"
_KINDS = {1: "HC", 2: "HI", 3: "HM", 4: "MM"}
"""Both human and correct; one of another image; human and machine; both by machines."""
_REFERENCES = 5
"""Of the up to 48 references of an image the published evaluations draw five; here they are the first five."""


def read_pascal50s(folder: Path) -> Judgments:
    """Read `pair_pascal.mat` and `consensus_pascal.mat`; pairs with as many votes for either caption are left out.

    Raises:
        UserError: a file is missing or not as its authors publish it.
    """
    pairs, votes = read_mat(folder / PAIRS), read_mat(folder / VOTES)
    for path, content, name in ((PAIRS, pairs, "new_input"), (PAIRS, pairs, "category"), (VOTES, votes, "triplets")):
        if name not in content:
            raise UserError(f"{folder / path}: holds no variable {name!r}; give the file as its authors publish it")
    inputs, kinds, triplets = pairs["new_input"], _flat(pairs["category"]), votes["triplets"]
    if len(kinds) != len(inputs) or not inputs or len(triplets) % len(inputs):
        raise UserError(
            f"{folder}: {len(inputs)} pairs, {len(kinds)} kinds and {len(triplets)} votes do not belong together; "
            "give the files as their authors publish them"
        )
    each = len(triplets) // len(inputs)
    captions: list[JudgedCaption] = []
    preferences: list[Preference] = []
    ties = 0
    for number, (fields, kind) in enumerate(zip(inputs, kinds, strict=True)):
        image, first, second = (_text(value, folder / PAIRS) for value in list(fields.values())[:3])
        cast = [list(row.values()) for row in triplets[number * each : (number + 1) * each]]
        for_one = Counter(_text(row[1] if _flat(row[3])[0] == 1 else row[2], folder / VOTES) for row in cast)
        if for_one[first] == for_one[second]:
            ties += 1
            continue
        human = tuple(dict.fromkeys(_text(row[0], folder / VOTES) for row in cast))[:_REFERENCES]
        better, worse = (first, second) if for_one[first] > for_one[second] else (second, first)
        captions += [JudgedCaption(image, text, human) for text in (better, worse)]
        preferences.append(Preference(len(captions) - 2, len(captions) - 1, _KINDS.get(int(kind), "")))
    if not preferences:
        raise UserError(f"{folder}: no pair that people preferred one caption of; give the whole files")
    notes = (f"{ties:,} pairs with as many votes for either caption are left out",) if ties else ()
    return Judgments("pascal50s", tuple(captions), preferences=tuple(preferences), notes=notes)


def _flat(value: Any) -> Sequence[float]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: Any, path: Path) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise UserError(f"{path}: a caption must be text, not {type(value).__name__}; give the file as published")
    return tidy(value)
