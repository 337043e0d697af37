"""Scores of parts of the images: each value of a column by itself, and whether it differs from all other images.

Shapes: N images, S statistics, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.bootstrap import Columns, holm, percentile_intervals, resampled_values
from hfcap.metrics.suite import SuiteResult, number_or_none
from hfcap.schema import SliceScores

Floats = NDArray[np.float64]
_CELLS_AT_ONCE = 1_000_000
_ROUNDING = 1e-12


def slice_scores(
    result: SuiteResult,
    groups: Mapping[str, Mapping[str, str]],
    *,
    n_resamples: int,
    seed: int,
    confidence_level: float,
) -> dict[str, dict[str, SliceScores]]:
    """Return column -> value -> scores of the images that have it.

    The statistics are those of all images together: CIDEr-D's document frequencies are the whole split's. p-values are
    of the two-sided permutation test against all other images, after Holm's correction over every slice and value.

    Args:
        groups: column -> image id -> value; images without a value are in no slice.
        n_resamples: of bootstrap and permutation test; 0 = neither.
    """
    metrics = tuple(metric for metric in result.metrics if metric.summable)
    statistics = {metric.name: result.statistics[metric.name] for metric in metrics}
    slices: dict[str, dict[str, SliceScores]] = {}
    p_values: dict[tuple[str, str, str], float] = {}
    for column, values in groups.items():
        named = np.asarray([values.get(image_id, "") for image_id in result.image_ids])
        for value in sorted(set(values.values())):
            member = named == value
            inside = {name: rows[member] for name, rows in statistics.items()}
            found: dict[str, float | None] = {}
            for metric in metrics:
                numbers = metric.aggregate(inside[metric.name]).tolist()
                found |= {output: number_or_none(n) for output, n in zip(metric.outputs, numbers, strict=True)}
            drawn = resampled_values(metrics, inside, n_resamples, seed)
            intervals = percentile_intervals(drawn, confidence_level)
            slices.setdefault(column, {})[value] = SliceScores(int(member.sum()), found, intervals)
            if n_resamples and not member.all():
                tested = _against_others(metrics, statistics, member, n_resamples, seed)
                p_values |= {(column, value, output): p for output, p in tested.items()}
    for (column, value, output), p in zip(p_values, holm(list(p_values.values())), strict=True):
        slices[column][value].p_values[output] = p
    return slices


def _subsets(n_images: int, size: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks (r, N) of which images are in a random part of `size` images."""
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // n_images)
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        chosen = np.argpartition(generator.random((rows, n_images)), size - 1, axis=1)[:, :size]
        inside = np.zeros((rows, n_images))
        np.put_along_axis(inside, chosen, 1.0, axis=1)
        yield inside


def _against_others(
    metrics: tuple[CaptionMetric, ...],
    statistics: Mapping[str, Floats],
    member: NDArray[np.bool_],
    n_resamples: int,
    seed: int,
) -> dict[str, float]:
    """Output -> p-value: how rarely a random part of the images differs from the rest as much."""
    n_images, size = len(member), int(member.sum())
    joined = np.concatenate([statistics[metric.name] for metric in metrics], axis=1)
    columns = Columns([joined])
    widths = np.cumsum([statistics[metric.name].shape[1] for metric in metrics])[:-1]
    total = joined.sum(axis=0)

    def differences(inside: Floats) -> list[Floats]:
        parts = zip(np.split(inside, widths, axis=-1), np.split(total - inside, widths, axis=-1), strict=True)
        return [
            metric.from_sums(part, size) - metric.from_sums(rest, n_images - size)
            for metric, (part, rest) in zip(metrics, parts, strict=True)
        ]

    observed = [np.abs(values) for values in differences(joined[member].sum(axis=0))]
    at_least = [np.ones_like(values) for values in observed]
    for subsets in _subsets(n_images, size, n_resamples, seed):
        for number, values in enumerate(differences(columns.weighted_sums(subsets))):
            at_least[number] += (np.abs(values) >= observed[number] - _ROUNDING).sum(axis=0)
    return {
        output: float(at_least[number][place] / (n_resamples + 1))
        for number, metric in enumerate(metrics)
        for place, output in enumerate(metric.outputs)
        if metric.higher_is_better is not None and np.isfinite(observed[number][place])
    }
