"""Strengths of systems from duels (Bradley and Terry 1952), ties counted as half a win for each side.

Shapes: R samples, K systems.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXTRA_TIES = 1.0
"""Ties added to each pair of systems, so that a system that never lost has a finite strength."""

_LARGEST_STEP = 1.0
_MOST_STEPS = 500
_SMALLEST_GRADIENT = 1e-12


def bradley_terry(wins: Floats, extra_ties: float = EXTRA_TIES) -> Floats:
    """Return the strengths that make the duels most likely: (..., K, K) -> (..., K), with mean 0.

    The probability that i beats j is 1 / (1 + exp(strength of j - strength of i)). Newton's method with limited steps;
    the likelihood has one maximum (Hunter 2004, The Annals of Statistics 32).

    Args:
        wins: [i, j] = how often i was preferred to j, a tie counting one half for each.
        extra_ties: added to each pair; 0 = the plain maximum, which exists only if no group of systems always won.
    """
    k = wins.shape[-1]
    won = wins + 0.5 * extra_ties * (1.0 - np.eye(k))
    met = won + np.swapaxes(won, -1, -2)
    strengths = np.zeros(wins.shape[:-1])
    for _ in range(_MOST_STEPS):
        chance = 1.0 / (1.0 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (won - met * chance).sum(axis=-1)
        if np.abs(gradient).max(initial=0.0) < _SMALLEST_GRADIENT * max(1.0, float(met.max(initial=0.0))):
            break
        weight = met * chance * (1.0 - chance)
        # The strengths are known up to a constant: a matrix of ones fixes their sum.
        hessian = np.eye(k) * weight.sum(axis=-1)[..., None] - weight + 1.0
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        largest = np.abs(step).max(axis=-1, keepdims=True)
        strengths = strengths + step * np.minimum(1.0, _LARGEST_STEP / np.maximum(largest, _LARGEST_STEP))
    return strengths - strengths.mean(axis=-1, keepdims=True)


def elo(strengths: Floats) -> Floats:
    """Return strengths on the scale of Elo ratings: mean 1000; 400 points more = ten times the odds."""
    return 1000.0 + 400.0 / math.log(10.0) * strengths
