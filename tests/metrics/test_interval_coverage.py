"""scripts/interval_coverage.py: BCa as its authors have it, and shares that can be told from theory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hfcap.metrics.suite import metric_for_statistics
from scripts.interval_coverage import bca_interval, bca_levels, coverage, main


def test_levels_of_a_published_example() -> None:
    """Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 14.3: the spatial data, 90 %."""
    assert bca_levels(0.146, 0.061, 0.9) == pytest.approx((0.110, 0.985), abs=6e-4)
    assert bca_levels(0.0, 0.0, 0.95) == pytest.approx((0.025, 0.975))


def test_an_interval_of_skewed_values_leans_to_their_long_side() -> None:
    values = np.random.default_rng(0).exponential(size=100)
    resampled = np.random.default_rng(1).choice(values, (4000, 100)).mean(1)
    left_out = (values.sum() - values) / 99
    lower, upper = bca_interval(float(values.mean()), resampled, left_out, 0.95)
    plain = np.quantile(resampled, (0.025, 0.975))
    assert lower > plain[0] and upper > plain[1]


def test_shares_of_normal_values_are_those_of_theory() -> None:
    """Percentile intervals of a mean are z intervals with the biased deviation: 93.3 % of samples of 25 values."""
    rows = np.random.default_rng(0).normal(0.5, 0.1, size=(20_000, 1))
    metric = metric_for_statistics("rouge_l")
    shares = coverage(metric, rows, n_images=25, n_samples=800, n_resamples=400)["rouge_l"]
    assert shares.keys() == {"percentile", "bca"}
    # Student's t of 24 degrees of freedom lies beyond 1.96 * sqrt(24 / 25) = 1.92 in 6.7 %; a share's error is 0.9 %.
    assert all(abs(share - 0.933) < 3 * 0.009 for share in shares.values()), shares


def test_the_command_of_the_documentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red rose", "two tulips on a table", "a dog", "a dog in the grass", "a cat on a red sofa"]
    captions = {str(number): words[number % 5] + (" today" if number % 3 else "") for number in range(40)}
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": k, "caption": v} for k, v in captions.items()]))
    (tmp_path / "r.json").write_text(json.dumps({k: [words[(int(k) * 7) % 5], v] for k, v in captions.items()}))
    main(
        [str(tmp_path / "p.json"), str(tmp_path / "r.json"), "--images", "20", "--samples", "10", "--resamples", "100"]
    )
    said = capsys.readouterr().out
    assert "10 samples of 20 of 40 images" in said
    assert {line.split()[0] for line in said.splitlines()[2:]} == {
        "bleu_1",
        "bleu_2",
        "bleu_3",
        "bleu_4",
        "cider",
        "rouge_l",
    }
