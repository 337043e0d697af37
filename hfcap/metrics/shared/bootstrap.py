"""Bootstrap intervals for any metric whose values follow from summed per-image statistics; correction of p-values.

Shapes: N images, S statistics, O outputs, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric

Floats = NDArray[np.floating[Any]]
"""Statistics in double precision, or in single precision where it holds them exactly."""

_IMAGES_AT_ONCE = 8192
_WEIGHTS_AT_ONCE = 250_000
# Small blocks stay in the processor's cache: half the time of large ones.
_FEWEST_ROWS = 4
# Of many images the statistics no longer fit the cache: several resamples share a pass over them.
_EXACT_IN_FLOAT32 = 2**24


def resample_weights(n_images: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks (r, N) float64 of how often each image is drawn in each of R resamples with replacement.

    The blocks depend only on the arguments: two systems resampled with the same seed draw the same images.
    """
    generator = np.random.default_rng(seed)
    block = max(_FEWEST_ROWS, _WEIGHTS_AT_ONCE // max(n_images, 1))
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        drawn = generator.integers(0, n_images, size=(rows, n_images), dtype=np.int32)
        drawn += (np.arange(rows, dtype=np.int32) * np.int32(n_images))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_images)
        yield counts.reshape(rows, n_images).astype(np.float64)


class Columns:
    """Statistics of N images, (N, S) in one or several tables, ready to be summed with many weights.

    Counts of words and matches are whole numbers: in single precision their sums over a part of the images are exact,
    and take half the time and memory. The digits are those of double precision.
    """

    def __init__(self, tables: Sequence[Floats]) -> None:
        self.n_images = len(tables[0])
        self.width = sum(table.shape[1] for table in tables)
        columns = [table[:, number] for table in tables for number in range(table.shape[1])]
        self._whole = np.asarray([_is_small_and_whole(column) for column in columns], dtype=bool)
        self._exact = self._joined(columns, self._whole, np.float32)
        self._other = self._joined(columns, ~self._whole, np.float64)

    def _joined(self, columns: Sequence[Floats], chosen: NDArray[np.bool_], dtype: Any) -> NDArray[Any]:
        joined = np.empty((int(chosen.sum()), self.n_images), dtype=dtype)
        for row, number in enumerate(np.flatnonzero(chosen).tolist()):
            joined[row] = columns[number]
        return joined

    def weighted_sums(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return weights (r, N), small whole numbers, times the statistics: (r, S) float64.

        Row by row instead of one matrix product: BLAS would start threads for every small block, which is a hundred
        times slower where other programs use the processor too.
        """
        exact = np.zeros((len(weights), len(self._exact)))
        other = np.zeros((len(weights), len(self._other)))
        for start in range(0, self.n_images, _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            of_part = weights[:, None, part]
            other += np.vecdot(of_part, self._other[None, :, part])
            if len(self._exact):
                exact += np.vecdot(of_part.astype(np.float32), self._exact[None, :, part])
        sums = np.empty((len(weights), self.width))
        sums[:, self._whole], sums[:, ~self._whole] = exact, other
        return sums


def _is_small_and_whole(column: Floats) -> bool:
    """Whether sums of a part, each image drawn up to 16 times in the mean, are exact in single precision."""
    largest = float(np.abs(column).max(initial=0.0))
    return 16 * largest * _IMAGES_AT_ONCE < _EXACT_IN_FLOAT32 and bool((column == np.rint(column)).all())


def resampled_sums(columns: Columns, n_resamples: int, seed: int) -> NDArray[np.float64]:
    """Return the summed statistics of every resample, (R, S) float64."""
    blocks = [columns.weighted_sums(weights) for weights in resample_weights(columns.n_images, n_resamples, seed)]
    return np.concatenate(blocks) if blocks else np.empty((0, columns.width))


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
    columns = Columns([statistics[metric.name] for metric in summable])
    parts = np.split(resampled_sums(columns, n_resamples, seed), np.cumsum(widths)[:-1], axis=1)
    values: dict[str, NDArray[np.float64]] = {}
    for metric, sums in zip(summable, parts, strict=True):
        found = metric.from_sums(sums, columns.n_images)
        values |= {output: found[:, position] for position, output in enumerate(metric.outputs)}
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
