from __future__ import annotations

import numpy as np
import pytest

from hfcap.metrics.bleu import Bleu
from hfcap.metrics.bootstrap import percentile_intervals, resample_weights, resampled_values, weighted_sums
from hfcap.metrics.rouge_l import RougeL
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.random_captions import random_captions


def test_every_resample_draws_n_images() -> None:
    blocks = list(resample_weights(70, 30, seed=1))
    weights = np.concatenate(blocks)
    assert weights.shape == (30, 70)
    assert (weights.sum(axis=1) == 70).all()
    assert len({row.tobytes() for row in weights}) == 30


def test_equal_seeds_draw_equal_images_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.concatenate(list(resample_weights(50, 20, seed=3)))
    other_seed = np.concatenate(list(resample_weights(50, 20, seed=4)))
    assert (first == np.concatenate(list(resample_weights(50, 20, seed=3)))).all()
    assert (first != other_seed).any()


def test_weighted_sums_equal_the_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.metrics.bootstrap._IMAGES_AT_ONCE", 7)
    generator = np.random.default_rng(0)
    weights, statistics = generator.random((4, 33)), generator.random((33, 5))
    np.testing.assert_allclose(weighted_sums(weights, np.ascontiguousarray(statistics.T)), weights @ statistics)


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


def test_undefined_values_get_no_interval() -> None:
    assert percentile_intervals({"x": np.array([1.0, np.nan]), "y": np.empty(0)}, 0.95) == {}


def test_no_resamples_no_values() -> None:
    assert resampled_values((Bleu(),), {"bleu": np.ones((3, 10))}, 0, seed=0) == {}
