"""What `hfcap data inspect` says of every layout, and that the block it prints loads when it is pasted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfcap import registry
from hfcap.data.inspection import inspect_data
from hfcap.data.inspection_report import Inspection, block_text, report
from hfcap.data.source import load_split
from hfcap.data.sources.folder import FolderOptions
from hfcap.data.splits import canonical
from hfcap.data.tables.layouts import LAYOUTS
from hfcap.errors import UserError
from hfcap.run import stages
from hfcap.schema import CaptionedImage
from scripts.layouts_table import PAGE, with_table
from tests.cli.command_line import Hfcap
from tests.cli.conftest import hfcap as hfcap
from tests.data.layout_samples import SAMPLES, write_karpathy, write_sample
from tests.data.sample_images import write_coco_json, write_jpeg


def pasted(inspection: Inspection, *splits: Any) -> list[CaptionedImage]:
    """Load what the printed text says, as a recipe would."""
    block = yaml.safe_load(block_text(inspection))["data"]
    options = registry.load("sources", block["source"]).REGISTERED.options.model_validate(block)
    return [record for split in splits for record in load_split(options, split)]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_layout_is_named_and_its_block_loads(name: str, tmp_path: Path) -> None:
    sample = write_sample(name, tmp_path)
    inspection = inspect_data(str(tmp_path), None if sample.automatic else name)
    assert inspection.block["layout"] == name and f"layout {name}: " in inspection.what
    assert {canonical(split) for split in inspection.splits} == set(sample.captions) or inspection.drawn
    assert inspection.drawn == (set(sample.captions) == {"drawn"})
    assert inspection.examples and all(captions for _, captions in inspection.examples)
    loaded = {record.file_name: record.captions for record in pasted(inspection, *inspection_roles(inspection))}
    assert loaded == {file: captions for images in sample.captions.values() for file, captions in images.items()}
    assert report(inspection).endswith(block_text(inspection))


def inspection_roles(inspection: Inspection) -> list[str]:
    roles = {"train", "validation", "test"} & {canonical(split) for split in inspection.splits}
    return sorted(roles | {key.removesuffix("_split") for key in inspection.block if key.endswith("_split")})


def test_every_layout_has_a_sample() -> None:
    assert set(SAMPLES) == {layout.name for layout in LAYOUTS}


def test_a_file_of_coco_and_one_below(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path / "down" / "annotations", n_images=6, splits=("train", "val", "test"))
    inspection = inspect_data(str(path))
    assert inspection.block == {"source": "coco_json", "captions": str(path), "validation_split": "val"}
    assert inspection.splits == {"train": (2, 4), "validation": (2, 4), "test": (2, 4)}
    (path.parent / "images").rename(tmp_path / "down" / "photos")
    assert inspect_data(str(path)).block["images"] == str(tmp_path / "down" / "photos")
    assert len(pasted(inspect_data(str(path)), "train", "validation")) == 4


def test_a_table_whose_columns_nobody_would_guess(tmp_path: Path) -> None:
    for number in range(8):
        write_jpeg(tmp_path / "pics" / f"{number}.jpg")
    rows = "".join(f"{n}.jpg;cat{n};a red rose in the garden {n};12\n" for n in range(8))
    (tmp_path / "export.csv").write_text("file;kind;Bildunterschrift;width\n" + rows)
    inspection = inspect_data(str(tmp_path / "export.csv"))
    assert inspection.block["caption_columns"] == ["Bildunterschrift"] and inspection.drawn
    assert len(pasted(inspection, "train", "validation", "test")) == 8
    assert inspect_data(str(tmp_path)).block == inspection.block


def test_images_that_a_table_names_and_that_are_not_there_are_said_first(tmp_path: Path, hfcap: Hfcap) -> None:
    names = [f"{number}.jpg" for number in range(8)]
    for name in names[:3]:
        write_jpeg(tmp_path / "down" / "photos" / name)
    photos, table = tmp_path / "down" / "photos", tmp_path / "down" / "tables" / "export.csv"
    table.parent.mkdir()
    table.write_text("file,caption\n" + "".join(f"{name},a rose {name}\n" for name in names))
    outcome = hfcap("data", "inspect", str(table))
    assert outcome.code == 2
    missing = f"5 of 8 images are not in {photos}: '3.jpg', '4.jpg', '5.jpg', ..."
    assert outcome.out.splitlines()[0] == missing and f"images: {photos}" in outcome.out
    assert f"error: {missing}; add the files" in outcome.err and "--images" in outcome.err
    for name in names[3:]:
        write_jpeg(tmp_path / "down" / "photos" / name)
    outcome = hfcap("data", "inspect", str(table))
    assert outcome.code == 0 and outcome.out.startswith("a table (csv)")
    # A folder with metadata and a file of COCO are looked at in the same way.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "metadata.csv").write_text("file_name,caption\na.jpg,a rose\n")
    assert inspect_data(str(tmp_path / "own")).missing == ["a.jpg"]
    coco = write_coco_json(tmp_path / "coco", n_images=6, splits=("train", "val", "test"))
    next((tmp_path / "coco").rglob("*.jpg")).unlink()
    assert len(inspect_data(str(coco)).missing) == 1


def test_columns_are_named_as_in_a_recipe(tmp_path: Path, hfcap: Hfcap) -> None:
    for number in range(8):
        write_jpeg(tmp_path / "pics" / f"{number}.jpg")
    rows = "".join(f"{n};a red rose {n};{n}.jpg;rot\n" for n in range(8))
    (tmp_path / "t.csv").write_text("nr;says;pic;color\n" + rows)
    refused = hfcap("data", "inspect", str(tmp_path / "t.csv"))
    assert refused.code == 2 and "--image-column" in refused.err and "columns: nr, says, pic, color" in refused.err
    given = ("--image-column", "pic", "--caption-columns", "says", "--caption-columns", "color")
    outcome = hfcap("data", "inspect", str(tmp_path), *given)
    assert outcome.code == 0, outcome.err
    block = yaml.safe_load(outcome.out[outcome.out.index("data:\n") :])["data"]
    assert block["image_column"] == "pic" and block["caption_columns"] == ["says", "color"]
    keys = {"image_column": "pic", "caption_columns": ["says", "color"]}
    loaded = pasted(inspect_data(str(tmp_path), keys=keys), "train")
    assert loaded and {one.captions for one in loaded} <= {(f"a red rose {n}", "rot") for n in range(8)}
    coco = write_coco_json(tmp_path / "coco", n_images=6, splits=("train", "val", "test"))
    refused = hfcap("data", "inspect", str(coco), "--image-column", "pic")
    assert refused.code == 2 and "source coco_json reads it, which has no key image_column; leave --im" in refused.err


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_jpeg(tmp_path / f"{name}.jpg")
    (tmp_path / "a.txt").write_text("a rose")
    (tmp_path / "b.txt").write_text("a tulip")
    (tmp_path / "d.psd").write_bytes(b"8BPS")
    said = report(inspect_data(str(tmp_path)))
    assert "left out: 1 image without a caption" in said and "d.psd" in said and "uncaptioned_images: ignore" in said


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a red rose on a table.jpg", "two white tulips here.jpg"],
            "their names look like captions.*--layout file_names",
        ),
        (["IMG_1.jpg", "IMG_2.jpg"], r"2 images, and no captions.*a\.jpg and a\.txt"),
        (["notes.md"], "0 images.*the folder above"),
    ],
)
def test_a_folder_that_is_not_understood(files: list[str], message: str, tmp_path: Path) -> None:
    for name in files:
        write_jpeg(tmp_path / name)
    with pytest.raises(UserError, match=message):
        inspect_data(str(tmp_path))


def test_text_of_strangers_and_long_captions_are_shortened(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "a.jpg")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg", "captions": ["word " * 100] * 9}))
    said = report(inspect_data(str(tmp_path)))
    assert "and 4 more" in said and max(map(len, said.splitlines())) < 200


def test_the_table_of_layouts_in_the_documentation_is_this_one() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m scripts.layouts_table"
    assert all(f"| `{layout.name}` |" in page for layout in LAYOUTS)


def test_the_command_and_what_the_documentation_shows_of_it(
    tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(120):
        write_jpeg(tmp_path / "photos" / f"{number:03}.jpg")
        (tmp_path / "photos" / f"{number:03}.txt").write_text(f"photo {number}")
    outcome = hfcap("data", "inspect", "photos")
    assert outcome.code == 0, outcome.err
    (shown,) = re.findall(r"```\n(a folder in the layout .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for line in shown.splitlines():
        assert line == "..." or line in outcome.out.splitlines(), line
    assert hfcap("list", "layouts").out.startswith("metadata: ")
    refused = hfcap("data", "inspect", "photos/000.jpg")
    assert refused.code == 2 and "photos/000.jpg" in refused.err


@pytest.mark.parametrize("file", ["dataset.json", "dataset_flickr8k.json", "down/dataset_flickr30k.json"])
def test_karpathys_json_of_any_dataset(file: str, tmp_path: Path) -> None:
    write_karpathy("Images", file, val="restval")(tmp_path)
    inspection = inspect_data(str(tmp_path))
    assert inspection.block["layout"] == "karpathy"
    assert {record.file_name for record in pasted(inspection, "train")} == {"Images/a.jpg", "Images/b.jpg"}


def test_domains_of_nocaps_stay_with_the_images(tmp_path: Path) -> None:
    write_sample("nocaps", tmp_path)
    records = pasted(inspect_data(str(tmp_path)), "validation")
    assert [(record.image_id, record.group) for record in records] == [
        ("0", "in-domain"),
        ("1", "near-domain"),
        ("2", "out-domain"),
    ]
    assert [image["group"] for image in stages._coco_references(records)["images"]] == [one.group for one in records]


def test_what_does_not_count_is_said(tmp_path: Path) -> None:
    write_sample("vizwiz", tmp_path / "vizwiz")
    assert "left out: 2 rows without a caption" in report(inspect_data(str(tmp_path / "vizwiz")))
    write_sample("llava", tmp_path / "llava")
    said = report(inspect_data(str(tmp_path / "llava")))
    assert "left out: 1 row without an image" in said and "Describe it." in said
    # Another language, and the long captions, by the key that the table of layouts names.
    write_sample("xm3600", tmp_path / "xm3600")
    options = FolderOptions(root=str(tmp_path / "xm3600"), caption_columns=["de.caption[]"])
    assert [record.captions for record in load_split(options, "test")] == [("Rose",)] * 3
