"""Groups of images on which captions score worse than on all others, found by what the human captions speak of.

Shapes: N images, C candidate groups, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.metrics.meteor_parts.stemmer import stem
from hfcap.metrics.shared.tokenizer import tokenize
from hfcap.metrics.suite import SuiteResult
from hfcap.schema import ErrorSlice
from hfcap.scoring.columns import FROM_CAPTIONS, RELATION_PHRASES, groups_by, kind_of_word
from hfcap.scoring.verdict import MAIN_METRICS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FEWEST = 10
"""Images of a group; smaller ones say too little."""

MOST_SLICES = 10
"""So many groups are reported."""

N_EXAMPLES = 3
"""Captions shown of each group, the worst ones first."""

SIGNIFICANT = 0.05
_SAME = 0.8
"""Groups that share more of their images than this (intersection / union) are one; the surest is reported."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Group:
    """A candidate: images that have something in common.

    Attributes:
        kind: word, colour, count, relation, or a column of `columns.FROM_CAPTIONS`.
        name: the word, or the value in that column.
        members: positions of its images, sorted.
    """

    kind: str
    name: str
    members: Integers


def groups_of_captions(human: Mapping[str, Sequence[str]], words: Callable[[str], str] | None) -> list[Group]:
    """Return the groups that human captions tell: by each word, or relation, that at least half of an image's have.

    Forms of a word with one stem are one word (English). Groups of fewer than FEWEST images, or of more than half of
    all, are left out: that more images do worse than the others is better said of the others.

    Args:
        human: image id -> human captions. words: takes a caption apart in other languages; None = English.
    """
    members: dict[tuple[str, str], list[int]] = {}
    spelled: dict[tuple[str, str], dict[str, int]] = {}
    for position, captions in enumerate(human.values()):
        counts: dict[tuple[str, str], int] = {}
        for caption in captions:
            tokens = tokenize(caption) if words is None else words(caption).split()
            of_caption = {("word", stem(token) if words is None else token): token for token in tokens}
            text = f" {' '.join(tokens)} "
            of_caption |= {("relation", phrase): phrase for phrase in RELATION_PHRASES if f" {phrase} " in text}
            for key, token in of_caption.items():
                counts[key] = counts.get(key, 0) + 1
                forms = spelled.setdefault(key, {})
                forms[token] = forms.get(token, 0) + 1
        for key, count in counts.items():
            if 2 * count >= len(captions):
                members.setdefault(key, []).append(position)
    found = []
    for group, positions in members.items():
        kind, forms = group[0], spelled[group]
        name = max(forms, key=lambda form: (forms[form], form))
        if any(letter.isalnum() for letter in name):
            found.append(Group(kind_of_word(name) if kind == "word" else kind, name, np.asarray(positions)))
    for column in FROM_CAPTIONS if words is None else FROM_CAPTIONS[:1]:
        values = list(groups_by([column], {}, human, words, lambda message: None)[column].values())
        named = np.asarray(values)
        found += [Group(column, value, np.flatnonzero(named == value)) for value in sorted(set(values))]
    most = len(human) // 2
    return [one for one in found if FEWEST <= len(one.members) <= most]


def find_error_slices(
    result: SuiteResult,
    human: Mapping[str, Sequence[str]],
    predicted: Mapping[str, str],
    words: Callable[[str], str] | None,
    *,
    n_resamples: int,
    seed: int,
) -> list[ErrorSlice]:
    """Return the groups of images whose mean value is significantly worse than that of all others, surest first.

    The value is that of single images, by CIDEr-D where it was computed. The p-value is one-sided and corrected over
    all groups that were looked at by the largest statistic of each permutation (Westfall & Young 1993, single-step
    maxT): it is how often any group does as badly if values have nothing to do with images.

    Args:
        human, predicted: image id -> captions of the scored images.

    Raises:
        UserError: no permutations are asked for, or no value of single images has a better direction.
    """
    if not n_resamples:
        raise UserError("n_resamples: find_slices needs permutations; give a number above 0")
    output, direction = _value_of_images(result)
    values = direction * result.per_image()[output]
    known = np.isfinite(values)
    ids = [image_id for image_id, there in zip(result.image_ids, known, strict=True) if there]
    values = values[known]
    groups = groups_of_captions({image_id: human[image_id] for image_id in ids}, words)
    if not groups or np.ptp(values) < _ROUNDING:
        return []
    p_values = worse_p_values(values, [group.members for group in groups], n_resamples, seed)
    order = sorted(
        (place for place in range(len(groups)) if p_values[place] < SIGNIFICANT),
        key=lambda place: (p_values[place], values[groups[place].members].mean(), groups[place].name),
    )
    chosen: list[int] = []
    for place in order:
        if not any(_overlap(groups[place].members, groups[other].members) > _SAME for other in chosen):
            chosen.append(place)
    found = []
    for place in chosen[:MOST_SLICES]:
        inside = groups[place].members
        rest = np.delete(values, inside)
        worst = sorted(inside.tolist(), key=lambda position: (values[position], position))[:N_EXAMPLES]
        found.append(
            ErrorSlice(
                kind=groups[place].kind,
                name=groups[place].name,
                n_images=len(inside),
                output=output,
                value=float(direction * values[inside].mean()),
                value_of_others=float(direction * rest.mean()),
                p_value=float(p_values[place]),
                examples=tuple((ids[position], predicted[ids[position]]) for position in worst),
            )
        )
    return found


def _value_of_images(result: SuiteResult) -> tuple[str, float]:
    directions = {
        output: 1.0 if metric.higher_is_better else -1.0
        for metric in result.metrics
        for output in metric.outputs
        if metric.summable and metric.higher_is_better is not None and result.values.get(output) is not None
    }
    name = next((name for name in (*MAIN_METRICS, *directions) if name in directions), None)
    if name is None:
        raise UserError("find_slices: no metric says which captions are better; add cider to the metrics")
    return name, directions[name]


def _overlap(first: Integers, second: Integers) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def worse_p_values(values: Floats, members: Iterable[Integers], n_resamples: int, seed: int) -> Floats:
    """Return for each group how likely any group is to fall as far below the other images by chance, (C,) float64.

    The statistic is the difference of the means over its standard error under permutation, sd sqrt(1/n + 1/(N - n)),
    which is of the same size for small and large groups.

    Args:
        values: (N,) of the images, higher is better. members: positions of the images of C groups, none empty.
    """
    listed = list(members)
    sizes = np.asarray([len(group) for group in listed], dtype=np.float64)
    joined = np.concatenate(listed)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
    n_images, total = len(values), values.sum()
    error = values.std() * np.sqrt(1 / sizes + 1 / (n_images - sizes))

    def statistics(ordered: Floats) -> Floats:
        inside = np.add.reduceat(ordered[joined], starts)
        return ((total - inside) / (n_images - sizes) - inside / sizes) / error

    observed = statistics(values)
    at_least = np.ones(len(listed))
    generator = np.random.default_rng(seed)
    for _ in range(n_resamples):
        at_least += statistics(generator.permutation(values)).max() >= observed - _ROUNDING
    return at_least / (n_resamples + 1)
