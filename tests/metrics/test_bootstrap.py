from __future__ import annotations

import numpy as np
import pytest

from hfcap.metrics.bleu import Bleu
from hfcap.metrics.rouge_l import RougeL
from hfcap.metrics.shared.bootstrap import (
    Columns,
    percentile_intervals,
    resample_weights,
    resampled_sums,
    resampled_values,
)
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.random_captions import random_captions


def test_every_resample_draws_n_images() -> None:
    blocks = list(resample_weights(70, 30, seed=1))
    weights = np.concatenate(blocks)
    assert weights.shape == (30, 70)
    assert (weights.sum(axis=1) == 70).all()
    assert len({row.tobytes() for row in weights}) == 30


@pytest.mark.parametrize("at_once", [1, 350, 351, 10**6])
def test_blocks_neither_repeat_nor_change_what_is_drawn(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws are those of one generator, however many resamples fit into a block."""
    monkeypatch.setattr("hfcap.metrics.shared.bootstrap._WEIGHTS_AT_ONCE", at_once)
    drawn = np.random.default_rng(3).integers(0, 50, size=(20, 50), dtype=np.int32)
    expected = [[np.count_nonzero(row == image) for image in range(50)] for row in drawn]
    blocks = list(resample_weights(50, 20, seed=3))
    assert np.concatenate(blocks).tolist() == expected
    assert all(len(block) == max(4, at_once // 50) for block in blocks[:-1])
    assert {block.dtype for block in blocks} == {np.dtype(np.float64)}


def test_all_resamples_of_a_large_corpus_differ() -> None:
    """At 5,000 images a block holds 50 resamples; 1,000 of them are 1,000 different ones all the same."""
    seen = {hash(row.tobytes()) for block in resample_weights(5000, 1000, seed=0) for row in block}
    assert len(seen) == 1000


def test_another_seed_draws_other_images() -> None:
    first, other = (np.concatenate(list(resample_weights(50, 20, seed=seed))) for seed in (3, 4))
    assert (first != other).any(axis=1).all()


def test_weighted_sums_equal_the_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.metrics.shared.bootstrap._IMAGES_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    weights, statistics = generator.random((4, 33)), generator.random((33, 5))
    np.testing.assert_allclose(Columns([statistics]).weighted_sums(weights), weights @ statistics)


def test_counts_are_summed_to_the_last_digit_of_double_precision() -> None:
    """Whole numbers take single precision, all others and large ones double: the sums are those of float64."""
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 60, size=(30_000, 3)).astype(np.float64)
    others = np.concatenate([generator.random((30_000, 1)), counts[:, :1] * 1e6 + 1, counts[:, :1] / 2], axis=1)
    columns = Columns([counts, others])
    weights = next(resample_weights(30_000, 8, seed=2))
    sums = columns.weighted_sums(weights)
    joined = np.concatenate([counts, others], axis=1)
    expected = np.zeros((8, 6))
    for start in range(0, 30_000, 8192):
        part = slice(start, start + 8192)
        expected += np.vecdot(weights[:, None, part], np.ascontiguousarray(joined.T)[None, :, part])
    np.testing.assert_array_equal(sums, expected)
    assert columns.width == 6 and columns.n_images == 30_000


def test_resampled_corpus_bleu_equals_bleu_of_the_repeated_captions() -> None:
    """A resample's value is that of a corpus in which each image stands as often as it was drawn."""
    candidates, references = random_captions(40, 30)
    result = CaptionSuite(("bleu", "rouge_l")).compute(candidates, references)
    values = resampled_values(result.metrics, result.statistics, 3, seed=5)
    for number, weights in enumerate(np.concatenate(list(resample_weights(40, 3, seed=5)))):
        drawn = [(key, copy) for key, weight in zip(candidates, weights, strict=True) for copy in range(int(weight))]
        again = CaptionSuite(("bleu", "rouge_l")).compute(
            {f"{key}/{copy}": candidates[key] for key, copy in drawn},
            {f"{key}/{copy}": references[key] for key, copy in drawn},
        )
        for output, column in values.items():
            assert column[number] == pytest.approx(again.values[output], abs=1e-12), output


def test_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    generator = np.random.default_rng(7)
    scores = generator.normal(0.5, 0.1, size=(400, 1))
    values = resampled_values((RougeL(),), {"rouge_l": scores}, 4000, seed=0)
    lower, upper = percentile_intervals(values, 0.95)["rouge_l"]
    half = 1.96 * scores.std() / np.sqrt(400)
    assert lower == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert upper == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_intervals_cut_the_same_share_off_both_ends() -> None:
    column = np.arange(101.0)[::-1]
    intervals = percentile_intervals({"x": column, "y": column / 10}, 0.9)
    assert intervals["x"] == pytest.approx((5.0, 95.0))
    assert intervals["y"] == pytest.approx((0.5, 9.5))
    (lower, upper) = percentile_intervals({"x": column}, 0.95)["x"]
    assert (lower, upper) == pytest.approx((2.5, 97.5)) and type(lower) is type(upper) is float


def test_intervals_hold_the_value_as_often_as_they_say() -> None:
    """Of skewed values, as those of CIDEr-D are: 100 images a sample, 300 samples."""
    generator = np.random.default_rng(0)
    held = []
    for number in range(300):
        values = generator.gamma(2.0, 0.5, size=(100, 1))  # mean 1
        resampled = {"rouge_l": resampled_sums(Columns([values]), 400, number)[:, 0] / 100}
        [(lower, upper)] = percentile_intervals(resampled, 0.95).values()
        held.append(lower <= 1.0 <= upper)
    # 300 trials of 93 % have a standard error of 1.5 %: three of them to either side.
    assert 0.885 <= np.mean(held) <= 0.975


def test_all_metrics_see_the_same_draws() -> None:
    """Values of two metrics that always agree agree in every resample; what is not summable takes no part."""
    candidates, references = random_captions(30, 3)
    result = CaptionSuite(("bleu", "diversity", "rouge_l", "length")).compute(candidates, references)
    together = resampled_values(result.metrics, result.statistics, 40, seed=2)
    summable = [metric for metric in result.metrics if metric.name != "diversity"]
    assert list(together) == [output for metric in summable for output in metric.outputs]
    for metric in summable:
        alone = resampled_values((metric,), {metric.name: result.statistics[metric.name]}, 40, seed=2)
        for output, values in alone.items():
            assert values.shape == (40,)
            np.testing.assert_allclose(together[output], values, rtol=1e-12)
    (diversity,) = (metric for metric in result.metrics if metric.name == "diversity")
    assert resampled_values((diversity,), result.statistics, 40, seed=2) == {}


def test_sums_of_resamples_are_those_of_the_images_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.metrics.shared.bootstrap._WEIGHTS_AT_ONCE", 40)
    statistics = np.random.default_rng(1).random((9, 3))
    drawn = np.random.default_rng(6).integers(0, 9, size=(10, 9), dtype=np.int32)
    expected = np.array([[sum(statistics[image, column] for image in row) for column in range(3)] for row in drawn])
    columns = Columns([statistics])
    np.testing.assert_allclose(resampled_sums(columns, 10, seed=6), expected, rtol=1e-12)
    assert resampled_sums(columns, 0, seed=6).shape == (0, 3)


def test_undefined_values_get_no_interval() -> None:
    assert percentile_intervals({"x": np.array([1.0, np.nan]), "y": np.empty(0)}, 0.95) == {}


def test_no_resamples_no_values() -> None:
    assert resampled_values((Bleu(),), {"bleu": np.ones((3, 10))}, 0, seed=0) == {}
