from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hfcap.comparison.significance import (
    Pair,
    _swaps,
    paired_bootstrap,
    paired_differences,
    paired_permutation,
    shown_as_nothing,
)
from hfcap.metrics.bleu import Bleu
from hfcap.metrics.length import Length
from hfcap.metrics.rouge_l import RougeL
from hfcap.metrics.shared.bootstrap import holm
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.random_captions import random_captions


def _scores(seed: int, n_images: int = 200, mean: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 0.1, size=(n_images, 1))


@pytest.mark.parametrize("at_once", [55, 250_000])
def test_permutation_test_approaches_the_exact_one(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 10 images all 1,024 exchanges can be tried; how many fit into a block must not matter."""
    monkeypatch.setattr("hfcap.comparison.significance._SWAPS_AT_ONCE", at_once)
    first, second = _scores(0, 10), _scores(1, 10, 0.45)
    difference = (first - second)[:, 0]
    observed = abs(difference.mean())
    exact = np.mean([abs((difference * signs).mean()) >= observed - 1e-12 for signs in product((1, -1), repeat=10)])
    (found,) = paired_permutation([Pair(RougeL(), first, second)], n_resamples=20_000, seed=0)
    # Three standard errors of a share among 20,000.
    assert found[0] == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 20_000))


def test_counts_in_single_precision_change_no_bit() -> None:
    """Score files are read so; among them are counts that are too large for sums in single precision."""
    draw = np.random.default_rng(3)
    first, second = (draw.integers(0, (9, 9, 9, 9, 30, 30, 30, 30, 40_000, 30), size=(300, 10)) for _ in range(2))
    pairs = [Pair(Bleu(), first.astype(np.float64), second.astype(np.float64))]
    pairs += [Pair(Bleu(), first.astype(np.float32), second.astype(np.float32))]
    long, short = ([one] for one in pairs)
    assert paired_differences(short, n_resamples=200) == paired_differences(long, n_resamples=200)
    assert pairs[1].totals()[0].tolist() == first.sum(axis=0).tolist()


def test_all_exchanges_of_a_large_corpus_differ() -> None:
    """At 5,000 images a block holds 50 exchanges; 500 of them are 500 different ones all the same."""
    blocks = list(_swaps(5000, 500, seed=0))
    swaps = np.concatenate(blocks)
    assert len(blocks) == 10 and swaps.shape == (500, 5000)
    assert len({row.tobytes() for row in swaps}) == 500
    assert set(np.unique(swaps)) == {0.0, 1.0}
    # Fair and independent coins: means of 5,000 and of 500, five standard deviations away at most.
    assert np.abs(swaps.mean(axis=1) - 0.5).max() < 5 * 0.5 / np.sqrt(5000)
    assert np.abs(swaps.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(500)
    assert (np.concatenate(list(_swaps(5000, 500, seed=1))) != swaps).any(axis=1).all()


@pytest.mark.parametrize(
    ("at_once", "rows", "together"),
    [(250_000, [40], 1), (190, [10] * 4, 1), (3, [1] * 40, 4), (57, [3] * 13 + [1], 2), (76, [4] * 10, 1)],
)
def test_exchanges_are_the_bits_of_one_generator(
    at_once: int, rows: list[int], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """19 images take 19 bits of 3 bytes each, the highest first; blocks of 4 rows go on where the last one ended.

    Where few rows are drawn at once, as with very many images, some draws make a block of at least 4.
    """
    monkeypatch.setattr("hfcap.comparison.significance._SWAPS_AT_ONCE", at_once)
    blocks = list(_swaps(19, 40, seed=5))
    starts = range(0, len(rows), together)
    assert [len(block) for block in blocks] == [sum(rows[start : start + together]) for start in starts]
    generator = np.random.default_rng(5)
    expected = []
    for n_rows in rows:
        drawn = generator.bytes(3 * n_rows)
        for row in range(n_rows):
            bits = "".join(f"{byte:08b}" for byte in drawn[3 * row : 3 * row + 3])
            expected.append([float(bit) for bit in bits[:19]])
    assert np.concatenate(blocks).tolist() == expected


def test_the_last_block_is_cut_to_the_number_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.comparison.significance._SWAPS_AT_ONCE", 40)
    assert [len(block) for block in _swaps(10, 9, seed=0)] == [4, 4, 1]


def test_equal_systems_do_not_differ() -> None:
    scores = _scores(2)
    (found,) = paired_differences([Pair(RougeL(), scores, scores)], n_resamples=500)
    assert found["rouge_l"].difference == 0.0
    assert found["rouge_l"].p_value == 1.0
    assert found["rouge_l"].interval == (0.0, 0.0)


def test_smoothing_alone_is_no_difference() -> None:
    """Without a 4-gram match BLEU-4 is its smoothing, which depends on the lengths and on nothing that was said."""
    first = np.tile([2.0, 1.0, 0.0, 0.0, 6.0, 5.0, 4.0, 3.0, 6.0, 6.0], (300, 1))
    second = np.tile([2.0, 1.0, 0.0, 0.0, 9.0, 8.0, 7.0, 6.0, 9.0, 6.0], (300, 1))
    (found,) = paired_differences([Pair(Bleu(), first, second)], n_resamples=500)
    assert 0 < found["bleu_4"].difference < 5e-5 and found["bleu_4"].p_value == 1.0
    assert found["bleu_1"].difference > 5e-5 and found["bleu_1"].p_value < 0.01


def test_p_values_are_never_zero() -> None:
    scores = _scores(3)
    (found,) = paired_permutation([Pair(RougeL(), scores + 1.0, scores)], n_resamples=999)
    assert found[0] == pytest.approx(1 / 1000)


def test_p_values_are_uniform_when_nothing_differs() -> None:
    """Under the null hypothesis about one test in ten is below 0.1."""
    below = 0
    for seed in range(200):
        pair = Pair(RougeL(), _scores(1000 + seed, 40), _scores(5000 + seed, 40))
        below += paired_permutation([pair], n_resamples=300, seed=seed)[0][0] < 0.1
    assert 6 <= below <= 36


def test_direction_is_first_minus_second() -> None:
    (found,) = paired_differences([Pair(RougeL(), _scores(4, mean=0.7), _scores(5))], n_resamples=500)
    lower, upper = found["rouge_l"].interval
    assert 0.1 < lower < found["rouge_l"].difference < upper
    assert found["rouge_l"].p_value < 0.01


def test_corpus_metrics_are_exchanged_as_corpora() -> None:
    """One exchange of every image turns the systems round; the p-value counts by corpus BLEU, not by mean BLEU."""
    candidates, references = random_captions(12, 70)
    others = random_captions(12, 71)[0]
    suite = CaptionSuite(("bleu",))
    first = suite.compute(candidates, references).statistics["bleu"]
    second = suite.compute(others, references).statistics["bleu"]
    metric = Bleu()
    observed = np.abs(metric.aggregate(first) - metric.aggregate(second))
    count = np.zeros(4)
    for swaps in product((0.0, 1.0), repeat=12):
        swapped = np.asarray(swaps)[:, None]
        ours = first * (1 - swapped) + second * swapped
        theirs = second * (1 - swapped) + first * swapped
        count += np.abs(metric.aggregate(ours) - metric.aggregate(theirs)) >= observed - 1e-12
    (found,) = paired_permutation([Pair(metric, first, second)], n_resamples=20_000, seed=1)
    np.testing.assert_allclose(found, count / 2**12, atol=0.015)


def test_pairs_see_the_same_resamples() -> None:
    first, second = _scores(6), _scores(7)
    together = paired_bootstrap([Pair(RougeL(), first, second), Pair(RougeL(), second, first)], n_resamples=50)
    np.testing.assert_allclose(together[0], -together[1])
    alone = paired_bootstrap([Pair(RougeL(), first, second)], n_resamples=50)
    np.testing.assert_allclose(together[0], alone[0])


def test_pairs_see_the_same_exchanges() -> None:
    pairs = [Pair(RougeL(), _scores(8, 12), _scores(9, 12)), Pair(RougeL(), _scores(10, 12), _scores(11, 12, 0.45))]
    together = paired_permutation(pairs, n_resamples=200, seed=3)
    alone = [paired_permutation([pair], n_resamples=200, seed=3)[0] for pair in pairs]
    assert [values.tolist() for values in together] == [values.tolist() for values in alone]
    assert together[0].tolist() != together[1].tolist()
    assert paired_permutation(pairs[:1], n_resamples=200, seed=4)[0].tolist() != alone[0].tolist()


def test_interval_and_p_value_are_those_of_the_two_tests() -> None:
    pair = Pair(RougeL(), _scores(8, 12), _scores(9, 12))
    (found,) = paired_differences([pair], n_resamples=300, seed=7, confidence_level=0.5)
    (resampled,) = paired_bootstrap([pair], n_resamples=300, seed=7)
    (p_value,) = paired_permutation([pair], n_resamples=300, seed=7)
    assert resampled.shape == (300, 1)
    assert found["rouge_l"].interval == tuple(np.percentile(resampled[:, 0], [25, 75]))
    assert found["rouge_l"].p_value == p_value[0]
    assert found["rouge_l"].difference == pytest.approx(pair.first.mean() - pair.second.mean())


def test_ten_thousand_resamples_of_seed_0_at_95_percent_unless_asked_otherwise() -> None:
    pair = Pair(RougeL(), _scores(8, 6), _scores(9, 6))
    (resampled,) = paired_bootstrap([pair])
    assert resampled.tolist() == paired_bootstrap([pair], n_resamples=10_000, seed=0)[0].tolist()
    assert paired_permutation([pair])[0] == paired_permutation([pair], n_resamples=10_000, seed=0)[0]
    (found,) = paired_differences([pair])
    assert found["rouge_l"].interval == tuple(np.percentile(resampled[:, 0], [2.5, 97.5]))
    assert found["rouge_l"].p_value == paired_permutation([pair])[0][0]


@pytest.mark.parametrize(("words", "nothing"), [(0.0049, True), (0.0051, False)])
def test_lengths_are_shown_as_they_are(words: float, nothing: bool) -> None:
    """A difference of 0.0051 words is shown as 0.01; times 100, as other values are shown, it would be 0.51."""
    statistics = np.tile([10.0, 100.0, 5.0], (40, 1))
    longer = statistics + np.array([words, 20 * words, 0.0])
    (found,) = paired_differences([Pair(Length(), longer, statistics)], n_resamples=200)
    assert found["length_mean"].difference == pytest.approx(words)
    assert (found["length_mean"].p_value == 1.0) is nothing


def test_undefined_values_are_left_out() -> None:
    statistics = np.tile([10.0, 100.0, 0.0], (40, 1))  # references without any word: no ratio
    (found,) = paired_differences([Pair(Length(), statistics, statistics)], n_resamples=20)
    assert set(found) == {"length_mean", "length_deviation"}
    # One image of three has references with words: a resample in 3.4 (8 of 27) misses it, and has no ratio.
    statistics = np.array([[10.0, 100.0, 9.0], [9.0, 81.0, 0.0], [8.0, 64.0, 0.0]])
    (found,) = paired_differences([Pair(Length(), statistics, statistics + 1.0 * (statistics > 0))], n_resamples=100)
    assert set(found) == {"length_mean", "length_deviation"}


def test_an_exchange_that_changes_nothing_reaches_the_observed_value() -> None:
    """Of one image both assignments differ by the same, whatever the additions round to: p is 1."""
    values = np.random.default_rng(0).uniform(size=(200, 2))
    for first, second in values:
        (found,) = paired_permutation([Pair(RougeL(), np.array([[first]]), np.array([[second]]))], n_resamples=9)
        assert found[0] == 1.0


def test_half_of_the_last_digit_shown_is_a_difference() -> None:
    assert shown_as_nothing(4.9e-5, plain=False) and shown_as_nothing(-4.9e-5, plain=False)
    assert not shown_as_nothing(5e-5, plain=False) and not shown_as_nothing(-5e-5, plain=False)
    assert shown_as_nothing(4.9e-3, plain=True) and not shown_as_nothing(5e-3, plain=True)


def test_statistics_that_are_not_paired_are_a_bug() -> None:
    for first, second in ((np.ones((3, 1)), np.ones((2, 1))), (np.ones(3), np.ones(3))):
        with pytest.raises(AssertionError, match="not paired"):
            Pair(RougeL(), first, second)
    with pytest.raises(AssertionError, match="no images"):
        Pair(RougeL(), np.ones((0, 1)), np.ones((0, 1)))


def test_no_pairs_no_differences() -> None:
    assert paired_differences([]) == []


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 -> 0.02, 0.03, 0.06, then not below its predecessor.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
