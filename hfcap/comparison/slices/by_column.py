"""Systems compared on parts of the images: each value of the columns that their score files tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.comparison.by_image import ByImage, pair_by_image
from hfcap.comparison.result import Comparison, Difference, SliceComparison
from hfcap.comparison.significance import Pair, PairedDifference, paired_differences
from hfcap.comparison.systems import System
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.bootstrap import holm, percentile_intervals, resampled_values
from hfcap.scoring.score_table import SIGNIFICANT

Rows = Mapping[str, NDArray[np.float64]]

MOST_SLICES = 12
"""So many pairs of slice and system have examples, the most certain differences first."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of the images: N in the order of sorted image ids, of which `member` (N,) says which belong to it."""

    column: str
    value: str
    member: NDArray[np.bool_]


def compare_slices(
    systems: Sequence[System],
    metrics: Sequence[CaptionMetric],
    output: str | None,
    directions: Mapping[str, float],
    settings: dict[str, Any],
) -> tuple[SliceComparison, ...]:
    """Return the systems on each slice by one value; empty where no score file has slices or the value no statistics.

    Holm's correction is over all slices and systems; it is apart from that of the leaderboard.

    Args:
        metrics: those that are comparable.
        output: the value that the leaderboard is ordered by.
        directions: value -> 1 where higher is better, else -1.
    """
    groups = next((system.report.groups for system in systems if system.report.groups), {})
    image_ids = systems[0].image_ids
    parts = [
        Part(column, value, member)
        for column, values in groups.items()
        for value in sorted(set(values.values()))
        if (member := np.asarray([values.get(image_id) == value for image_id in image_ids], dtype=np.bool_)).any()
    ]
    return compare_parts(systems, metrics, output, directions, parts, settings)


def compare_parts(
    systems: Sequence[System],
    metrics: Sequence[CaptionMetric],
    output: str | None,
    directions: Mapping[str, float],
    parts: Sequence[Part],
    settings: dict[str, Any],
) -> tuple[SliceComparison, ...]:
    """Return the systems on each of these parts; empty where the value has no statistics.

    Args:
        metrics, output, directions: as for `compare_slices`. parts: none without images.
    """
    metric = next((one for one in metrics if output in one.outputs), None)
    if output is None or metric is None:
        return ()
    rows = {system.name: rows for system in systems if (rows := system.statistics(metric)) is not None}
    found = [_slice(metric, output, directions[output], rows, part, settings) for part in parts if rows]
    tested = [(number, name) for number, (_, paired) in enumerate(found) for name in paired]
    corrected = holm([found[number][1][name].p_value for number, name in tested])
    for (number, name), p_value in zip(tested, corrected, strict=True):
        comparison, paired = found[number]
        comparison.differences[name] = Difference(paired[name], p_value)
    return tuple(comparison for comparison, _ in found)


def _slice(
    metric: CaptionMetric,
    output: str,
    direction: float,
    rows: Rows,
    part: Part,
    settings: dict[str, Any],
) -> tuple[SliceComparison, dict[str, PairedDifference]]:
    """The systems on one slice, and their differences to the best there before correction."""
    inside = {name: statistics[part.member] for name, statistics in rows.items()}
    column = metric.outputs.index(output)
    values = {name: float(metric.aggregate(statistics)[column]) for name, statistics in inside.items()}
    intervals: dict[str, tuple[float, float]] = {}
    for name, statistics in inside.items():
        drawn = resampled_values((metric,), {metric.name: statistics}, settings["n_resamples"], settings["seed"])
        if (interval := percentile_intervals(drawn, settings["confidence_level"]).get(output)) is not None:
            intervals[name] = interval
    best = max(values, key=lambda name: direction * values[name])
    others = [name for name in values if name != best]
    pairs = [Pair(metric, inside[name], inside[best]) for name in others]
    paired = {
        name: differences[output]
        for name, differences in zip(others, paired_differences(pairs, **settings), strict=True)
        if output in differences
    }
    n_images = int(part.member.sum())
    return SliceComparison(part.column, part.value, n_images, values, intervals, best, {}), paired


@dataclass(frozen=True, slots=True)
class SliceExamples:
    """One system against the best one on a slice.

    Attributes:
        slice: the part of the images.
        pair: the best system there, and the other one, on all images.
        positions: of the images in `pair` where the other one loses most, the largest loss first.
    """

    slice: SliceComparison
    pair: ByImage
    positions: tuple[int, ...]

    @property
    def image_ids(self) -> list[str]:
        """The images' ids."""
        return [self.pair.image_ids[position] for position in self.positions]


def slice_examples(comparison: Comparison, count: int) -> list[SliceExamples]:
    """Return up to `count` images for each significant difference on a slice."""
    systems = {system.name: system for system in comparison.systems}
    groups = next((system.report.groups for system in comparison.systems if system.report.groups), {})
    found = [
        (difference.corrected_p_value, one, name)
        for one in comparison.slices
        for name, difference in one.differences.items()
        if difference.corrected_p_value < SIGNIFICANT
    ]
    examples = []
    for _, one, name in sorted(found, key=lambda entry: entry[0])[:MOST_SLICES]:
        assert comparison.ranking is not None
        pair = pair_by_image(comparison, systems[one.best], systems[name], comparison.ranking)
        advantages = pair.advantages
        member = groups[one.column]
        lost = [
            position
            for position, image_id in enumerate(pair.image_ids)
            if member.get(image_id) == one.value and advantages[position] > 0
        ]
        lost.sort(key=lambda position: (-advantages[position], pair.image_ids[position]))
        if lost[:count]:
            examples.append(SliceExamples(one, pair, tuple(lost[:count])))
    return examples
