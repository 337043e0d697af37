"""Bradley-Terry strengths against a logistic regression by a general optimiser, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hfcap.arena.bradley_terry import bradley_terry, elo


def random_wins(seed: int, k: int, n: int) -> NDArray[np.float64]:
    """n duels of each pair, a fifth of them ties."""
    rng = np.random.default_rng(seed)
    wins = np.zeros((k, k))
    for a in range(k):
        for b in range(a):
            won, tied, lost = rng.multinomial(n, [0.8 * (a + 1) / (a + b + 2), 0.2, 0.8 * (b + 1) / (a + b + 2)])
            wins[a, b], wins[b, a] = won + tied / 2, lost + tied / 2
    return wins


def by_logistic_regression(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """One row per ordered pair, its weight the wins: +1 for the winner, -1 for the loser; the label is always 1."""
    k = len(wins)
    pairs = [(a, b) for a in range(k) for b in range(k) if a != b]
    rows = torch.tensor([[float(column == a) - float(column == b) for column in range(k)] for a, b in pairs]).double()
    weights = torch.tensor([wins[a, b] for a, b in pairs]).double()
    strengths = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [strengths], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (weights * torch.nn.functional.softplus(-rows @ strengths)).sum() + strengths.sum() ** 2
        value.backward()
        return value

    optimizer.step(loss)
    found = strengths.detach().numpy()
    return np.asarray(found - found.mean())


@pytest.mark.parametrize("seed", range(4))
def test_strengths_are_those_of_a_logistic_regression(seed: int) -> None:
    wins = random_wins(seed, k=2 + seed, n=40)
    np.testing.assert_allclose(bradley_terry(wins, extra_ties=0), by_logistic_regression(wins), atol=1e-5)
    # One more tie of each pair is half a win for both.
    more = wins + 0.5 * (1 - np.eye(len(wins)))
    np.testing.assert_allclose(bradley_terry(wins), by_logistic_regression(more), atol=1e-5)


def test_two_systems_have_a_closed_form() -> None:
    """The odds are the ratio of the wins; 7 wins, 2 ties, 3 losses."""
    wins = np.array([[0, 8.0], [4.0, 0]])
    first, second = bradley_terry(wins, extra_ties=0)
    assert first - second == pytest.approx(math.log(8 / 4), abs=1e-9) and first + second == pytest.approx(0)
    first, second = bradley_terry(wins)
    assert first - second == pytest.approx(math.log(8.5 / 4.5), abs=1e-9)
    assert np.diff(elo(np.array([0.0, math.log(10)]))) == pytest.approx(400) and elo(np.zeros(1)) == 1000


def test_who_never_lost_has_a_finite_strength_and_many_samples_are_computed_at_once() -> None:
    wins = np.array([[0, 300.0, 300], [0, 0, 300], [0, 0, 0]])
    strengths = bradley_terry(wins)
    assert np.isfinite(strengths).all() and strengths[0] > strengths[1] > strengths[2]
    stacked = np.stack([wins, random_wins(5, 3, 50), np.zeros((3, 3))])
    each = np.stack([bradley_terry(one) for one in stacked])
    np.testing.assert_allclose(bradley_terry(stacked), each, atol=1e-7)
    assert each[2].tolist() == [0, 0, 0]
