"""Is one system better than another on the same images? Paired bootstrap and paired permutation test.

Shapes: N images, S statistics, O outputs, R resamples. Both tests resample images, never single captions, and work on
sums of per-image statistics, so that corpus metrics (BLEU, METEOR) are tested as exactly as means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.bootstrap import Columns, Floats, percentile_intervals, resampled_sums

_SWAPS_AT_ONCE = 250_000
_FEWEST_ROWS = 4
_ROUNDING = 1e-12
_SHOWN = 5e-5
_SHOWN_PLAIN = 5e-3
"""Half of the last digit of a difference as it is shown: x 100 with two decimals; counts and lengths as they are."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of one value between two systems on the same images (first minus second).

    Attributes:
        difference: on the raw scale.
        interval: (lower, upper) of the paired bootstrap.
        p_value: of the two-sided permutation test; the chance of a difference this large if the systems were equal.
            1 for a difference that is shown as 0.00, such as one that is only BLEU's smoothing.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One metric's statistics of two systems on the same N images.

    Attributes:
        metric: turns summed statistics into values.
        first: (N, S) float64, or float32 where that is exact.
        second: (N, S) likewise, the same images in the same order.
    """

    metric: CaptionMetric
    first: Floats
    second: Floats

    def __post_init__(self) -> None:
        assert self.first.shape == self.second.shape and self.first.ndim == 2, "statistics are not paired"
        assert len(self.first), "no images"

    def totals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the summed statistics of both systems, (S,) each."""
        return self.first.sum(axis=0, dtype=np.float64), self.second.sum(axis=0, dtype=np.float64)


def _split(columns: NDArray[np.float64], pairs: Sequence[Pair], copies: int) -> list[NDArray[np.float64]]:
    """Undo the concatenation of `copies` statistics per pair along the last axis."""
    widths = [pair.first.shape[1] for pair in pairs for _ in range(copies)]
    return np.split(columns, np.cumsum(widths)[:-1], axis=-1)


def paired_bootstrap(pairs: Sequence[Pair], *, n_resamples: int = 10_000, seed: int = 0) -> list[NDArray[np.float64]]:
    """Return for each pair the differences first minus second in R resamples of the images, (R, O).

    All pairs must be about the same images; they see the same resamples.
    """
    columns = Columns([part for pair in pairs for part in (pair.first, pair.second)])
    parts = _split(resampled_sums(columns, n_resamples, seed), pairs, copies=2)
    n_images = columns.n_images
    return [
        pair.metric.from_sums(first, n_images) - pair.metric.from_sums(second, n_images)
        for pair, first, second in zip(pairs, parts[::2], parts[1::2], strict=True)
    ]


def _swaps(n_images: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Blocks (r, N) of fair coins: which images exchange their captions between the systems."""
    generator = np.random.default_rng(seed)
    n_bytes = -(-n_images // 8)
    block = max(1, _SWAPS_AT_ONCE // n_images)
    drawn: list[NDArray[np.float64]] = []
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        random_bytes = np.frombuffer(generator.bytes(rows * n_bytes), dtype=np.uint8).reshape(rows, n_bytes)
        drawn.append(np.unpackbits(random_bytes, axis=1, count=n_images).astype(np.float64))
        # Several resamples share a pass over the statistics; how many are drawn at once decides what is drawn.
        if len(drawn) * block >= _FEWEST_ROWS or start + rows == n_resamples:
            yield drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
            drawn = []


def paired_permutation(pairs: Sequence[Pair], *, n_resamples: int = 10_000, seed: int = 0) -> list[NDArray[np.float64]]:
    """Return for each pair the two-sided p-values of the approximate-randomisation test, (O,) float64 in (0, 1].

    Each resample exchanges the two captions of every image with probability one half. The observed assignment counts
    as one of the resamples, so that no p-value is 0. Source: Noreen (1989), Computer-Intensive Methods for Testing
    Hypotheses; Riezler & Maxwell (2005). All pairs must be about the same images; they see the same exchanges.
    """
    n_images = len(pairs[0].first)
    totals = [pair.totals() for pair in pairs]
    observed = [
        np.abs(pair.metric.from_sums(first, n_images) - pair.metric.from_sums(second, n_images))
        for pair, (first, second) in zip(pairs, totals, strict=True)
    ]
    change = Columns([pair.second - pair.first for pair in pairs])
    at_least = [np.ones_like(values) for values in observed]
    for swaps in _swaps(n_images, n_resamples, seed):
        for number, moved in enumerate(_split(change.weighted_sums(swaps), pairs, copies=1)):
            metric, (first, second) = pairs[number].metric, totals[number]
            difference = metric.from_sums(first + moved, n_images) - metric.from_sums(second - moved, n_images)
            # An exchange that changes nothing reaches the observed value by other roundings.
            at_least[number] += (np.abs(difference) >= observed[number] - _ROUNDING).sum(axis=0)
    return [count / (n_resamples + 1) for count in at_least]


def paired_differences(
    pairs: Sequence[Pair], *, n_resamples: int = 10_000, seed: int = 0, confidence_level: float = 0.95
) -> list[dict[str, PairedDifference]]:
    """Return for each pair: output -> difference first minus second, its bootstrap interval, its permutation p-value.

    Outputs undefined for either system, or in some resample, are left out.
    """
    if not pairs:
        return []
    resampled = paired_bootstrap(pairs, n_resamples=n_resamples, seed=seed)
    p_values = paired_permutation(pairs, n_resamples=n_resamples, seed=seed)
    results = []
    for pair, values, p_value in zip(pairs, resampled, p_values, strict=True):
        first, second = (pair.metric.from_sums(sums, len(pair.first)) for sums in pair.totals())
        observed = first - second
        columns = {output: values[:, position] for position, output in enumerate(pair.metric.outputs)}
        intervals = percentile_intervals(columns, confidence_level)
        results.append(
            {
                output: PairedDifference(
                    float(observed[position]),
                    intervals[output],
                    1.0
                    if shown_as_nothing(observed[position], output in pair.metric.plain_outputs)
                    else float(p_value[position]),
                )
                for position, output in enumerate(pair.metric.outputs)
                if output in intervals and np.isfinite(observed[position])
            }
        )
    return results


@overload
def shown_as_nothing(difference: float, plain: bool) -> bool: ...
@overload
def shown_as_nothing(difference: NDArray[np.float64], plain: bool) -> NDArray[np.bool_]: ...
def shown_as_nothing(difference: float | NDArray[np.float64], plain: bool) -> bool | NDArray[np.bool_]:
    """Whether a difference is shown as 0.00: without a 4-gram match BLEU-4 is its smoothing, exact to the last bit.

    Args:
        plain: the value is shown as it is, not x 100.
    """
    threshold = _SHOWN_PLAIN if plain else _SHOWN
    return np.abs(difference) < threshold if isinstance(difference, np.ndarray) else abs(difference) < threshold


def at_equal_length(
    differences: NDArray[np.float64],
    lengths: NDArray[np.float64],
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    confidence_level: float = 0.95,
) -> tuple[float, tuple[float, float]] | None:
    """Return the difference that is left where captions are equally long, and its bootstrap interval.

    It is the intercept of the least-squares line of the images' differences on their differences in length, as
    length-controlled AlpacaEval has it for preferences (Dubois et al. 2024, arXiv:2404.04475); images are resampled.
    None where lengths differ by the same number of words everywhere, so that there is no line.

    Args:
        differences: (N,) values of one system minus those of another. lengths: (N,) words, likewise.
    """
    rows = np.stack((np.ones_like(lengths), lengths, lengths**2, differences, lengths * differences), axis=1)
    if np.ptp(lengths) == 0:
        return None
    drawn = _intercepts(resampled_sums(Columns([rows]), n_resamples, seed))
    # A resample of one image again and again has no line either; there are next to none of them.
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    intervals = percentile_intervals({"intercept": drawn}, confidence_level)
    return float(_intercepts(rows.sum(axis=0))), intervals["intercept"]


def _intercepts(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve the normal equations of a line for sums of (1, x, x^2, y, x y), (..., 5) -> (...); NaN without a line."""
    n, x, xx, y, xy = np.moveaxis(sums, -1, 0)
    spread = n * xx - x**2
    found = np.full_like(spread, np.nan)
    return np.divide(xx * y - x * xy, spread, out=found, where=spread > _ROUNDING * np.maximum(n * xx, 1.0))
