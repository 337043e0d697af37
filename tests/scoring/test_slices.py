"""Scores told apart by columns: their values, tests, files, and what is shown of them."""

from __future__ import annotations

import itertools
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import hfcap
from hfcap.card.render import render_card
from hfcap.cli import app
from hfcap.comparison import compare, leaderboard_json, leaderboard_markdown, leaderboard_table, write_leaderboard
from hfcap.comparison.slices import slice_examples
from hfcap.errors import UserError
from hfcap.files import read_json, write_json
from hfcap.metrics.shared.bootstrap import holm
from hfcap.scoring import read_scores, score_captions, score_files
from hfcap.scoring.columns import groups_by
from tests.metrics.random_captions import random_captions
from tests.publishing.run_builder import build_run

N_IMAGES = 90


def silent(_: str) -> None:
    pass


def domain_of(number: int) -> str:
    return ("in-domain", "near-domain", "out-domain")[number % 3]


def files(folder: Path, spoiled: str = "out-domain", name: str = "p") -> tuple[Path, Path]:
    """Predictions and COCO references with the images' domain; those of one domain are bad."""
    _, references = random_captions(N_IMAGES, 60)
    images = [
        {"id": int(key), "file_name": f"{key}.jpg", "domain": domain_of(number), "taken": 1900 + number}
        for number, key in enumerate(references)
    ]
    rows = [
        {"image_id": int(key), "id": n, "caption": line}
        for n, (key, line) in enumerate((key, line) for key, group in references.items() for line in group)
    ]
    human = folder / "references.json"
    human.write_text(json.dumps({"images": images, "annotations": rows}))
    predictions = folder / f"{name}.json"
    captions = {
        key: "grass on grass" if domain_of(number) == spoiled else group[0]
        for number, (key, group) in enumerate(references.items())
    }
    predictions.write_text(json.dumps(captions))
    return predictions, human


def test_values_are_those_of_the_images_alone(tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    report = score_files(predictions, human, by=["domain"], n_resamples=200, output=tmp_path / "s.json", warn=silent)
    assert list(report.slices["domain"]) == ["in-domain", "near-domain", "out-domain"]
    captions = json.loads(predictions.read_text())
    _, references = random_captions(N_IMAGES, 60)
    for value, scores in report.slices["domain"].items():
        ids = [key for number, key in enumerate(references) if domain_of(number) == value]
        alone = score_captions({key: captions[key] for key in ids}, {key: references[key] for key in ids})
        assert scores.n_images == 30
        for output in ("bleu_1", "bleu_4", "rouge_l"):
            assert scores.metrics[output] == pytest.approx(alone[output], abs=1e-12)
        # CIDEr-D keeps the document frequencies of all images.
        per_image = [report.per_image[key]["cider"] for key in ids]
        assert scores.metrics["cider"] == pytest.approx(float(np.mean(np.asarray(per_image, dtype=float))))
        lower, upper = scores.intervals["rouge_l"]
        assert lower <= float(scores.metrics["rouge_l"] or 0) <= upper
    p_values = {value: found.p_values["cider"] for value, found in report.slices["domain"].items()}
    assert p_values["out-domain"] < 0.2 and set(report.slices["domain"]["in-domain"].p_values) == set(report.metrics)
    assert read_scores(tmp_path / "s.json") == report


def test_all_other_numbers_are_the_same_with_and_without_slices(tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    with_slices = score_files(predictions, human, by=["domain"], n_resamples=100, warn=silent)
    plain = score_files(predictions, human, n_resamples=100, output=tmp_path / "b.json", warn=silent)
    assert (with_slices.metrics, with_slices.intervals) == (plain.metrics, plain.intervals)
    assert with_slices.per_image == plain.per_image and with_slices.signature == plain.signature
    assert "slices" not in read_json(tmp_path / "b.json", "scores") and read_scores(tmp_path / "b.json") == plain


def test_p_values_are_those_of_all_partitions() -> None:
    """Six images, a slice of two: fifteen partitions, gone through one by one."""
    captions = {"1": "a dog", "2": "a dog runs", "3": "dog", "4": "a cat", "5": "zebra", "6": "a dog on grass"}
    human = {key: ["a dog runs on grass"] for key in captions}
    groups = {"1": "x", "2": "y", "3": "y", "4": "x", "5": "x", "6": "x"}
    rows = [{"image_id": key, "caption": text, "kind": groups[key]} for key, text in captions.items()]
    report = hfcap.score({row["image_id"]: row["caption"] for row in rows}, human, metrics="rouge_l", n_resamples=0)
    values = np.asarray([report.per_image[key]["rouge_l"] for key in captions], dtype=float)

    def difference(chosen: tuple[int, ...]) -> float:
        rest = [place for place in range(6) if place not in chosen]
        return abs(float(values[list(chosen)].mean() - values[rest].mean()))

    observed = difference((1, 2))
    exact = np.mean([difference(chosen) >= observed - 1e-12 for chosen in itertools.combinations(range(6), 2)])
    found = _scored(rows, human, 20_000)
    # Both slices ask the same question of the same images.
    assert found["y"].p_values["rouge_l"] == pytest.approx(min(1.0, 2 * float(exact)), abs=0.02)
    assert found["x"].p_values["rouge_l"] == pytest.approx(min(1.0, 2 * float(exact)), abs=0.02)
    assert holm([float(exact)] * 2)[0] == min(1.0, 2 * float(exact))


def _scored(rows: list[dict[str, Any]], human: dict[str, list[str]], n_resamples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return score_files(path, human, metrics=["rouge_l"], by=["kind"], n_resamples=n_resamples, warn=silent).slices[
            "kind"
        ]


def test_columns_of_the_human_captions() -> None:
    human = {
        "1": ["two red dogs", "dogs next to a man", "two dogs and a man"],
        "2": ["a field", "grass in a field", "a wide and green field of grass under a sky"],
        "3": ["a cat", "a black cat", "a black cat on a table"],
    }
    found = groups_by(["counts", "colours", "relations", "people", "length"], {}, human, None, silent)
    yes, no = "mentioned", "not mentioned"
    assert found["counts"] == {"1": yes, "2": no, "3": no}
    assert found["colours"] == {"1": no, "2": no, "3": yes}
    assert found["relations"] == {"1": no, "2": no, "3": no}
    assert found["people"] == {"1": yes, "2": no, "3": no}
    lengths = set(found["length"].values())
    assert len(lengths) == 3 and all(value.endswith(" words") for value in lengths)
    with pytest.raises(UserError, match="'people' knows English words only"):
        groups_by(["people"], {}, human, lambda caption: caption, silent)


def test_columns_of_files(tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    report = score_files(predictions, human, by=["taken"], metrics=["rouge_l"], n_resamples=0, warn=silent)
    assert list(report.slices["taken"]) == ["above 1929, up to 1959", "above 1959", "up to 1929"]
    assert {found.n_images for found in report.slices["taken"].values()} == {30}
    assert all(not found.intervals and not found.p_values for found in report.slices["taken"].values())


def test_images_without_a_value_are_in_no_slice() -> None:
    warnings: list[str] = []
    human = {"1": ["a"], "2": ["b"], "3": ["c"]}
    rows: dict[str, dict[str, Any]] = {
        "1": {"domain": "x"},
        "2": {"domain": " "},
        "3": {"domain": None},
        "4": {"domain": "y"},
    }
    assert groups_by(["domain"], rows, human, None, warnings.append) == {"domain": {"1": "x"}}
    assert warnings == ["2 of 3 images have no 'domain' and are in none of its slices"]


def test_unknown_and_scattered_columns_are_refused(tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    with pytest.raises(UserError, match=r"column 'domein': .* have it; did you mean 'domain'"):
        score_files(predictions, human, by=["domein"], warn=silent)
    with pytest.raises(UserError, match=r"column 'file_name' has 90 different texts; give one with at most 20"):
        score_files(predictions, human, by=["file_name"], warn=silent)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("groups", {"domain": {"1": 7}}, "groups.domain must map image ids to text"),
        ("groups", 3, "'groups' must be an object"),
        ("slices", {"domain": 3}, "'slices.domain' must map values to scores"),
        ("slices", {"domain": {"x": {"n_images": "3"}}}, "n_images must be a whole number"),
        ("slices", {"domain": {"x": {"n_images": 3, "metrics": {"a": "b"}}}}, r"metrics\.a must be a number"),
        (
            "slices",
            {"domain": {"x": {"n_images": 3, "metrics": {}, "intervals": {"a": [1]}}}},
            r"intervals\.a must be \[lower, upper\]",
        ),
    ],
)
def test_damaged_slices_are_named(key: str, value: Any, message: str, tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    path = tmp_path / "s.json"
    score_files(predictions, human, by=["domain"], n_resamples=0, output=path, warn=silent)
    write_json(path, read_json(path, "scores") | {key: value})
    with pytest.raises(UserError, match=message):
        read_scores(path)


def test_systems_are_compared_on_each_slice(tmp_path: Path) -> None:
    paths = []
    for name, spoiled in (("good", ""), ("weak", "out-domain")):
        predictions, human = files(tmp_path, spoiled, name)
        paths.append(tmp_path / f"{name}_scores.json")
        score_files(predictions, human, by=["domain"], n_resamples=100, output=paths[-1], warn=silent)
    comparison = compare(paths, n_resamples=400, warn=silent)
    found = {one.value: one for one in comparison.slices}
    assert set(found) == {"in-domain", "near-domain", "out-domain"} and comparison.ranking == "cider"
    reports = {path.stem: read_scores(path) for path in paths}
    for value, one in found.items():
        assert one.n_images == 30 and one.column == "domain"
        for name, report in reports.items():
            assert one.values[name] == pytest.approx(report.slices["domain"][value].metrics["cider"])
    weak = "weak_scores"
    assert found["out-domain"].differences[weak].corrected_p_value < 0.05
    ((_, unspoiled),) = found["in-domain"].differences.items()
    assert unspoiled.corrected_p_value == 1
    write_leaderboard(comparison, tmp_path / "out")
    page = (tmp_path / "out/leaderboard.html").read_text(encoding="utf-8")
    assert "Slices" in page and "domain: out-domain" in page
    (part,) = slice_examples(comparison, 4)
    assert (part.slice.value, part.pair.other.name) == ("out-domain", weak)
    losses = sorted(
        (
            (reports["good_scores"].per_image[key]["cider"] or 0.0) - (row["cider"] or 0.0)
            for key, row in reports[weak].per_image.items()
            if reports[weak].groups["domain"][key] == "out-domain"
        ),
        reverse=True,
    )
    assert [part.pair.advantages[position] for position in part.positions] == pytest.approx(losses[:4])
    assert page.count('<details class="slice">') == 1 and "domain: out-domain: where" in page
    assert "## Slices" in leaderboard_markdown(comparison)
    assert [one["value"] for one in leaderboard_json(comparison)["slices"]] == sorted(found)
    console = Console(width=200, record=True)
    console.print(leaderboard_table(comparison))
    text = console.export_text()
    row = next(line for line in text.splitlines() if "domain: out-domain" in line)
    assert row.count("*") == 1


def test_hostile_columns_stay_text(tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    content = json.loads(human.read_text())
    for number, image in enumerate(content["images"]):
        image["domain"] = "<script>alert(1)</script>|" if number % 2 else "[x](http://example.org)"
    human.write_text(json.dumps(content))
    path = tmp_path / "s.json"
    score_files(predictions, human, by=["domain"], n_resamples=100, output=path, warn=silent)
    comparison = compare([path], n_resamples=100, warn=silent)
    write_leaderboard(comparison, tmp_path / "out")
    assert "<script>alert" not in (tmp_path / "out/leaderboard.html").read_text(encoding="utf-8")
    assert "<script>" not in (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")


def test_the_card_shows_them(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    without = render_card(run)
    scores = read_json(run.scores("test"), "scores")
    part = {"n_images": 2, "metrics": scores["metrics"], "intervals": {}, "p_values": {"cider": 0.01}}
    scores |= {"groups": {"domain": {}}, "slices": {"domain": {"out|domain": part}}}
    write_json(run.scores("test"), scores)
    card = render_card(run)
    row = next(line for line in card.splitlines() if line.startswith("| out"))
    assert "out\\|domain" in row or "out&#124;domain" in row
    assert row.count("*") == 1 and "| domain | Images |" in card and "* = differs" in card.replace("\\*", "*")
    assert "| domain | Images |" not in without


def test_the_command_prints_a_table_of_each_column(tmp_path: Path) -> None:
    predictions, human = files(tmp_path)
    arguments = ["score", str(predictions), str(human), "--metrics", "rouge_l", "--n-resamples", "100"]
    found = CliRunner().invoke(app, [*arguments, "--by", "domain", "--by", "counts"], catch_exceptions=False)
    assert found.exit_code == 0
    assert all(text in found.output for text in ("near-domain", "counts", "differs from all other images"))
    plain = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "differs from all other images" not in plain.output


def test_a_run_is_told_apart_by_its_recipe(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["score", str(tmp_path / "run"), "--by", "domain"])
    assert isinstance(found.exception, UserError)
    assert "--by: a run is scored as its recipe says" in str(found.exception) and "score.by" in str(found.exception)


def test_the_commands_of_the_page_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/scoring.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("hfcap score") and "--by" in line]
    assert len(lines) == 2
    predictions, human = files(tmp_path)
    predictions.rename(tmp_path / "predictions.json")
    human.rename(tmp_path / "nocaps_val_4500_captions.json")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        found = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert found.exit_code == 0, (line, found.output)
    assert set(read_scores(tmp_path / "scores.json").slices) == {"domain"}
