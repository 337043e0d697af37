from __future__ import annotations

import html
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hfcap.comparison import compare, leaderboard_json, leaderboard_markdown, leaderboard_table, write_leaderboard
from hfcap.errors import UserError
from hfcap.metrics.bleu import Bleu
from hfcap.scoring import read_scores, score_files, signature_line

Scored = Callable[..., Path]


def test_best_first_with_differences_to_the_best(scored: Scored) -> None:
    paths = [scored("bad.json", 0.6), scored("good.json", 0.0), scored("close.json", 0.02)]
    found = compare(paths, n_resamples=300)
    assert [system.name for system in found.systems] == ["good", "close", "bad"]
    assert found.best["cider"] == found.best["rouge_l"] == "good"
    for output, leader in found.best.items():
        values = {system.name: system.report.metrics[output] or 0.0 for system in found.systems}
        assert values[leader] == max(values.values())
        assert leader not in found.differences[output]
    difference = found.differences["cider"]["bad"]
    values = {system.name: system.report.metrics["cider"] or 0.0 for system in found.systems}
    assert difference.paired.difference == pytest.approx(values["bad"] - values["good"])
    assert difference.paired.interval[1] < 0 and difference.corrected_p_value < 0.1
    assert set(found.differences["cider"]) == {"bad", "close"}
    tests = [entry for row in found.differences.values() for entry in row.values()]
    assert all(entry.corrected_p_value >= entry.paired.p_value for entry in tests)
    assert found.warnings == ()


def test_files_are_written_and_agree(scored: Scored, tmp_path: Path) -> None:
    paths = [scored("a.json", 0.3), scored("b.json", 0.0)]
    found = compare(paths, n_resamples=300, seed=5)
    write_leaderboard(found, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert written == json.loads(json.dumps(leaderboard_json(found)))
    assert written["settings"] == {"n_resamples": 300, "seed": 5, "confidence_level": 0.95}
    assert written["systems"][0]["metrics"] == read_scores(paths[1]).metrics
    assert written["systems"][0]["intervals"]["cider"] == list(read_scores(paths[1]).intervals["cider"])
    markdown = (tmp_path / "out" / "leaderboard.md").read_text()
    assert markdown == leaderboard_markdown(found)
    assert f"`{signature_line(found.systems[0].report.signature)}`" in markdown


def test_run_directories_bring_costs_and_published_rows(run_directory: Scored) -> None:
    found = compare([run_directory("blip", 0.0), run_directory("vit", 0.3)], n_resamples=300)
    assert found.systems[0].costs["train_seconds"] == 7200.0
    assert "captions_per_second" not in found.systems[0].costs
    text = leaderboard_markdown(found)
    assert "| 247.0 | 2.50 | 2.00 | 3.00 | 41.5 |" in text
    assert "blip (published), not yet reproduced here: the paper, table 2" in text
    assert "133.3" in text


def test_tables_show_every_system_and_name(scored: Scored) -> None:
    found = compare([scored("one.json", 0.0), scored("[red]two.json", 0.4)], n_resamples=300)
    console = Console(width=300, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(leaderboard_table(found))
    for word in ("one", "[red]two", "cider", "Difference to the best", "p = "):
        assert word in captured.get()


def test_one_system_alone_is_shown_without_tests(scored: Scored) -> None:
    found = compare([scored("a.json", 0.2)], n_resamples=300)
    assert found.differences == {} and found.best["cider"] == "a"


def test_only_what_is_shown_is_explained(scored: Scored, run_directory: Scored) -> None:
    def said(*paths: Path) -> tuple[bool, bool]:
        text = leaderboard_markdown(compare(list(paths), n_resamples=300))
        return "permutation test" in text, "Published rows" in text

    assert said(scored("a.json", 0.0)) == (False, False)
    assert said(scored("a.json", 0.0), scored("b.json", 0.3)) == (True, False)
    assert said(run_directory("run", 0.0)) == (False, True)


def test_intervals_at_another_level_are_computed(scored: Scored) -> None:
    path = scored("a.json", 0.2)
    narrow = compare([path], n_resamples=400, confidence_level=0.5).intervals["a"]["bleu_4"]
    wide = read_scores(path).intervals["bleu_4"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_different_images_are_refused(scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.0, drop=3)]
    with pytest.raises(UserError, match="different images") as caught:
        compare(paths)
    n_images = [read_scores(path).n_images for path in paths]
    assert f"({n_images[0]} and {n_images[1]} images; 3 images only in {paths[0]}: '" in str(caught.value)
    value = json.loads(paths[1].read_text())
    value["signature"]["split"] = "validation"
    paths[1].write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"different images \(split \w+ and validation; "):
        compare(paths)


def test_different_references_are_refused(scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.0)]
    value = json.loads(paths[1].read_text())
    signature = dict(value["signature"])
    value["signature"] |= {"references_sha256": "0", "references_per_image": [1, 1]}
    paths[1].write_text(json.dumps(value))
    with pytest.raises(UserError, match="different human captions") as caught:
        compare(paths)
    assert f"{signature['references_per_image']} and [1, 1]; hash {signature['references_sha256']} and 0" in str(
        caught.value
    )


def test_an_edited_file_with_values_of_other_images_is_refused(scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    value = json.loads(paths[1].read_text())
    first = next(iter(value["per_image"]))
    value["per_image"] = {("other" if key == first else key): row for key, row in value["per_image"].items()}
    paths[1].write_text(json.dumps(value))
    with pytest.raises(UserError, match=f"hold values of different images .*1 image only in .*: '{first}'"):
        compare(paths)


@pytest.mark.parametrize("metric", ["bleu", "rouge_l", "cider"])
def test_statistics_that_are_not_the_metric_s_are_refused(metric: str, scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    value = json.loads(paths[1].read_text())
    rows = value["statistics"].get(metric) or [[row[metric]] for row in value["per_image"].values()]
    value["statistics"][metric] = [row[:-1] or [*row, 1.0] for row in rows]
    for changed in (paths[1:], paths):
        for path in changed:
            path.write_text(json.dumps(value))
        with pytest.raises(UserError, match=rf"\.json: statistics\.{metric} has \d+ numbers for an image.*score again"):
            compare(paths)


def test_statistics_of_two_versions_of_a_plugin_s_metric_are_refused(
    scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bleu, "n_statistics", None)  # as a metric from elsewhere that does not say it
    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    value = json.loads(paths[1].read_text())
    value["statistics"]["bleu"] = [[*row, 1.0] for row in value["statistics"]["bleu"]]
    paths[1].write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"b and a: 11 and 10 numbers for an image in statistics\.bleu; score both"):
        compare(paths)


def test_different_metric_conditions_are_warned_about_and_not_tested(scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    value = json.loads(paths[1].read_text())
    value["signature"]["metrics"]["cider"]["document_frequencies"] = "coco-val"
    paths[1].write_text(json.dumps(value))
    warnings: list[str] = []
    found = compare(paths, n_resamples=300, warn=warnings.append)
    kept = read_scores(paths[0]).signature["metrics"]["cider"]["document_frequencies"]
    said = f"values are NOT comparable: document_frequencies {kept} (a) and coco-val (b)"
    assert [message.endswith(said) for message in warnings] == [True]
    assert "cider" not in found.differences and "cider" not in found.best
    assert "bleu_4" in found.differences
    assert "NOT comparable" in leaderboard_markdown(found)


def test_files_without_images_are_shown_but_not_tested(scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    value = json.loads(paths[1].read_text())
    value |= {"per_image": {}, "statistics": {}}
    paths[1].write_text(json.dumps(value))
    warnings: list[str] = []
    found = compare(paths, n_resamples=300, warn=warnings.append)
    assert found.differences == {} and len(found.systems) == 2
    assert "b: no per-image values" in warnings[0]


def test_score_files_of_one_name_are_told_apart(scored: Scored) -> None:
    found = compare([scored("x/test.json", 0.0), scored("y/test.json", 0.3)], n_resamples=300)
    assert len({system.name for system in found.systems}) == 2


def test_wrong_paths_are_refused(scored: Scored, run_directory: Scored, tmp_path: Path) -> None:
    path = scored("a.json", 0.0)
    with pytest.raises(UserError, match="given twice"):
        compare([path, path])
    with pytest.raises(UserError, match="nothing to compare"):
        compare([])
    with pytest.raises(
        UserError, match=r"none\.json: no such file or folder; give a run directory, a score file or \(wi"
    ):
        compare([tmp_path / "none.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a run directory"):
        compare([tmp_path / "empty"])
    with pytest.raises(UserError, match="at least 100"):
        compare([path], n_resamples=10)
    with pytest.raises(UserError, match="no scores of split 'validation'; it has scores of test"):
        compare([run_directory("blip", 0.0)], split="validation")


def test_comparing_needs_no_resources_of_the_metrics(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR's tables, a CLIP model or Java may be missing where score files are compared."""

    def unavailable(self: object, **options: object) -> None:
        raise UserError("resources are missing")

    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    monkeypatch.setattr("hfcap.metrics.cider.Cider.__init__", unavailable)
    assert "cider" in compare(paths, n_resamples=300).differences


def test_metrics_of_other_installations_are_named(scored: Scored) -> None:
    paths = [scored("a.json", 0.0), scored("b.json", 0.3)]
    for path in paths:
        value = json.loads(path.read_text())
        value["signature"]["metrics"]["theirs"] = {}
        value["metrics"]["theirs"] = 0.5
        path.write_text(json.dumps(value))
    warnings: list[str] = []
    found = compare(paths, n_resamples=300, warn=warnings.append)
    assert "theirs: this hfcap has no such metric" in warnings[0]
    assert "theirs" in found.outputs


def test_prediction_files_are_scored_and_tested(scored: Scored, tmp_path: Path) -> None:
    """The same leaderboard as through score files."""
    files = [tmp_path / "good.json", tmp_path / "bad.jsonl"]
    score_paths = []
    for path, share in zip(files, (0.0, 0.3), strict=True):
        score_paths.append(scored(f"scores/{path.stem}.json", share))
        captions = json.loads((tmp_path / "sources" / "p.json").read_text())
        rows = [{"image_id": key, "caption": caption} for key, caption in captions.items()]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(captions))
    score = partial(score_files, references=tmp_path / "sources" / "r.json", split="test", n_resamples=0)
    found = compare(files, score=score, n_resamples=300)
    through_scores = compare(score_paths, n_resamples=300)
    assert [system.name for system in found.systems] == ["good", "bad"]
    assert found.differences == through_scores.differences
    assert found.differences["rouge_l"]["bad"].paired.p_value < 0.05
    assert set(found.intervals["bad"]) == set(found.outputs)
    mixed = compare([score_paths[0], files[1]], score=score, n_resamples=300)
    assert mixed.differences == found.differences
    with pytest.raises(UserError, match=r"good\.json: no score file; .*human captions"):
        compare(files, n_resamples=300)


def test_other_decoding_is_named(scored: Scored) -> None:
    runs: list[dict[str, Any]] = [
        {"decoding": {"num_beams": 1, "max_new_tokens": 9}},
        {"decoding": {"num_beams": 3, "max_new_tokens": 9}},
        {},
    ]
    paths = [scored(f"{number}.json", 0.1 * number, signature=run) for number, run in enumerate(runs)]
    warnings: list[str] = []
    compare(paths, n_resamples=300, warn=warnings.append)
    assert warnings == ["captioned with different settings of generate: num_beams 1 (0) and 3 (1)"]


def test_other_tokens_and_missing_captions_are_named_with_their_values(scored: Scored, tmp_path: Path) -> None:
    paths = [scored(f"{name}.json", 0.0) for name in "abcde"]
    for number, path in enumerate(paths[:4]):
        value = json.loads(path.read_text())
        value["signature"] |= {"tokenizer": "other"} if number < 3 else {"images_without_prediction": 2}
        path.write_text(json.dumps(value))
    warnings: list[str] = []
    found = compare(paths, n_resamples=300, warn=warnings.append)
    tokenizer = read_scores(paths[4]).signature["tokenizer"]
    assert f"NOT comparable: tokenizer other (a, b, c) and {tokenizer} (d, e)" in warnings[0]
    assert warnings[-1] == "images without a caption count as empty captions: 0 (a, b, c and 1 more) and 2 (d)"
    write_leaderboard(found, tmp_path / "out")
    shown = html.unescape((tmp_path / "out" / "leaderboard.html").read_text())
    assert all(message in shown for message in warnings)
    assert leaderboard_markdown(found).count("**Warning:**") == len(warnings)


def test_a_language_without_spaces_is_named(tmp_path: Path) -> None:
    captions = {"17": "一个男人在海浪上冲浪", "4": "一只狗在草地上奔跑"}
    human = {key: [text] for key, text in captions.items()}
    for name in "ab":
        path = tmp_path / f"{name}.json"
        score_files(captions, human, language="en", output=path, warn=lambda _: None, n_resamples=0)
    found = compare([tmp_path / "a.json", tmp_path / "b.json"], n_resamples=100, warn=lambda _: None)
    assert any("the human captions are Chinese without spaces between words" in said for said in found.warnings)
    for name in "ab":
        path = tmp_path / f"{name}.json"
        score_files(captions, human, language="zh", output=path, warn=lambda _: None, n_resamples=0)
    found = compare([tmp_path / "a.json", tmp_path / "b.json"], n_resamples=100, warn=lambda _: None)
    assert not any("Chinese" in said for said in found.warnings)


def test_a_part_of_the_images_is_not_tested(tmp_path: Path) -> None:
    """Recorded cards keep the rows of the images that they show, and the values of all."""
    human = {str(number): ["a red dog on grass", "a dog"] for number in range(4)}
    for name, caption in (("a", "a red dog"), ("b", "a cat")):
        path = tmp_path / f"{name}.json"
        score_files(dict.fromkeys(human, caption), human, output=path, warn=lambda _: None, n_resamples=0)
        value = json.loads(path.read_text(encoding="utf-8"))
        del value["statistics"]
        value["per_image"] = {"1": value["per_image"]["1"]}
        path.write_text(json.dumps(value), encoding="utf-8")
    found = compare([tmp_path / "a.json", tmp_path / "b.json"], n_resamples=100, warn=lambda _: None)
    assert sum("no per-image values" in said for said in found.warnings) == 2
    assert [system.report.n_images for system in found.systems] == [4, 4]
