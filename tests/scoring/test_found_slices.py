"""Slices that were found, on their way from the recipe to score files, cards, comparisons and what verifies them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from hfcap.card.render import render_card
from hfcap.cli import app
from hfcap.comparison import (
    Comparison,
    compare,
    leaderboard_json,
    leaderboard_markdown,
    leaderboard_table,
    write_leaderboard,
)
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.files import read_json, write_json, write_json_lines, write_text
from hfcap.publishing.verify_scores import check_numbers
from hfcap.recipe.loading import dump_recipe, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import ErrorSlice, ScoreReport
from hfcap.scoring import read_scores, score_files
from hfcap.scoring.error_slices import means_with_intervals
from hfcap.scoring.of_run import RunScoring
from tests.publishing.run_builder import build_run
from tests.scoring.test_error_slices import captions, silent
from tests.training.harness import recipe_values

HOSTILE = "<script>alert(1)</script> | [x](http://example.org) \x1b[31m"
SPOILED = {"good": "", "weak": "zebra", "other": "green"}
"""System -> word of the human captions whose images it captions badly."""


def score_file(folder: Path, name: str, **options: Any) -> Path:
    predicted, human = captions(SPOILED[name])
    options = {"metrics": ["rouge_l"], "n_resamples": 200, "find_slices": True, **options}
    score_files(predicted, human, output=folder / f"{name}.json", warn=silent, **options)
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scores")
    return [score_file(folder, name) for name in SPOILED]


@pytest.fixture(scope="module")
def comparison(files: list[Path]) -> Comparison:
    return compare(files, n_resamples=400, warn=silent)


def means_of(report: ScoreReport, inside: set[str]) -> list[float]:
    """Mean ROUGE-L of these images, and of all others."""
    values = {image_id: row["rouge_l"] or 0.0 for image_id, row in report.per_image.items()}
    sides = ([key for key in values if (key in inside) == side] for side in (True, False))
    return [sum(values[key] for key in side) / len(side) for side in sides]


def ids_with(word: str) -> list[str]:
    return [image_id for image_id, human in captions("")[1].items() if word in human[1].split()]


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """Images drawn with replacement, written out; 2,000 resamples of either leave a few hundredths."""
    generator = np.random.default_rng(5)
    values = generator.gamma(2.0, 1.0, size=60)
    members = np.arange(12)
    ((of_group, of_others),) = means_with_intervals(values, [members], 2000, 0, 0.9)
    draw = random.Random(1)
    means: tuple[list[float], list[float]] = ([], [])
    for _ in range(2000):
        drawn = [draw.randrange(60) for _ in range(60)]
        for side, numbers in enumerate(([n for n in drawn if n < 12], [n for n in drawn if n >= 12])):
            if numbers:
                means[side].append(sum(float(values[n]) for n in numbers) / len(numbers))
    for found, drawn_means in zip((of_group, of_others), means, strict=True):
        assert found == pytest.approx(np.percentile(drawn_means, [5, 95]), abs=0.09)
    assert of_group is not None and of_others is not None
    assert of_group[1] - of_group[0] > of_others[1] - of_others[0], "twelve images say less than forty-eight"


def test_a_value_that_tells_images_apart_is_looked_at() -> None:
    """Words of every image weigh nothing in CIDEr-D, so that it is 0 for all; ROUGE-L sees who has them."""
    animals = ["zebra" if number % 4 == 0 else f"animal{number}" for number in range(80)]
    human = {str(number): [f"the {animal} of snow"] for number, animal in enumerate(animals)}
    said = {str(number): "nothing" if animal == "zebra" else "the of" for number, animal in enumerate(animals)}
    report = score_files(said, human, metrics=["cider", "rouge_l"], n_resamples=50, find_slices=True, warn=silent)
    assert report.metrics["cider"] == 0
    assert [(one.name, one.output, one.value) for one in report.error_slices or []] == [("zebra", "rouge_l", 0.0)]


def test_score_files_hold_the_images_and_both_intervals(files: list[Path]) -> None:
    (one,) = read_scores(files[1]).error_slices or []
    assert one.image_ids == tuple(ids_with("zebra")) and len(one.image_ids) == one.n_images
    for value, interval in ((one.value, one.interval), (one.value_of_others, one.interval_of_others)):
        assert interval is not None and interval[0] < value < interval[1]
    assert read_scores(files[0]).error_slices == []
    write_json(files[0].parent / "x.json", {k: v for k, v in read_json(files[0], "s").items() if k != "error_slices"})
    assert read_scores(files[0].parent / "x.json").error_slices is None, "nobody looked"


# ---- compare --------------------------------------------------------------------------------------------------------


def test_systems_are_compared_on_what_was_found(files: list[Path], comparison: Comparison) -> None:
    reports = {path.stem: read_scores(path) for path in files}
    found = {one.comparison.value: one for one in comparison.found_slices}
    assert {word: list(one.found) for word, one in found.items()} == {"zebra": ["weak"], "green": ["other"]}
    p_values = []
    for word, one in found.items():
        inside = set(ids_with(word))
        means = {name: means_of(report, inside) for name, report in reports.items()}
        assert one.comparison.n_images == len(inside)
        assert one.comparison.values == pytest.approx({name: there for name, (there, _) in means.items()})
        assert one.elsewhere == pytest.approx({name: elsewhere for name, (_, elsewhere) in means.items()})
        best = max(means, key=lambda name: means[name][0])
        assert one.comparison.best == best and best != next(iter(one.found))
        for name, difference in one.comparison.differences.items():
            assert difference.paired.difference == pytest.approx(means[name][0] - means[best][0])
            assert difference.paired.interval[0] <= difference.paired.difference <= difference.paired.interval[1]
            p_values.append((difference.paired.p_value, difference.corrected_p_value))
        assert one.comparison.differences[next(iter(one.found))].corrected_p_value < 0.05
    # Holm (1979), over two slices with two tests each.
    largest = 0.0
    for rank, (p_value, corrected) in enumerate(sorted(p_values)):
        largest = max(largest, min(1.0, (4 - rank) * p_value))
        assert corrected == pytest.approx(largest)


def test_the_page_the_table_and_the_json_show_them(comparison: Comparison, tmp_path: Path) -> None:
    write_leaderboard(comparison, tmp_path)
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "<h2>Found slices</h2>" in page and page.count('<details class="found">') == 2
    worst = comparison.found_slices[0].image_ids_of_examples(6)
    assert len(worst) == 3 and all(f"image {image_id}" in page for image_id in worst)
    console = Console(width=200, record=True)
    console.print(leaderboard_table(comparison))
    lines = console.export_text().split("Found slices")[1].splitlines()
    assert sum("word zebra" in line for line in lines) == 1, "named once, above three systems"
    weak = next(line for line in lines if " weak " in line and "no" not in line.split("|")[-1].split())
    assert "*" in weak and "p = 0.005" in weak, "1 of 201"
    assert "## Found slices" in leaderboard_markdown(comparison)
    kept = {one["value"]: one for one in leaderboard_json(comparison)["found_slices"]}
    assert kept["zebra"]["found_for"] == {"weak": pytest.approx(1 / 201)}
    assert set(kept["green"]["values_elsewhere"]) == set(SPOILED)


def test_without_them_nothing_changes(files: list[Path], tmp_path: Path) -> None:
    plain = [score_file(tmp_path, name, find_slices=False) for name in ("good", "weak")]
    without = compare(plain, n_resamples=100, warn=silent)
    with_them = compare(files[:2], n_resamples=100, warn=silent)
    assert without.found_slices == () and len(with_them.found_slices) == 1
    assert without.differences == with_them.differences and without.intervals == with_them.intervals
    for text in (leaderboard_markdown(without), str(leaderboard_json(without))):
        assert "Found slices" not in text and "found_slices" not in text
    write_leaderboard(without, tmp_path / "out")
    assert "Found slices" not in (tmp_path / "out/leaderboard.html").read_text(encoding="utf-8")


def test_a_file_that_was_not_searched_says_so(files: list[Path], tmp_path: Path) -> None:
    plain = score_file(tmp_path, "good", find_slices=False)
    markdown = leaderboard_markdown(compare([plain, files[1]], n_resamples=100, warn=silent))
    assert markdown.count("| not searched |") == 1 and "word zebra" in markdown


def with_slice(path: Path, **changes: Any) -> ErrorSlice:
    """Put hostile text into the found slice of a score file."""
    scores = read_json(path, "scores")
    scores["error_slices"][0] |= changes
    write_json(path, scores)
    return (read_scores(path).error_slices or [])[0]


def test_hostile_slices_stay_text(tmp_path: Path) -> None:
    path = score_file(tmp_path, "weak")
    first = ids_with("zebra")[0]
    with_slice(path, name=HOSTILE, kind=HOSTILE, output=HOSTILE, examples=[[first, HOSTILE]])
    comparison = compare([path], n_resamples=100, warn=silent)
    write_leaderboard(comparison, tmp_path / "out")
    page = (tmp_path / "out/leaderboard.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "<script>" not in (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")
    console = Console(width=200, record=True)
    console.print(leaderboard_table(comparison))
    assert "\x1b" not in console.export_text()


@pytest.mark.parametrize("members", [[], ["no such image"], ["0"] * 3])
def test_images_that_a_file_does_not_know_are_no_slice(members: list[str], tmp_path: Path) -> None:
    path = score_file(tmp_path, "weak")
    with_slice(path, image_ids=members)
    found = compare([path], n_resamples=100, warn=silent).found_slices
    assert [one.comparison.n_images for one in found] == ([1] if "0" in members else [])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"interval": [1]}, "error_slices is damaged"),
        ({"image_ids": [3]}, "error_slices is damaged"),
        ({"interval": "ab"}, "error_slices is damaged"),
        ({"interval": ["1", 2]}, r"error_slices\.interval\.lower must be a number or null, not '1'"),
        ({"value": "0.5"}, r"error_slices\.value must be a number or null, not '0.5'"),
        ({"n_images": "3"}, r"error_slices\.n_images must be a whole number, not '3'"),
    ],
)
def test_damaged_slices_are_named(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = score_file(tmp_path, "weak")
    with pytest.raises(UserError, match=rf"weak\.json: {message}"):
        with_slice(path, **damage)


def test_files_of_other_versions_are_read(tmp_path: Path) -> None:
    path = score_file(tmp_path, "weak")
    assert with_slice(path, interval=None, image_ids=[], later="x").interval is None


# ---- runs and cards -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose captions are right but where people speak of red; scored as its recipe says."""
    values = recipe_values("vit_gpt2", tmp_path_factory.mktemp("run"), data={"n_test": 150})
    values["score"] = {"find_slices": True, "n_resamples": 200, "metrics": ["rouge_l", "cider"]}
    values["score"]["baselines"] = ["most_frequent_caption"]
    recipe = recipe_from_mapping(values, "test")
    directory = RunDirectory(Path(recipe.output_dir) / recipe.name)
    write_text(directory.recipe, dump_recipe(recipe))
    records = load_split(recipe.data, "test")
    rows = [
        {"image_id": one.image_id, "file_name": one.file_name, "caption": one.captions[0]}
        | ({"caption": "no idea <b>"} if is_red(one.captions) else {})
        for one in records
    ]
    write_json_lines(directory.predictions("test"), rows)
    write_json_lines(directory.predictions("test.most_frequent_caption"), rows)
    write_json(directory.references("test"), {one.image_id: one.captions for one in records})
    scoring = RunScoring(recipe, directory, lambda split: load_split(recipe.data, split))
    scoring.check()
    scoring.score(["test", "test.most_frequent_caption"], {})
    return directory


def is_red(human: tuple[str, ...]) -> bool:
    return 2 * sum("red" in caption.split() for caption in human) >= len(human)


def red_slice(report: ScoreReport) -> ErrorSlice:
    return next(one for one in report.error_slices or () if one.name == "red")


def test_the_recipe_asks_for_them(run: RunDirectory) -> None:
    report = read_scores(run.scores("test"))
    human = read_json(run.references("test"), "references")
    one = red_slice(report)
    assert (one.kind, one.output) == ("colour", "cider")
    assert set(one.image_ids) == {image_id for image_id, group in human.items() if is_red(tuple(group))}
    assert read_scores(run.scores("test.most_frequent_caption")).error_slices is None


def test_the_card_shows_them(run: RunDirectory) -> None:
    card = render_card(run)
    section = card.split("### Where captions are worse")[1].split("\n#")[0]
    one = red_slice(read_scores(run.scores("test")))
    row = next(line for line in section.splitlines() if line.startswith("| colour red |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == str(one.n_images) and cells[4] == f"{one.p_value:.3f}" and one.interval is not None
    assert cells[2] == f"{100 * one.value:.1f} ({100 * one.interval[0]:.1f}-{100 * one.interval[1]:.1f})"
    assert cells[3].startswith(f"{100 * one.value_of_others:.1f} (")
    assert cells[5] == "no idea &lt;b&gt;<br>no idea &lt;b&gt;"
    written = cells[6].split("<br>")
    human = read_json(run.references("test"), "references")
    for (image_id, _), caption in zip(one.examples, written, strict=False):
        assert caption in human[image_id] and "red" in caption
    assert len(written) == 2 and "maxT" in section


def test_verification_knows_them(run: RunDirectory, tmp_path: Path) -> None:
    names = ("scores on the card", "scores")

    def outcomes() -> dict[str, str]:
        return {name: outcome for name, outcome, _ in check_numbers(tmp_path, {}) if name in names}

    write_json(tmp_path / "scores/test.json", read_json(run.scores("test"), "scores"))
    card = render_card(run)
    write_text(tmp_path / "README.md", card)
    assert outcomes() == dict.fromkeys(names, "passed")
    one = red_slice(read_scores(run.scores("test")))
    shown = f"| colour red | {one.n_images} | {100 * one.value:.1f} ("
    assert card.count(shown) == 1
    write_text(tmp_path / "README.md", card.replace(shown, f"| colour red | {one.n_images} | 99.9 ("))
    assert outcomes() == {"scores on the card": "failed", "scores": "passed"}
    scores = read_json(run.scores("test"), "scores")
    place = next(n for n, found in enumerate(scores["error_slices"]) if found["name"] == "red")
    for raised in (
        *({"value": 0.9}, {"value_of_others": 0.9}, {"interval": [0.8, 0.95]}, {"interval_of_others": None}),
        *({"image_ids": list(one.image_ids[:-1])}, {"image_ids": ["nobody", *one.image_ids[1:]]}),
    ):
        changed = [*scores["error_slices"]]
        changed[place] = changed[place] | raised
        write_json(tmp_path / "scores/test.json", scores | {"error_slices": changed})
        assert outcomes()["scores"] == "failed", raised


def test_a_card_says_that_none_was_found_only_where_somebody_looked(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    scores = read_json(run.scores("test"), "scores")
    assert "Where captions are worse" not in render_card(run)
    write_json(run.scores("test"), scores | {"error_slices": []})
    assert "at least 10 images and at most half of all 6" in render_card(run)
    write_json(run.scores("test"), scores | {"error_slices": [], "n_images": 500, "statistics": {}})
    assert "scores significantly worse than all others; with 500 images" in render_card(run)
    hostile = ErrorSlice(HOSTILE, HOSTILE, 3, HOSTILE, 0.1, 0.2, 0.01, (("100", HOSTILE), ("nobody", "")))
    found = {"error_slices": [{**vars_of(hostile), "name": "ball|"}, vars_of(hostile)]}
    write_json(run.scores("test"), scores | found)
    section = render_card(run).split("### Where captions are worse")[1].split("\n#")[0]
    assert "<script>" not in section and "[x](" not in section and "\x1b" not in section
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {8}
    assert "a red ball on a blue table" in section and "(empty)" in section


def vars_of(found: ErrorSlice) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ErrorSlice.__dataclass_fields__}


def test_what_a_run_lacks_is_said_before_the_training(tmp_path: Path) -> None:
    values = recipe_values("vit_gpt2", tmp_path)
    for given in (0, 19):
        with pytest.raises(UserError, match="find_slices needs permutations: n_resamples must be at least 20"):
            recipe_from_mapping(values | {"score": {"find_slices": True, "n_resamples": given}}, "test")
    recipe = recipe_from_mapping(values | {"score": {"find_slices": True, "metrics": ["length"]}}, "test")
    scoring = RunScoring(recipe, RunDirectory(tmp_path), lambda split: load_split(recipe.data, split))
    with pytest.raises(UserError, match="no metric says which captions are better; add cider"):
        scoring.check()
    replace(scoring, recipe=recipe_from_mapping(values | {"score": {"metrics": ["length"]}}, "test")).check()


def test_a_run_is_searched_as_its_recipe_says(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["score", str(tmp_path / "run"), "--find-slices"])
    assert isinstance(found.exception, UserError) and "score.find_slices" in str(found.exception)
