"""The leaderboard's page: what it says, and that strangers' text stays text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from hfcap.comparison import (
    ImageSource,
    compare,
    leaderboard_json,
    leaderboard_markdown,
    leaderboard_table,
    write_leaderboard,
)
from hfcap.comparison.by_image import by_image
from hfcap.comparison.figures import shortened
from hfcap.data.images import FileImage
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.pages import thumbnail
from hfcap.scoring import read_scores
from tests.comparison.pages import FEW, HOSTILE, ITS_SCRIPTS, Outline, Scored, encoded, written


def test_wins_and_losses_are_those_of_the_score_files(scored: Scored) -> None:
    paths = [scored("good.json", 0.0), scored("bad.json", 0.5), scored("close.json", 0.05)]
    pairs = by_image(compare(paths, n_resamples=200, warn=lambda _: None))
    assert [(pair.leader.name, pair.other.name) for pair in pairs] == [("good", "close"), ("good", "bad")]
    good, bad = (read_scores(path).per_image for path in paths[:2])
    expected = {key: (good[key]["cider"] or 0.0) - (bad[key]["cider"] or 0.0) for key in good}
    found = dict(zip(pairs[1].image_ids, pairs[1].differences.tolist(), strict=True))
    assert found == pytest.approx(expected)
    wins = [key for key, value in expected.items() if value > 5e-5]
    losses = [key for key, value in expected.items() if value < -5e-5]
    ties = len(expected) - len(wins) - len(losses)
    assert pairs[1].counts == {"wins": len(wins), "ties": ties, "losses": len(losses)} and ties > 0
    largest = [pairs[1].image_ids[position] for position in pairs[1].largest(4)[0]]
    assert largest == sorted(wins, key=lambda key: (-expected[key], key))[:4]
    assert all(pairs[1].image_ids[position] in losses for position in pairs[1].largest(99)[1])


def test_the_page_of_score_files(scored: Scored, tmp_path: Path) -> None:
    paths = [scored("good.json", 0.0), scored("bad.json", 0.5)]
    page = written(paths, tmp_path / "out")
    outline = Outline(page)
    found = compare(paths, n_resamples=200, warn=lambda _: None)
    value = 100 * (found.systems[0].report.metrics["cider"] or 0.0)
    lower, upper = (100 * bound for bound in found.intervals["good"]["cider"])
    assert f"By CIDEr-D, good is first: {value:.1f} (95% interval {lower:.1f} to {upper:.1f})." in outline.text
    assert "Significantly better than bad (by " in outline.text
    counts = by_image(found)[0].counts
    assert f"{counts['wins']} ({counts['wins'] / 130:.0%}) won" in outline.text
    unshown = ("The captions of good, bad are not shown", "The human captions are not shown")
    for words in ("BLEU-4 ↑", "image_ids_sha256", *unshown):
        assert words in outline.text
    # Intervals and differences of six values, and the differences by image: in the page and as files.
    assert outline.count("svg") == 13 == len(list((tmp_path / "out" / "leaderboard_plots").glob("*.svg")))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert ids and len(set(ids)) == len(ids)
    assert not {"link", "iframe"} & {tag for tag, _ in outline.tags} and outline.scripts == ITS_SCRIPTS
    outside = [v for _, a in outline.tags for k, v in a.items() if k in ("src", "href") and v and v[0] != "#"]
    assert [value for value in outside if not value.startswith("data:image/jpeg;base64,")] == []


def test_the_same_input_gives_the_same_bytes(scored: Scored, tmp_path: Path) -> None:
    paths = [scored("good.json", 0.0, metrics=FEW), scored("bad.json", 0.5, metrics=FEW)]
    hashes = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        written(paths, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes.append({str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert hashes[0] == hashes[1] and len(hashes[0]) == 3 + 5


def test_plots_of_an_earlier_comparison_do_not_stay(scored: Scored, tmp_path: Path) -> None:
    path = scored("good.json", 0.0, metrics=FEW)
    write_leaderboard(compare([path], n_resamples=100), tmp_path / "out")
    assert (tmp_path / "out" / "leaderboard_plots").is_dir()
    value = read_json(path, "scores") | {"metrics": {}, "intervals": {}, "per_image": {}, "statistics": {}}
    path.write_text(json.dumps(value))
    write_leaderboard(compare([path], n_resamples=100), tmp_path / "out")
    assert sorted(child.name for child in (tmp_path / "out").iterdir()) == [
        f"leaderboard.{kind}" for kind in ("html", "json", "md")
    ]


def test_five_runs_with_costs_captions_and_images(whole_run: Scored, tmp_path: Path) -> None:
    runs = [whole_run(f"run{number}", 0.15 * number) for number in range(5)]
    for number, run in enumerate(runs):
        summary = read_json(run / "training_summary.json", "summary")
        (run / "training_summary.json").write_text(json.dumps({**summary, "parameters": 10 ** (5 + number)}))
    outline = Outline(written(runs, tmp_path / "out", images=ImageSource(), n_examples=2))
    summaries = re.findall(r"<summary>.*?</summary>", (tmp_path / "out" / "leaderboard.html").read_text())
    assert sum(" against " in summary for summary in summaries) == 4
    assert "Costs are those of training" in outline.text and "247.0" not in outline.text
    assert (tmp_path / "out" / "leaderboard_plots" / "cost_parameters.svg").is_file()
    # All trained for the same time: nothing to plot.
    assert not (tmp_path / "out" / "leaderboard_plots" / "cost_train_seconds.svg").exists()
    assert "grass grass" in outline.text and "a man on the street" in outline.text
    sources = [attributes["src"] or "" for tag, attributes in outline.tags if tag == "img"]
    sides = [attributes.get("class") for _, attributes in outline.tags]
    assert len(sources) == sides.count("win") + sides.count("loss") and sides.count("win") == 4 * 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    board = read_json(tmp_path / "out" / "leaderboard.json", "board")["by_image"]
    assert board["best"] == "run0" and [row["name"] for row in board["against"]] == ["run1", "run2", "run3", "run4"]
    assert "| run4 |" in (tmp_path / "out" / "leaderboard.md").read_text().partition("## Image by image")[2]


def test_images_are_shown_only_when_asked_for(whole_run: Scored, tmp_path: Path) -> None:
    runs = [whole_run("a", 0.0), whole_run("b", 0.5)]
    assert Outline(written(runs, tmp_path / "none")).count("img") == 0
    folder = ImageSource(tmp_path / "images")
    shown = Outline(written([run / "scores" / "test.json" for run in runs], tmp_path / "folder", images=folder))
    assert shown.count("img") > 6 and "grass grass" in shown.text
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    assert "The image cannot be read." in Outline(written(runs, tmp_path / "bad", images=folder)).text
    with pytest.raises(UserError, match=r"no image for .* images"):
        written(runs, tmp_path / "x", images=ImageSource(tmp_path / "bad"))
    (tmp_path / "all.json").unlink()
    with pytest.raises(UserError, match=r"images cannot be found \(.*all\.json.*give their folder with --images"):
        written(runs, tmp_path / "x", images=ImageSource())
    assert not (tmp_path / "x").exists()


def test_captions_that_were_not_scored_are_not_shown(whole_run: Scored, tmp_path: Path) -> None:
    runs = [whole_run("a", 0.0), whole_run("b", 0.5)]
    path = runs[1] / "predictions" / "test.jsonl"
    path.write_text(path.read_text().replace("grass grass", "a new man"))
    text = Outline(written(runs, tmp_path / "out")).text
    assert "captions of b are not shown: they are not those that were scored" in text
    assert "a new man" not in text and "a man on the street" in text
    for run in runs:
        (run / "references" / "test.json").write_text('{"0": ["another human caption"]}')
    text = Outline(written(runs, tmp_path / "out")).text
    assert "human captions are not shown" in text and "another human caption" not in text


def test_a_system_without_values_per_image(scored: Scored, tmp_path: Path) -> None:
    paths = [
        scored("best.json", 0.0, metrics=FEW),
        scored("middle.json", 0.2, metrics=FEW),
        scored("worst.json", 0.5, metrics=FEW),
    ]
    value = read_json(paths[0], "scores")
    paths[0].write_text(json.dumps({**value, "per_image": {}, "statistics": {}}))
    text = Outline(written(paths, tmp_path / "out")).text
    assert "best is first" in text and "Not tested against middle, worst." in text
    assert "best: no per-image values" in text
    assert "where middle wins and loses" in text
    alone = Outline(written(paths[:1], tmp_path / "alone"))
    assert "Scores of one captioner" in alone.text and "Image by image" not in alone.text
    assert leaderboard_json(compare(paths[:1], warn=lambda _: None))["by_image"] is None


def test_lower_can_be_better(scored: Scored) -> None:
    paths = [scored("a.json", 0.0, metrics=["bad_endings"]), scored("b.json", 0.4, metrics=["bad_endings"])]
    (pair,) = by_image(compare(paths, n_resamples=200, warn=lambda _: None))
    values = [pair.leader.report.metrics["bad_endings"], pair.other.report.metrics["bad_endings"]]
    assert (values[0] or 0) < (values[1] or 0)
    assert pair.direction == -1 and pair.counts["wins"] > pair.counts["losses"]
    assert all(pair.differences[position] < 0 for position in pair.largest(3)[0])


def test_strangers_text_stays_text(scored: Scored, tmp_path: Path) -> None:
    paths = [
        scored("good.json", 0.0, metrics=FEW),
        scored(HOSTILE.replace("/", "\N{DIVISION SLASH}") + ".json", 0.5, metrics=FEW),
    ]
    value = read_json(paths[1], "scores")
    name = "../../<b>evil\x1b[2J\x07" + "long" * 30
    value["metrics"][name] = 0.5
    value["intervals"][name] = [0.4, 0.6]
    value["signature"] |= {"run": {"prompt": HOSTILE}, "hfcap": "\x1b[2J"}
    paths[1].write_text(json.dumps(value))
    outline = Outline(written(paths, tmp_path / "out"))
    assert not {"b", "img"} & {tag for tag, _ in outline.tags} and outline.scripts == ITS_SCRIPTS
    assert not [key for _, attributes in outline.tags for key in attributes if key.startswith("on")]
    assert HOSTILE in outline.text
    shown = Outline(MarkdownIt("commonmark").enable("table").render((tmp_path / "out" / "leaderboard.md").read_text()))
    tables = {"table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in shown.tags} <= {"h1", "h2", "p", "strong", "blockquote", "ul", "li", "code", *tables}
    assert HOSTILE in shown.text
    plots = list((tmp_path / "out" / "leaderboard_plots").iterdir())
    assert {path.parent for path in tmp_path.rglob("*evil*")} == {tmp_path / "out" / "leaderboard_plots"}
    for path in plots:
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).getroot().iter()}
        assert "script" not in tags and "img" not in tags


def test_strangers_text_commands_no_terminal(scored: Scored, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [scored("good.json", 0.0, metrics=FEW), scored("other.json", 0.5, metrics=FEW)]
    value = read_json(paths[1], "scores")
    value["metrics"]["evil\x1b[2J"] = 0.5
    value["signature"] |= {"hfcap": "\x1b[2J"}
    paths[1].write_text(json.dumps(value))
    comparison = compare(paths, n_resamples=100)
    screen = io.StringIO()
    Console(file=screen, width=200).print(leaderboard_table(comparison))
    for said in (screen.getvalue(), capsys.readouterr().err):
        assert "\N{REPLACEMENT CHARACTER}[2J" in said and "\x1b" not in said
    assert "evil" in (markdown := leaderboard_markdown(comparison)) and "\x1b" not in markdown


def test_half_a_character_is_refused_with_the_file_s_name(scored: Scored) -> None:
    path = scored("other.json", 0.5, metrics=FEW)
    value = read_json(path, "scores")
    value["metrics"]["\U0001f600"] = 0.5
    path.write_text(json.dumps(value))
    assert compare([path]).systems[0].name == "other"
    value["metrics"]["\udcff"] = 0.5
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"other\.json: .* unpaired surrogate \(\\udcff\)"):
        compare([path])


def test_long_names_are_shortened_in_plots() -> None:
    assert shortened("blip") == "blip"
    assert shortened("runs/a/very/long/path/scores/test.json") == "runs/a/very…s/test.json"
    assert shortened("a\nb\x1b") == "a\ufffdb\ufffd"


def test_thumbnails_are_small_and_carry_no_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    original = encoded("JPEG", (600, 900), exif=exif, comment=b"secret", icc_profile=b"secret profile")
    (tmp_path / "a.jpg").write_bytes(original)
    data = base64.b64decode(thumbnail(FileImage(tmp_path / "a.jpg")).partition(",")[2])
    small = Image.open(io.BytesIO(data))
    assert small.size == (160, 240) and not small.getexif()
    for words in (b"secret", b"taken"):
        assert words in original and words not in data
