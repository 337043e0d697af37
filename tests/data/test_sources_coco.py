from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfcap.data.source import load_split
from hfcap.data.sources.coco import CocoOptions, load
from hfcap.errors import UserError
from tests.data.sample_images import write_jpeg

PHOTOS = [(9, "train", "train2014"), (42, "val", "val2014"), (73, "test", "val2014"), (74, "restval", "val2014")]
"""COCO id, Karpathy split and 2014 folder."""


def karpathy_entries() -> list[dict[str, Any]]:
    return [
        {
            "cocoid": coco_id,
            "imgid": number,
            "split": split,
            "filepath": folder,
            "filename": f"COCO_{folder}_{coco_id:012d}.jpg",
            "sentences": [{"raw": f"Photo {coco_id}.\n", "tokens": ["photo"]}, {"raw": f"again {coco_id}"}],
        }
        for number, (coco_id, split, folder) in enumerate(PHOTOS)
    ]


def write_root(root: Path, year: str = "2014", images: str = "", annotations: str = "") -> CocoOptions:
    (root / annotations).mkdir(parents=True, exist_ok=True)
    (root / annotations / "dataset_coco.json").write_text(json.dumps({"images": karpathy_entries()}))
    for entry in karpathy_entries():
        name = f"{entry['filepath']}/{entry['filename']}"
        if year == "2017":
            # In 2017 most photos of val2014 went to train2017.
            name = f"{'val2017' if entry['cocoid'] == 73 else 'train2017'}/{entry['cocoid']:012d}.jpg"
        write_jpeg(root / images / name)
    return CocoOptions(root=str(root))


@pytest.mark.parametrize("images", ["", "images"])
@pytest.mark.parametrize("annotations", ["", "annotations"])
def test_2014_layouts(tmp_path: Path, images: str, annotations: str) -> None:
    options = write_root(tmp_path, images=images, annotations=annotations)
    (record,) = load_split(options, "validation")
    assert (record.image_id, record.file_name) == ("42", "val2014/COCO_val2014_000000000042.jpg")
    assert record.captions == ("Photo 42.", "again 42")
    assert [record.image_id for record in load_split(options, "test")] == ["73"]


def test_2017_layout_finds_photos_in_either_folder(tmp_path: Path) -> None:
    options = write_root(tmp_path, year="2017")
    assert [record.file_name for record in load_split(options, "train")] == [
        "train2017/000000000009.jpg",
        "train2017/000000000074.jpg",
    ]
    assert [record.file_name for record in load_split(options, "test")] == ["val2017/000000000073.jpg"]


def test_restval_belongs_to_train_unless_switched_off(tmp_path: Path) -> None:
    options = write_root(tmp_path)
    assert [record.image_id for record in load(options, "train")] == ["9", "74"]
    assert [record.image_id for record in load(options.model_copy(update={"restval": False}), "train")] == ["9"]
    assert [record.image_id for record in load(options, "restval")] == ["74"]


def test_year_may_be_chosen_where_both_are_there(tmp_path: Path) -> None:
    write_root(tmp_path)
    options = write_root(tmp_path, year="2017").model_copy(update={"year": "2017"})
    assert load(options, "val")[0].file_name.startswith("train2017/")
    assert load(options.model_copy(update={"year": "auto"}), "val")[0].file_name.startswith("val2014/")


def test_missing_split_file_names_the_command(tmp_path: Path) -> None:
    options = write_root(tmp_path)
    (tmp_path / "dataset_coco.json").unlink()
    with pytest.raises(UserError, match=rf"no dataset_coco\.json.*hfcap data coco --root {tmp_path}"):
        load(options, "train")


def test_missing_photo_folders_name_the_command(tmp_path: Path) -> None:
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": karpathy_entries()}))
    with pytest.raises(UserError, match=r"no photo folders of 2014 or 2017.*hfcap data coco"):
        load(CocoOptions(root=str(tmp_path)), "train")
    with pytest.raises(UserError, match=r"folder not found; .*data\.root; .*hfcap data coco"):
        load(CocoOptions(root=str(tmp_path / "absent")), "train")


def test_missing_photo_is_named(tmp_path: Path) -> None:
    options = write_root(tmp_path)
    (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(UserError, match=r"COCO_val2014_000000000042\.jpg: no such file"):
        load_split(options, "validation")


def test_unknown_split_lists_karpathys(tmp_path: Path) -> None:
    options = write_root(tmp_path).model_copy(update={"validation_split": "validation"})
    with pytest.raises(
        UserError, match=r"'restval', 'test', 'train', 'val'\); choose one with the recipe's key data\.validation_split"
    ):
        load_split(options, "validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("sentences"), r"images\[1\] is not an entry.*sentences"),
        (lambda entry: entry.update(cocoid="42"), r"images\[1\]: cocoid must be a number"),
        (lambda entry: entry.update(cocoid=9), r"cocoid occurs more than once: 9"),
        (lambda entry: entry.update(filename="../../secret.jpg"), r"image 42: file name .* contains '\.\.'"),
    ],
)
def test_wrong_split_file(tmp_path: Path, change: Any, message: str) -> None:
    options = write_root(tmp_path)
    entries = karpathy_entries()
    change(entries[1])
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    with pytest.raises(UserError, match=rf"dataset_coco\.json: ?.*{message}"):
        load(options, "val")


def test_split_file_without_sentences_for_a_photo(tmp_path: Path) -> None:
    options = write_root(tmp_path)
    entries = karpathy_entries()
    entries[1]["sentences"] = []
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    with pytest.raises(UserError, match=r"1 images without captions: '42'"):
        load_split(options, "validation")
