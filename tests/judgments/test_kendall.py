"""Kendall's taus against the definition, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hfcap.judgments.kendall import PairAccuracy, RankAgreement


def by_definition(metric: NDArray[np.float64], human: NDArray[np.float64]) -> tuple[float, float]:
    """Tau-b and tau-c from all pairs."""
    n = len(metric)
    concordant = discordant = tied_metric = tied_human = 0
    for i in range(n):
        for j in range(i):
            first, second = np.sign(metric[i] - metric[j]), np.sign(human[i] - human[j])
            concordant += first * second > 0
            discordant += first * second < 0
            tied_metric += first == 0
            tied_human += second == 0
    pairs = n * (n - 1) / 2
    tau_b = (concordant - discordant) / math.sqrt((pairs - tied_metric) * (pairs - tied_human))
    m = min(len(set(metric)), len(set(human)))
    return tau_b, 2 * (concordant - discordant) / (n**2 * (m - 1) / m)


@pytest.mark.parametrize("n_human", [2, 3, 4, 7, 8, 40])
@pytest.mark.parametrize("n_metric", [2, 5, 60])
def test_the_taus_are_those_of_the_definition(n_metric: int, n_human: int) -> None:
    generator = np.random.default_rng(n_metric * 100 + n_human)
    human = generator.integers(0, n_human, 60) / 3 - 1
    metric = human * 0.3 + generator.integers(0, n_metric, 60).astype(float)
    assert RankAgreement(metric, human).values() == pytest.approx(by_definition(metric, human), abs=1e-12)
    assert RankAgreement(-metric, human).values() == pytest.approx(-RankAgreement(metric, human).values(), abs=1e-12)


def test_weights_are_repetitions() -> None:
    generator = np.random.default_rng(0)
    metric, human = generator.integers(0, 9, 40).astype(float), generator.integers(0, 4, 40).astype(float)
    weights = generator.integers(0, 4, 40)
    repeated = np.repeat(np.arange(40), weights)
    found = RankAgreement(metric, human).values(weights.astype(float))
    assert found == pytest.approx(by_definition(metric[repeated], human[repeated]), abs=1e-12)


def test_a_small_example_by_hand() -> None:
    """Six pairs: 4 concordant, 1 discordant, 1 tied in the metric."""
    metric, human = np.asarray([1.0, 2.0, 2.0, 0.5]), np.asarray([1.0, 2.0, 3.0, 1.5])
    tau_b, tau_c = RankAgreement(metric, human).values()
    assert tau_b == pytest.approx(3 / math.sqrt(5 * 6))
    assert tau_c == pytest.approx(2 * 3 / (16 * 2 / 3))


def test_perfect_orders_give_one() -> None:
    values = np.arange(20.0)
    assert RankAgreement(values**3, values).values() == pytest.approx([1, 1])
    assert RankAgreement(-values, values).values() == pytest.approx([-1, -1])


def test_constant_sides_have_no_tau() -> None:
    assert np.isnan(RankAgreement(np.ones(5), np.arange(5.0)).values()).all()
    assert np.isnan(RankAgreement(np.arange(5.0), np.ones(5)).values()).all()
    # Also where only the drawn judgments are equal.
    assert np.isnan(RankAgreement(np.arange(3.0), np.asarray([1.0, 1, 2])).values(np.asarray([1.0, 1, 0]))).all()


def test_accuracy_counts_equal_values_as_half_and_kinds_apart() -> None:
    better, worse = np.asarray([2.0, 1.0, 1.0, 0.0]), np.asarray([1.0, 1.0, 0.0, 3.0])
    accuracy = PairAccuracy(better, worse, ["HC", "HC", "MM", "MM"])
    assert accuracy.NAMES == ("accuracy", "accuracy_HC", "accuracy_MM")
    assert accuracy.values().tolist() == [2.5 / 4, 1.5 / 2, 0.5]
    assert accuracy.values(np.asarray([0.0, 2, 1, 1])).tolist() == [0.5, 0.5, 0.5]
    assert math.isnan(accuracy.values(np.asarray([1.0, 1, 0, 0]))[2])
