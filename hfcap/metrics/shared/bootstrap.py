"""Bootstrap intervals for any metric whose values follow from summed per-image statistics; correction of p-values.

Shapes: N images, S statistics, O outputs, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric

_IMAGES_AT_ONCE = 8192
_WEIGHTS_AT_ONCE = 250_000
# Small blocks stay in the processor's cache: half the time of large ones.


def resample_weights(n_images: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks (r, N) float64 of how often each image is drawn in each of R resamples with replacement.

    The blocks depend only on the arguments: two systems resampled with the same seed draw the same images.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _WEIGHTS_AT_ONCE // max(n_images, 1))
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        drawn = generator.integers(0, n_images, size=(rows, n_images), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * np.int32(n_images))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_images)
        yield counts.reshape(rows, n_images).astype(np.float64)


def weighted_sums(weights: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights (r, N) times statistics given as columns (S, N): (r, S) float64.

    Row by row instead of one matrix product: BLAS would start threads for every small block, which is a hundred times
    slower where other programs use the processor too.
    """
    sums = np.zeros((len(weights), len(columns)))
    for start in range(0, weights.shape[1], _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        sums += np.vecdot(weights[:, None, part], columns[None, :, part])
    return sums


def resampled_sums(statistics: NDArray[np.float64], n_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the summed statistics of every resample, (R, S) float64; `statistics` is (N, S)."""
    columns = np.ascontiguousarray(statistics.T)
    blocks = [weighted_sums(weights, columns) for weights in resample_weights(len(statistics), n_resamples, seed)]
    return np.concatenate(blocks) if blocks else np.empty((0, statistics.shape[1]))


def resampled_values(
    metrics: tuple[CaptionMetric, ...], statistics: dict[str, NDArray[np.float64]], n_resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return output name -> (R,) values of the resampled corpora; metrics that are not summable are left out.

    All metrics see the same draws, so that their values stay paired.
    """
    summable = [metric for metric in metrics if metric.summable]
    if not summable or not n_resamples:
        return {}
    widths = [statistics[metric.name].shape[1] for metric in summable]
    joined = np.concatenate([statistics[metric.name] for metric in summable], axis=1)
    parts = np.split(resampled_sums(joined, n_resamples, seed), np.cumsum(widths)[:-1], axis=1)
    values: dict[str, NDArray[np.float64]] = {}
    for metric, sums in zip(summable, parts, strict=True):
        columns = metric.from_sums(sums, len(joined))
        values |= {output: columns[:, position] for position, output in enumerate(metric.outputs)}
    return values


def percentile_intervals(
    values: dict[str, NDArray[np.float64]], confidence_level: float
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each output; outputs undefined in some resample are left out."""
    tail = 50.0 * (1.0 - confidence_level)
    intervals = {}
    for output, column in values.items():
        if len(column) and np.isfinite(column).all():
            lower, upper = np.percentile(column, [tail, 100.0 - tail])
            intervals[output] = (float(lower), float(upper))
    return intervals


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple comparisons by Holm's (1979) step-down method, in the given order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected
