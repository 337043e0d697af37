"""Groups of images on which captions score worse than on all others, found by what the human captions speak of.

Shapes: N images, C candidate groups, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.meteor_parts.stemmer import stem
from hfcap.metrics.shared.bootstrap import Columns, percentile_intervals, resampled_sums
from hfcap.metrics.shared.tokenizer import tokenize
from hfcap.metrics.suite import SuiteResult
from hfcap.recipe.score_options import FEWEST_PERMUTATIONS
from hfcap.schema import ErrorSlice
from hfcap.scoring.columns import FROM_CAPTIONS, RELATION_PHRASES, groups_by, kind_of_word
from hfcap.scoring.score_table import FEWEST, SIGNIFICANT
from hfcap.scoring.verdict import MAIN_METRICS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_SLICES = 10
"""So many groups are reported."""

N_EXAMPLES = 3
"""Captions shown of each group, the worst ones first."""

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
    confidence_level: float,
) -> list[ErrorSlice]:
    """Return the groups of images whose mean value is significantly worse than that of all others, surest first.

    The value is that of single images, by CIDEr-D where it was computed and tells images apart. The p-value is
    one-sided and corrected over all groups that were looked at by the largest statistic of each permutation (Westfall &
    Young 1993, single-step maxT): it is how often any group does as badly if values have nothing to do with images.

    Args:
        human, predicted: image id -> captions of the scored images.
        n_resamples: of the permutations, and of the bootstrap that the intervals are from.
        confidence_level: of these intervals.

    Raises:
        UserError: too few permutations are asked for, or no value of single images has a better direction.
    """
    _require_permutations(n_resamples)
    output, direction = _value_of_images(result)
    of_images = result.per_image()[output]
    known = np.isfinite(of_images)
    ids, raw = list(compress(result.image_ids, known.tolist())), of_images[known]
    values = direction * raw
    groups = groups_of_captions({key: human[key] for key in ids}, words)
    if not groups or not _differ(values):
        return []
    p_values = worse_p_values(values, [group.members for group in groups], n_resamples, seed)
    chosen = _chosen(groups, values, p_values)
    inside = [groups[place].members for place in chosen]
    intervals = means_with_intervals(raw, inside, n_resamples, seed, confidence_level)
    found: list[ErrorSlice] = []
    for place, members, (of_group, of_others) in zip(chosen, inside, intervals, strict=True):
        worst = sorted(members.tolist(), key=lambda position: (values[position], position))[:N_EXAMPLES]
        found.append(
            ErrorSlice(
                groups[place].kind,
                groups[place].name,
                len(members),
                output,
                value=float(raw[members].mean()),
                value_of_others=float(np.delete(raw, members).mean()),
                p_value=float(p_values[place]),
                examples=tuple((ids[position], predicted[ids[position]]) for position in worst),
                interval=of_group,
                interval_of_others=of_others,
                image_ids=tuple(ids[position] for position in members.tolist()),
            )
        )
    return found


def _require_permutations(n_resamples: int) -> None:
    if n_resamples < FEWEST_PERMUTATIONS:
        raise UserError(
            f"n_resamples: find_slices needs permutations, and {n_resamples} are too few for a p-value below "
            f"{SIGNIFICANT}; give at least {FEWEST_PERMUTATIONS}"
        )


def _chosen(groups: Sequence[Group], values: Floats, p_values: Floats) -> list[int]:
    """Places of the groups that are reported, surest first."""
    order = sorted(
        (place for place in range(len(groups)) if p_values[place] < SIGNIFICANT),
        key=lambda place: (p_values[place], values[groups[place].members].mean(), groups[place].name),
    )
    chosen: list[int] = []
    for place in order:
        if not any(_overlap(groups[place].members, groups[other].members) > _SAME for other in chosen):
            chosen.append(place)
    return chosen[:MOST_SLICES]


def directions_of(metrics: Iterable[CaptionMetric], known: Container[str] | None = None) -> dict[str, float]:
    """Return value of single images -> 1 where higher is better, -1 where lower is.

    Args:
        known: values that are defined; None = all.

    Raises:
        UserError: there is none, so that no group can be worse than another.
    """
    directions = {
        output: 1.0 if metric.higher_is_better else -1.0
        for metric in metrics
        if metric.summable and metric.higher_is_better is not None
        for output in metric.outputs
        if known is None or output in known
    }
    if not directions:
        raise UserError("find_slices: no metric says which captions are better; add cider to the metrics")
    return directions


def _value_of_images(result: SuiteResult) -> tuple[str, float]:
    """The value that groups are found by, and its direction: CIDEr-D of a bad captioner may be 0 for every image."""
    directions = directions_of(result.metrics, {name for name, value in result.values.items() if value is not None})
    names = [name for name in (*MAIN_METRICS, *directions) if name in directions]
    of_images = result.per_image()
    name = next((name for name in names if _differ(of_images[name])), names[0])
    return name, directions[name]


def _differ(values: Floats) -> bool:
    known = values[np.isfinite(values)]
    return len(known) > 0 and bool(np.ptp(known) >= _ROUNDING)


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


Interval = tuple[float, float]


def means_with_intervals(
    values: Floats, members: Sequence[Integers], n_resamples: int, seed: int, confidence_level: float
) -> list[tuple[Interval | None, Interval | None]]:
    """Return for each group the percentile intervals of its mean and of the mean of all other images.

    All images are resampled together, so that a resample holds a group more or less often, as another set of images
    would. Resamples that hold a group not once (of ten images: one in 20,000) say nothing of it. The intervals do not
    know that the groups were chosen for their low values.

    Args:
        values: (N,) of the images. members: positions of the images of C groups, neither empty nor all.
    """
    n_images = len(values)
    rows = np.zeros((n_images, 1 + 2 * len(members)))
    rows[:, 0] = values
    for number, group in enumerate(members):
        rows[group, 1 + 2 * number] = 1
        rows[group, 2 + 2 * number] = values[group]
    sums = resampled_sums(Columns([rows]), n_resamples, seed)
    intervals = []
    for number in range(len(members)):
        count, inside = sums[:, 1 + 2 * number], sums[:, 2 + 2 * number]
        some, others = count > 0, count < n_images
        means = {
            "group": inside[some] / count[some],
            "others": (sums[others, 0] - inside[others]) / (n_images - count[others]),
        }
        found = percentile_intervals(means, confidence_level)
        intervals.append((found.get("group"), found.get("others")))
    return intervals
