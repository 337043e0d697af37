"""Kendall's tau-b and tau-c of weighted pairs of numbers, exact, in O(n log n) once and O(n log k) for each resample.

Shapes: n judgments, k distinct human scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class _Level(NamedTuple):
    """The pairs whose human scores' ranks first differ in one binary digit.

    Attributes:
        lower: judgments with a 0 there, ordered by (higher digits, metric).
        upper: judgments with a 1 there.
        before, through: for each of `upper`, how many of `lower` stand before those of its higher digits with an equal
            metric, and how many stand before their end.
        start, end: for each of `upper`, where the `lower` of its higher digits begin and end.
    """

    lower: Integers
    upper: Integers
    before: Integers
    through: Integers
    start: Integers
    end: Integers


def _ranks(values: Floats) -> Integers:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


class RankAgreement:
    """How well a metric orders captions as people do.

    Every pair of judgments is looked at in the binary digit where the ranks of their human scores differ first: those
    with a 0 are worse than those with a 1, and a search among the sorted metric values counts the concordant and
    discordant ones.
    All searches are done once; other weights (resamples of the images) cost sums alone.

    Args:
        metric: (n,) values of the metric.
        human: (n,) human scores of the same captions.
    """

    NAMES = ("tau_b", "tau_c")

    def __init__(self, metric: Floats, human: Floats) -> None:
        assert metric.shape == human.shape and metric.ndim == 1 and len(metric)
        self._metric, self._human = _ranks(metric), _ranks(human)
        digits = int(self._human.max()).bit_length()
        self._levels = [self._level(digit) for digit in range(digits)]

    def _level(self, digit: int) -> _Level:
        n_values = int(self._metric.max()) + 1
        higher, here = self._human >> (digit + 1), (self._human >> digit) & 1
        keys = higher * n_values + self._metric
        lower, upper = np.flatnonzero(here == 0), np.flatnonzero(here == 1)
        lower = lower[np.argsort(keys[lower], kind="stable")]
        ordered = keys[lower]
        group = higher[upper] * n_values
        return _Level(
            lower,
            upper,
            np.searchsorted(ordered, keys[upper], "left"),
            np.searchsorted(ordered, keys[upper], "right"),
            np.searchsorted(ordered, group, "left"),
            np.searchsorted(ordered, group + n_values, "left"),
        )

    def values(self, weights: Floats | None = None) -> Floats:
        """Return tau-b and tau-c, (2,) float64; NaN where one side is constant.

        tau-b = (C - D) / sqrt((P - Tx) (P - Ty)) with P pairs, of them C concordant, D discordant, Tx and Ty tied in
        the metric and in the human scores; tau-c = 2 (C - D) / (n^2 (m - 1) / m) with m the smaller number of distinct
        values. Source: Kendall (1945); Stuart (1953).

        Args:
            weights: (n,) how often each judgment counts; None = once.
        """
        counted = np.ones(len(self._human)) if weights is None else weights
        difference = 0.0
        for level in self._levels:
            sums = np.concatenate(([0.0], np.cumsum(counted[level.lower])))
            gained = sums[level.before] + sums[level.through] - sums[level.start] - sums[level.end]
            difference += float(np.dot(counted[level.upper], gained))
        n = float(counted.sum())
        sides = [np.bincount(ranks, weights=counted) for ranks in (self._metric, self._human)]
        untied = [n * (n - 1) / 2 - float((side * (side - 1) / 2).sum()) for side in sides]
        distinct = min(int(np.count_nonzero(side)) for side in sides)
        if distinct < 2:
            return np.full(2, np.nan)
        tau_b = difference / math.sqrt(untied[0] * untied[1])
        tau_c = 2 * difference / (n * n * (distinct - 1) / distinct)
        return np.asarray([tau_b, tau_c])


class PairAccuracy:
    """How often a metric prefers the caption that people prefer; equal values count as half.

    Args:
        better, worse: (n,) values of the metric for the preferred and the other caption.
        groups: (n,) kind of each pair; empty = none.
    """

    def __init__(self, better: Floats, worse: Floats, groups: list[str]) -> None:
        self._right = (better > worse) + 0.5 * (better == worse)
        names = sorted({group for group in groups if group})
        self.NAMES = ("accuracy", *(f"accuracy_{name}" for name in names))
        self._members = [np.ones(len(groups)), *(np.asarray([group == name for group in groups]) for name in names)]

    def values(self, weights: Floats | None = None) -> Floats:
        """Return the share of right preferences, of all and of each group, (1 + groups,) float64; NaN = no pair."""
        counted = np.ones(len(self._right)) if weights is None else weights
        found = []
        for members in self._members:
            total = float((counted * members).sum())
            found.append(float((counted * members * self._right).sum()) / total if total else math.nan)
        return np.asarray(found)
