"""A longer caption must not win by its length alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hfcap.comparison import compare, leaderboard_json, leaderboard_markdown, leaderboard_table, write_leaderboard
from hfcap.comparison.significance import at_equal_length
from hfcap.comparison.verdict import verdict
from hfcap.metrics.shared.bootstrap import resample_weights
from hfcap.schema import ScoreReport
from hfcap.scoring import write_scores

N_IMAGES = 200


def test_the_intercept_is_that_of_least_squares() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(-2, 12, 80).astype(float)
    differences = 0.03 * lengths - 0.1 + generator.normal(0, 0.05, 80)
    found = at_equal_length(differences, lengths, n_resamples=50, seed=4)
    assert found is not None
    value, (lower, upper) = found
    assert value == pytest.approx(np.polynomial.polynomial.polyfit(lengths, differences, 1)[0])
    weights = np.concatenate(list(resample_weights(80, 50, 4)))
    drawn = [np.polynomial.polynomial.polyfit(lengths, differences, 1, w=np.sqrt(row))[0] for row in weights]
    assert [lower, upper] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))


def test_without_different_lengths_there_is_no_line() -> None:
    assert at_equal_length(np.arange(5.0), np.full(5, 3.0), n_resamples=100) is None
    found = at_equal_length(np.array([1.0, 2.0]), np.array([0.0, 1.0]), n_resamples=100)
    assert found is not None and found[0] == pytest.approx(1.0)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        lengths = generator.integers(-4, 9, 120).astype(float)
        found = at_equal_length(0.02 * lengths + generator.normal(0, 0.1, 120), lengths, n_resamples=200, seed=seed)
        assert found is not None
        held += found[1][0] <= 0 <= found[1][1]
    assert 87 <= held <= 100


def scores(path: Path, values: np.ndarray, words: np.ndarray) -> Path:
    """Write a score file of one value per image and of lengths."""
    per_image: dict[str, dict[str, float | None]] = {
        str(number): {"rouge_l": float(value), "length_mean": float(length), "length_deviation": 0.0}
        for number, (value, length) in enumerate(zip(values, words, strict=True))
    }
    metrics: dict[str, float | None] = {
        "rouge_l": float(values.mean()),
        "length_mean": float(words.mean()),
        "length_deviation": 0.0,
    }
    signature = {"metrics": {"rouge_l": {"beta": 1.2}}, "image_ids_sha256": "a", "references_sha256": "b"}
    write_scores(ScoreReport("all", len(values), metrics, {}, signature, per_image), path)
    return path


def systems(folder: Path, gain: float, per_word: float) -> list[Path]:
    """A short system, and a long one that gains by each word and otherwise; noise is freed of what a line explains."""
    generator = np.random.default_rng(1)
    words = generator.integers(8, 12, N_IMAGES).astype(float)
    more = generator.integers(0, 9, N_IMAGES).astype(float)
    values = generator.normal(0.4, 0.05, N_IMAGES)
    noise = generator.normal(0, 0.02, N_IMAGES)
    line = np.stack((np.ones(N_IMAGES), more), axis=1)
    noise -= line @ np.linalg.lstsq(line, noise)[0]
    other = values + gain + per_word * more + noise
    return [scores(folder / "short.json", values, words), scores(folder / "long.json", other, words + more)]


def test_a_gain_that_is_all_length_is_none_at_equal_length(tmp_path: Path) -> None:
    found = compare(systems(tmp_path, 0.0, 0.01), n_resamples=500, warn=lambda _: None)
    assert found.systems[0].name == "long" and found.differences["rouge_l"]["short"].corrected_p_value < 0.05
    left = found.at_equal_length["rouge_l"]["short"]
    assert not left.is_sure and left.difference == pytest.approx(0, abs=1e-12)
    assert (left.words_of_best, left.words) == pytest.approx((13.4, 9.5), abs=0.5)
    assert "at equal length no significant difference is left." in verdict(found)[-1]


@pytest.mark.parametrize(("gain", "said"), [(0.05, "long is better by"), (-0.02, "short is better by")])
def test_what_is_left_is_said_and_shown(gain: float, said: str, tmp_path: Path) -> None:
    found = compare(systems(tmp_path, gain, 0.01), n_resamples=500, warn=lambda _: None)
    assert found.systems[0].name == "long"
    left = found.at_equal_length["rouge_l"]["short"]
    assert left.is_sure and left.difference == pytest.approx(-gain)
    assert verdict(found)[-1].startswith("Captions of long have 13.") and said in verdict(found)[-1]
    screen = Console(file=io.StringIO(), width=200)
    screen.print(leaderboard_table(found))
    assert isinstance(screen.file, io.StringIO)
    markdown = leaderboard_markdown(found)
    write_leaderboard(found, tmp_path / "out")
    page = (tmp_path / "out/leaderboard.html").read_text(encoding="utf-8")
    for text in (screen.file.getvalue(), markdown, page):
        assert "Difference to the best at equal length" in text
        assert f"{100 * left.difference:+.2f}" in text
    written = leaderboard_json(found)["at_equal_length"]["rouge_l"]["short"]
    assert written["difference"] == left.difference and written["interval"] == left.interval


def test_equal_lengths_are_not_spoken_of(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    words = generator.integers(8, 12, N_IMAGES).astype(float)
    paths = [
        scores(tmp_path / f"{name}.json", generator.normal(mean, 0.05, N_IMAGES), words + extra)
        for name, mean, extra in (("a", 0.4, 0), ("b", 0.5, 1))
    ]
    found = compare(paths, n_resamples=200, warn=lambda _: None)
    assert found.at_equal_length == {} and "equal length" not in leaderboard_markdown(found)


def test_lengths_are_taken_from_bleu_too(tmp_path: Path) -> None:
    import hfcap

    human = {str(number): ["a black dog runs over the green grass"] for number in range(12)}
    short = {key: "a dog" if int(key) % 2 else "a black dog" for key in human}
    long = {key: "a black dog runs over the grass" if int(key) % 3 else "a dog runs over grass" for key in human}
    report = hfcap.score(short, human, metrics=["bleu", "rouge_l"], n_resamples=0)
    found = hfcap.compare(
        {"short": report, "long": long}, references=human, metrics=["bleu", "rouge_l"], n_resamples=200
    )
    ((name, left),) = found.at_equal_length["rouge_l"].items()
    assert name == "short" and left.words == 2.5 and left.words_of_best == pytest.approx((8 * 7 + 4 * 5) / 12)
    assert set(found.at_equal_length) == {"rouge_l"}, "values of single images do not add up to BLEU"
