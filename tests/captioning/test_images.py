"""Captioning one's own images: what is found, what is skipped, and what is written."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from hfcap.captioners.base import Captioner
from hfcap.captioning import caption_images, find_images, load_captioner, one_image
from hfcap.captioning.reading import batched, read_images
from hfcap.data.loading import PixelInputs
from hfcap.errors import OptionError, UserError
from hfcap.explain import explain_image
from hfcap.metrics.shared.caption_files import read_predictions
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import PROMPT, write_image
from tests.captioning.conftest import OPTIONS


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, name in enumerate(["b.png", "a.png", "deeper/c.PNG", "deeper/again/d.jpg"]):
        write_image(folder / name, seed=number)
    (folder / "notes.txt").write_text("not an image")
    (folder / "deeper" / "e.pdf").write_bytes(b"%PDF")
    return folder


def _names(inputs: list[str], root: Path) -> list[str]:
    return [Path(record.file_name).relative_to(root).as_posix() for record in find_images(inputs)]


def _plain_caption(captioner: Captioner, path: Path, prompt: str = "", options: GenerateOptions = OPTIONS) -> str:
    values = captioner.image_processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return captioner.caption_states(captioner.encode(values), options, prompt)[0][0].text


def test_files_folders_and_patterns_without_repetition(images: Path) -> None:
    everything = ["a.png", "b.png", "deeper/again/d.jpg", "deeper/c.PNG"]
    assert _names([str(images)], images) == everything
    assert _names([str(images / "b.png"), str(images)], images) == ["b.png", "a.png", *everything[2:]]
    assert _names([str(images / "*.png")], images) == ["a.png", "b.png"]
    assert _names([str(images / "**" / "*.jpg")], images) == ["deeper/again/d.jpg"]
    assert _names([str(images / "./a.png"), str(images / "a.png")], images) == ["a.png"]


def test_a_quoted_home_folder(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(images))
    assert _names(["~/deeper"], images) == ["deeper/again/d.jpg", "deeper/c.PNG"]
    assert _names(["~/*.png"], images) == ["a.png", "b.png"]


def test_a_name_that_looks_like_a_pattern(images: Path) -> None:
    write_image(images / "x[1]*.png")
    assert _names([str(images / "x[1]*.png")], images) == ["x[1]*.png"]


@pytest.mark.parametrize("name", ["nothing*.png", "empty"])
def test_nothing_found(images: Path, name: str) -> None:
    (images / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image there.*give image files"):
        find_images([str(images), str(images / name)])


def test_missing_file_is_named(images: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: no such file"):
        caption_images("no/model", [str(images / "gone.png")])


def test_damaged_images_are_named_and_skipped(
    model: tuple[Captioner, str], images: Path, screen: tuple[io.StringIO, io.StringIO]
) -> None:
    whole = (images / "b.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "[red]text.jpg").write_text("not an image")
    kept = [Path(found.file_name).name for found in caption_images(model[1], [str(images)])]
    assert kept == ["a.png", "b.png", "d.jpg", "c.PNG"]
    said = screen[1].getvalue()
    assert "skipped: " in said and "cut.png" in said and "[red]text.jpg" in said


def test_patterns_of_web_addresses_are_none() -> None:
    with pytest.raises(UserError, match="is a web address; save the images"):
        find_images(["https://a.b/*.jpg"])


def test_only_damaged_images(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"0\.jpg: damaged"):
        one_image(str(tmp_path / "0.jpg"))
    with pytest.raises(UserError, match=r"no image can be read:\n.*0\.jpg.*\n.*1\.jpg.*\n.*2\.jpg"):
        caption_images("no/model", [str(tmp_path)])


@pytest.mark.parametrize(("new", "prompt"), [(500, None), (6, "a dog " * 300)], ids=["caption", "prompt"])
def test_captions_that_would_outgrow_the_text_model_are_refused_before_the_first(
    model: tuple[Captioner, str],
    images: Path,
    tmp_path: Path,
    screen: tuple[io.StringIO, io.StringIO],
    new: int,
    prompt: str | None,
) -> None:
    image, output = images / "a.png", tmp_path / "out.jsonl"
    refusal = pytest.raises(OptionError, match=rf"max_new_tokens={new} does not fit.*shorter prompt")
    with refusal:
        caption_images(model[1], [str(images)], output, overrides={"max_new_tokens": new}, prompt=prompt)
    assert not list(tmp_path.glob("*out.jsonl*")) and screen[1].getvalue() == ""
    with refusal:
        explain_image(model[1], str(image), tmp_path / "x.png", overrides={"max_new_tokens": new}, prompt=prompt)
    with refusal:
        load_captioner(model[1]).caption(image, prompt, max_new_tokens=new)


def test_json_lines(model: tuple[Captioner, str], images: Path, tmp_path: Path) -> None:
    output = tmp_path / "new folder" / "captions.jsonl"
    found = caption_images(model[1], [str(images)], output)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert rows == [prediction.as_row() for prediction in found]
    assert [Path(row["file_name"]).name for row in rows] == ["a.png", "b.png", "d.jpg", "c.PNG"]
    for row in rows:
        # The decoding options are the ones saved with the model.
        assert row["caption"] == _plain_caption(model[0], Path(row["file_name"]))


def test_csv(model: tuple[Captioner, str], images: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.CSV"
    found = caption_images(model[1], [str(images)], output)
    with output.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["file_name"] for row in rows] == [prediction.file_name for prediction in found]
    assert [float(row["score"]) for row in rows] == [prediction.score for prediction in found]


def test_overrides_and_prompt(model: tuple[Captioner, str], images: Path, tmp_path: Path) -> None:
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4}
    path = images / "a.png"
    [found] = caption_images(
        model[1], [str(path)], tmp_path / "x.jsonl", overrides=options, prompt=PROMPT, batch_size=1
    )
    assert len(found.candidates) == 3
    assert found.caption == _plain_caption(model[0], path, PROMPT, GenerateOptions(**options))


def test_csv_has_every_caption_of_a_image(
    model: tuple[Captioner, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfcap.captioners.base import GeneratedCaption

    def several(self: Captioner, states: torch.Tensor, *arguments: Any) -> list[list[GeneratedCaption]]:
        texts = ["a dog", "=1+2", "two, dogs"]
        return [[GeneratedCaption(text, -0.5) for text in texts[: 3 - 2 * number]] for number in range(len(states))]

    monkeypatch.setattr(Captioner, "caption_states", several)
    caption_images(model[1], [str(images / name) for name in ("a.png", "b.png")], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["file_name", "caption", "score", "caption_2", "caption_3"]
    assert [row[1:] for row in rows] == [
        ["a dog", "-0.5", "'=1+2", "two, dogs"],
        ["a dog", "-0.5", "", ""],
    ]


def test_batches_count_readable_images_and_end_in_a_stretch_of_unreadable_ones(images: Path) -> None:
    [record] = find_images([str(images / "a.png")])

    def batches(readable: str) -> list[int]:
        read = ((record, torch.zeros(1) if letter == "r" else "damaged") for letter in readable)
        return [len(batch) for batch in batched(read, 2)]

    assert batches("rrururrr") == [2, 4, 2]
    assert batches("u" * 40) == [16, 16, 8]
    assert batches("r" + "u" * 15 + "rr") == [16, 2]
    assert batches("") == []


def test_impossible_options_are_explained(model: tuple[Captioner, str], images: Path) -> None:
    with pytest.raises(UserError, match=r"decoding options: .*num_return_sequences=5 needs num_beams"):
        caption_images(model[1], [str(images)], overrides={"num_return_sequences": 5})


@pytest.mark.parametrize("option", [{"temperature": 0.5}, {"top_p": 0.9}, {"seed": 1}])
def test_options_of_sampling_need_sampling(
    option: dict[str, float], model: tuple[Captioner, str], images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"--{next(iter(option)).replace('_', '-')}: .*without --sample"):
        caption_images(model[1], [str(images / "a.png")], overrides=option)
    drawn = {**option, "do_sample": True, "num_beams": 1}
    assert caption_images(model[1], [str(images / "a.png")], tmp_path / "x.csv", overrides=drawn)


def test_a_shape_that_the_image_processor_refuses_is_skipped(tmp_path: Path) -> None:
    fitting = write_image(tmp_path / "fitting.png")
    Image.new("RGB", (2010, 4)).save(tmp_path / "strip.png")
    processor = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    records = find_images([str(tmp_path / "strip.png"), str(fitting)])
    strip, image = (content for _, content in read_images(records, PixelInputs([], processor), ahead=2))
    assert isinstance(strip, str) and "strip.png: not for this captioner (absolute aspect ratio" in strip
    assert isinstance(image, torch.Tensor)


def test_unknown_output_is_refused_before_any_work(images: Path) -> None:
    for name in ("captions.xlsx", "captions"):
        with pytest.raises(UserError, match=rf"{name}: give a name that ends in \.jsonl, \.json, \.csv"):
            caption_images("no/model/at/all", [str(images)], Path(name))


def test_other_forms(model: tuple[Captioner, str], images: Path, tmp_path: Path) -> None:
    """Every form says the same; `hfcap score` reads JSON, `datasets` reads parquet."""
    wide = {"num_beams": 2, "num_return_sequences": 2}
    write_image(images / 'tab\tquote" ümlaut.png')
    found, *others = [
        caption_images(model[1], [str(images)], tmp_path / f"x.{ending}", overrides=wide)
        for ending in ("json", "tsv", "txt", "parquet")
    ]
    assert others == [found] * 3
    rows = [one.as_row() for one in found]
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == rows
    pairs = [(row["image_id"], row["caption"]) for row in rows]
    assert list(read_predictions(tmp_path / "x.json").items()) == pairs
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "".join(f"{one.caption}\n" for one in found)
    with (tmp_path / "x.tsv").open(encoding="utf-8", newline="") as handle:
        table = list(csv.DictReader(handle, delimiter="\t"))
    assert [(row["file_name"], row["caption"], row["caption_2"]) for row in table] == [
        (one.file_name, *one.candidates) for one in found
    ]
    parquet = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    some_cut = {"cut": False} if any(one.cut for one in found) else {}
    assert parquet.to_list() == [some_cut | row for row in rows]
    assert sorted(path.name for path in tmp_path.glob("x.*")) == ["x.json", "x.parquet", "x.tsv", "x.txt"]


def test_table_shows_markup_as_text(
    model: tuple[Captioner, str], images: Path, screen: tuple[io.StringIO, io.StringIO]
) -> None:
    write_image(images / "[bold]x[link=http:evil].png")
    write_image(images / "\x1b[31mred\x07.png")
    [*found] = caption_images(model[1], [str(images / "[[]bold*"), str(images / "*red*")])
    assert len(found) == 2
    shown = screen[0].getvalue()
    assert "[bold]x[link=http:evil].png" in shown.replace("\n", "")
    assert "\x1b" not in shown and "\x07" not in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows file names are always Unicode")
def test_names_that_are_not_utf8(
    model: tuple[Captioner, str], tmp_path: Path, screen: tuple[io.StringIO, io.StringIO]
) -> None:
    source = write_image(tmp_path / "source.png")
    folder = tmp_path / "latin"
    folder.mkdir()
    os.link(source, os.fsencode(folder) + b"/caf\xe9.png")
    for output in (None, tmp_path / "x.jsonl", tmp_path / "x.csv"):
        [found] = caption_images(model[1], [str(folder)], output)
        assert found.file_name.endswith("caf\N{REPLACEMENT CHARACTER}.png")


@pytest.mark.parametrize("name", ["=1+2.png", "+x.png", "-x.png", "@x.png", "\tx.png", "\n=x.png"])
def test_csv_cells_are_no_formulas(
    model: tuple[Captioner, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path(name))
    caption_images(model[1], [name], Path("x.csv"))
    with Path("x.csv").open(encoding="utf-8", newline="") as handle:
        [row] = csv.DictReader(handle)
    assert row["file_name"] == f"'{name}"


def test_captions_are_no_formulas_either(
    model: tuple[Captioner, str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hfcap.captioners.base import GeneratedCaption

    def evil(self: Captioner, states: torch.Tensor, *arguments: Any) -> list[list[GeneratedCaption]]:
        return [[GeneratedCaption('=HYPERLINK("http://evil")', -1.5)] for _ in states]

    monkeypatch.setattr(Captioner, "caption_states", evil)
    caption_images(model[1], [str(images / "a.png")], tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as handle:
        [row] = csv.DictReader(handle)
    assert row["caption"] == '\'=HYPERLINK("http://evil")'
    assert row["score"] == "-1.5"  # a number is no formula
