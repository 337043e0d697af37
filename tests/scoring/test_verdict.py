"""What scores mean is said first and alike on screen, card and page; numbers are rounded once."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hfcap.card.front_matter import shown_value
from hfcap.card.markdown_pieces import shown_number
from hfcap.card.render import write_card
from hfcap.comparison import compare, leaderboard_markdown, write_leaderboard
from hfcap.comparison.rendering import PrintableComparison
from hfcap.comparison.verdict import verdict
from hfcap.data.source import load_split
from hfcap.files import read_json, write_json
from hfcap.recipe.loading import load_recipe, recipe_from_mapping
from hfcap.run import stages
from hfcap.run.stages import print_verdict
from hfcap.schema import ScoreReport
from hfcap.scoring import read_scores, score_files
from hfcap.scoring.of_run import RunScoring
from hfcap.scoring.score_table import score_table, shown_score
from hfcap.scoring.verdict import baseline_problem, few_images_problem, main_score
from tests.publishing.run_builder import build_run
from tests.training.harness import recipe_values


def report(**metrics: float) -> ScoreReport:
    return ScoreReport("test", 40, dict(metrics), {"cider": (0.1, 0.4)}, {}, {})


def test_a_number_is_rounded_once() -> None:
    """0.38749 was 38.75 to the card, and from there 38.8; 38.7 everywhere else."""
    assert shown_score("cider", 0.38749) == shown_number("cider", 0.38749) == "38.7"
    assert shown_value("cider", 0.38749) == 38.75


@given(st.floats(0, 3, allow_subnormal=False), st.sampled_from(["cider", "bad_endings", "length_mean"]))
def test_card_screen_and_page_show_the_same_digits(value: float, metric: str) -> None:
    exact = Decimal(100.0 * value if metric != "length_mean" else value)
    right = str(exact.quantize(Decimal("0.1"), ROUND_HALF_EVEN))
    assert shown_number(metric, value) == shown_score(metric, value) == right
    cells = list(score_table({"a": report(**{metric: value})}, "").columns[1].cells)
    assert str(cells[0]).split(" (")[0] == right


def test_a_baseline_that_is_as_good_is_said_on_screen_card_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build_run(tmp_path / "run")
    for name, cider in (("test", 0.2), ("test.most_frequent_caption", 0.2), ("test.blank_images", 0.1)):
        values = read_json(run.scores(name), "scores")
        values["metrics"]["cider"] = cider
        write_json(run.scores(name), values)
    ours, frequent, blank = (
        read_scores(run.scores(f"test{name}")) for name in ("", ".most_frequent_caption", ".blank_images")
    )
    baselines = {"most_frequent_caption": frequent.metrics, "blank_images": blank.metrics}
    problem = baseline_problem(ours.metrics, baselines)
    assert problem is not None and "(most frequent caption)" in problem
    print_verdict(ours, baselines)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("CIDEr-D 20.0") and said[1] == f"warning: this captioner scores {problem}"
    write_card(run)
    assert f"This model scores {problem}" in run.card.read_text()
    comparison = compare([run.path], n_resamples=100)
    assert f"run scores {problem}" in comparison.warnings
    write_leaderboard(comparison, tmp_path / "out")
    assert problem in (tmp_path / "out" / "leaderboard.html").read_text()


def test_no_baseline_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(report(cider=0.5), {"blank_images": {"cider": 0.4}})
    assert capsys.readouterr().out == "CIDEr-D 50.0 (95 % interval 10.0 to 40.0) on 40 images.\n"
    assert baseline_problem({"clip_score": 0.1}, {"blank_images": {"clip_score": 0.4}}) is None
    assert baseline_problem({"bleu_4": 0.1}, {"blank_images": {"bleu_4": 0.1}}) is not None
    assert main_score(report()) is None and "ROUGE-L 30.0" in (main_score(report(rouge_l=0.3)) or "")


def test_one_warning_is_said_once_for_a_run_and_its_baselines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stood there for the captions and again for each baseline."""
    run = build_run(tmp_path / "run")
    for name in ("most_frequent_caption", "blank_images"):
        run.predictions(f"test.{name}").write_bytes(run.predictions("test").read_bytes())
    RunScoring(load_recipe(run.recipe), run, lambda split: []).score(
        ["test", "test.most_frequent_caption", "test.blank_images"], {}
    )
    assert capsys.readouterr().err.count("images: the values are unstable") == 1


def test_the_verdict_comes_before_tables_and_warnings(tmp_path: Path) -> None:
    references = {str(number): [f"a dog runs {number}"] for number in range(5)}
    for name, word in (("a", "dog"), ("b", "cat")):
        captions = {key: f"a {word} runs {key}" for key in references}
        score_files(captions, references, output=tmp_path / f"{name}.json", warn=lambda _: None, n_resamples=100)
        value = json.loads((tmp_path / f"{name}.json").read_text())
        value["signature"]["hfcap"] = name
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    found = compare([tmp_path / "b.json", tmp_path / "a.json"], n_resamples=100, warn=lambda _: None)
    (first, *_) = verdict(found)
    assert first.startswith("By CIDEr-D, a is first: ") and found.warnings
    write_leaderboard(found, tmp_path / "out")
    page, markdown = (tmp_path / "out" / "leaderboard.html").read_text(), leaderboard_markdown(found)
    screen = str(PrintableComparison(**vars(found)))
    for text, table in ((page[page.index("<body>") :], "<table"), (markdown, "| system"), (screen, "Leaderboard")):
        marks = [text.index(mark) for mark in ("a is first", "scored by different versions", table)]
        assert marks == sorted(marks), text[:500]


def test_a_small_test_split_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """120 images gave 8 test images, and an interval of 14 to 69 without a word."""
    folder = tmp_path / "images"
    folder.mkdir()
    rows = [{"file_name": f"{number}.png", "caption": f"a dog number {number}"} for number in range(40)]
    for row in rows:
        Image.new("RGB", (8, 8), "red").save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = recipe_values("vit_gpt2", tmp_path / "runs", "full", max_steps=1)
    values["data"] = {"source": "folder", "root": str(folder), "test_share": 0.2}
    monkeypatch.setattr(stages, "train_stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stages.Run(recipe_from_mapping(values, "test")).execute("publish")
    said = " ".join(capsys.readouterr().err.split())
    n_test = len(load_split(recipe_from_mapping(values, "test").data, "test"))
    assert 0 < n_test < 20
    assert f"warning: only {n_test} images are scored (split test): the intervals of their scores will be wide" in said
    assert "raise data.test_share (now 0.2), or name the split of more images test in the metadata" in said
    assert few_images_problem(100, "test") is None
