"""The leaderboard's page: what it says, that strangers' text stays text, and how a real browser shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
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

Scored = Callable[..., Path]
FEW = ("rouge_l", "cider")
"""Metrics: every value is drawn twice."""

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> $x^{ & </style></svg>"


class _Outline(HTMLParser):
    """Tags with attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def _encoded(file_format: str, size: tuple[int, int] = (60, 40), **extra: Any) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, file_format, **extra)
    return buffer.getvalue()


def _written(paths: list[Path], folder: Path, **options: Any) -> str:
    write_leaderboard(compare(paths, n_resamples=200, warn=lambda _: None), folder, **options)
    return (folder / "leaderboard.html").read_text(encoding="utf-8")


@pytest.fixture
def whole_run(run_directory: Scored, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes a run directory with predictions, human captions, images and a loadable recipe."""

    def make(name: str, share: float) -> Path:
        images = tmp_path / "images"
        data = {"source": "coco_json", "captions": str(tmp_path / "all.json"), "images": str(images)}
        model: dict[str, Any] = {"captioner": "blip", "model": {"pretrained": "x"}, "train": {"max_steps": 1}}
        run = run_directory(name, share, FEW, data=data, **model)
        predictions = read_json(tmp_path / "sources" / "p.json", "p")
        human = read_json(tmp_path / "sources" / "r.json", "r")
        rows = [
            {"image_id": key, "file_name": f"{key}.png", "caption": caption} for key, caption in predictions.items()
        ]
        for folder in (run / "predictions", run / "references", images):
            folder.mkdir(exist_ok=True)
        (run / "predictions" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        coco = {
            "images": [{"id": key, "file_name": f"{key}.png", "split": "test"} for key in human],
            "annotations": [{"image_id": key, "caption": text} for key, group in human.items() for text in group],
        }
        for path in (run / "references" / "test.json", tmp_path / "all.json"):
            path.write_text(json.dumps(coco))
        for row in rows:
            (images / row["file_name"]).write_bytes(_encoded("PNG"))
        return run

    return make


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
    page = _written(paths, tmp_path / "out")
    outline = _Outline(page)
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
    assert not {"script", "link", "iframe"} & {tag for tag, _ in outline.tags}
    outside = [v for _, a in outline.tags for k, v in a.items() if k in ("src", "href") and v and v[0] != "#"]
    assert [value for value in outside if not value.startswith("data:image/jpeg;base64,")] == []


def test_the_same_input_gives_the_same_bytes(scored: Scored, tmp_path: Path) -> None:
    paths = [scored("good.json", 0.0, metrics=FEW), scored("bad.json", 0.5, metrics=FEW)]
    hashes = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        _written(paths, folder)
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
    outline = _Outline(_written(runs, tmp_path / "out", images=ImageSource(), n_examples=2))
    assert outline.text.count(" against ") == 4
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
    assert _Outline(_written(runs, tmp_path / "none")).count("img") == 0
    folder = ImageSource(tmp_path / "images")
    shown = _Outline(_written([run / "scores" / "test.json" for run in runs], tmp_path / "folder", images=folder))
    assert shown.count("img") > 6 and "grass grass" in shown.text
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    assert "The image cannot be read." in _Outline(_written(runs, tmp_path / "bad", images=folder)).text
    with pytest.raises(UserError, match=r"no image for .* images"):
        _written(runs, tmp_path / "x", images=ImageSource(tmp_path / "bad"))
    (tmp_path / "all.json").unlink()
    with pytest.raises(UserError, match=r"images cannot be found \(.*all\.json.*give their folder with --images"):
        _written(runs, tmp_path / "x", images=ImageSource())
    assert not (tmp_path / "x").exists()


def test_captions_that_were_not_scored_are_not_shown(whole_run: Scored, tmp_path: Path) -> None:
    runs = [whole_run("a", 0.0), whole_run("b", 0.5)]
    path = runs[1] / "predictions" / "test.jsonl"
    path.write_text(path.read_text().replace("grass grass", "a new man"))
    text = _Outline(_written(runs, tmp_path / "out")).text
    assert "captions of b are not shown: they are not those that were scored" in text
    assert "a new man" not in text and "a man on the street" in text
    for run in runs:
        (run / "references" / "test.json").write_text('{"0": ["another human caption"]}')
    text = _Outline(_written(runs, tmp_path / "out")).text
    assert "human captions are not shown" in text and "another human caption" not in text


def test_a_system_without_values_per_image(scored: Scored, tmp_path: Path) -> None:
    paths = [
        scored("best.json", 0.0, metrics=FEW),
        scored("middle.json", 0.2, metrics=FEW),
        scored("worst.json", 0.5, metrics=FEW),
    ]
    value = read_json(paths[0], "scores")
    paths[0].write_text(json.dumps({**value, "per_image": {}, "statistics": {}}))
    text = _Outline(_written(paths, tmp_path / "out")).text
    assert "best is first" in text and "Not tested against middle, worst." in text
    assert "best: no per-image values" in text
    assert "where middle wins and loses" in text
    alone = _Outline(_written(paths[:1], tmp_path / "alone"))
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
    outline = _Outline(_written(paths, tmp_path / "out"))
    assert not {"script", "b", "img"} & {tag for tag, _ in outline.tags}
    assert not [key for _, attributes in outline.tags for key in attributes if key.startswith("on")]
    assert HOSTILE in outline.text
    shown = _Outline(MarkdownIt("commonmark").enable("table").render((tmp_path / "out" / "leaderboard.md").read_text()))
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
    original = _encoded("JPEG", (600, 900), exif=exif, comment=b"secret", icc_profile=b"secret profile")
    (tmp_path / "a.jpg").write_bytes(original)
    data = base64.b64decode(thumbnail(FileImage(tmp_path / "a.jpg")).partition(",")[2])
    small = Image.open(io.BytesIO(data))
    assert small.size == (160, 240) and not small.getexif()
    for words in (b"secret", b"taken"):
        assert words in original and words not in data


_MEASURE = """<script>
const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
const plots = [...document.querySelectorAll('svg.plot')].map(e => e.getBoundingClientRect());
parent.document.body.dataset.found = JSON.stringify({title: document.title, width: innerWidth,
  scroll: document.documentElement.scrollWidth, wide, paper: getComputedStyle(document.body).backgroundColor,
  text: getComputedStyle(document.querySelector('svg.plot text')).fill, plots: plots.map(p => [p.width, p.height]),
  images: [...document.images].map(i => i.naturalWidth)});
</script>"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_on_a_telephone(whole_run: Scored, tmp_path: Path, dark: bool) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium or Chrome")
    runs = [whole_run("a", 0.0), whole_run("a_rather_long_name_without_any_space_in_it_" * 2, 0.5)]
    value = read_json(runs[1] / "scores" / "test.json", "scores")
    value["signature"]["run"] = {"prompt": HOSTILE}
    (runs[1] / "scores" / "test.json").write_text(json.dumps(value))
    page = _written(runs, tmp_path / "out", images=ImageSource(), n_examples=1)
    # Measured without the page's own ban on scripts, so that a script hidden in a caption would run.
    page, n_bans = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert n_bans == 1
    # A window cannot be as narrow as a telephone, a frame can.
    measured = html.escape(page.replace("</body>", _MEASURE + "</body>"))
    frame = (
        f'<!doctype html><meta charset="utf-8"><iframe width="390" height="900" style="border:0" srcdoc="{measured}">'
    )
    (tmp_path / "measured.html").write_text(frame + "</iframe>", encoding="utf-8")
    colours = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    switches = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", *colours]
    shown = subprocess.run(
        [chromium, *switches, "--dump-dom", (tmp_path / "measured.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    tags = dict(_Outline(shown.stdout).tags)
    found = json.loads(tags["body"]["data-found"] or "")
    assert found["title"] == "Captioners compared"
    assert found["width"] == 390 and found["scroll"] <= 390 and found["wide"] == []
    assert all(width > 200 and height > 50 for width, height in found["plots"]) and found["plots"]
    assert found["images"] and all(width > 0 for width in found["images"])
    expected = ("rgb(21, 24, 27)", "rgb(163, 172, 182)") if dark else ("rgb(255, 255, 255)", "rgb(95, 104, 117)")
    assert found["paper"] == expected[0]
    assert found["text"] in (expected[1], "rgb(232, 234, 237)" if dark else "rgb(28, 32, 36)")
