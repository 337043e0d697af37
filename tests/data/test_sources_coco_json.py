from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfcap.data.images import FileImage
from hfcap.data.source import load_split
from hfcap.data.sources.coco_json import CocoJsonOptions, load
from hfcap.errors import UserError
from tests.data.sample_images import write_coco_json
from tests.shared_data import SHARED, requires_shared


def options(path: Path, **changes: Any) -> CocoJsonOptions:
    return CocoJsonOptions.model_validate({"captions": str(path), **changes})


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_reads_images_and_captions_in_order(tmp_path: Path) -> None:
    first, second = load(options(write_coco_json(tmp_path)), "val")
    assert (first.image_id, first.file_name) == ("11", "1.jpg")
    assert first.captions == ("caption 0 of image 1", "caption 1 of image 1")
    assert first.image == FileImage((tmp_path / "images" / "1.jpg").resolve())
    assert second.image_id == "13"


def test_ids_may_be_text_on_one_side_and_numbers_on_the_other(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path)
    rewrite(path, lambda content: [image.update(id=str(image["id"])) for image in content["images"]])
    assert [record.image_id for record in load(options(path), "train")] == ["10", "12"]


def test_one_file_and_folder_per_split(tmp_path: Path) -> None:
    train = write_coco_json(tmp_path / "a", n_images=3, splits=())
    validation = write_coco_json(tmp_path / "b", n_images=2, splits=())
    mapped = options(train, captions={"train": str(train), "validation": str(validation)})
    assert [len(load(mapped, name)) for name in ("train", "validation")] == [3, 2]
    assert load(mapped, "validation")[0].image == FileImage((tmp_path / "b" / "images" / "0.jpg").resolve())
    folders = {"train": str(tmp_path / "b" / "images"), "validation": str(tmp_path / "a" / "images")}
    swapped = options(train, captions={"train": str(train), "validation": str(validation)}, images=folders)
    assert load(swapped, "validation")[0].image == FileImage((tmp_path / "a" / "images" / "0.jpg").resolve())
    with pytest.raises(UserError, match=r"data\.test_split"):
        load_split(mapped, "test")
    with pytest.raises(UserError, match=r"data\.images has no folder for split 'validation'"):
        load(options(train, captions=mapped.captions, images={"train": str(tmp_path)}), "validation")


def test_splits_of_a_single_file_without_them_are_drawn(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path, n_images=12, splits=())
    parts = [{record.image_id for record in load(options(path), name)} for name in ("train", "val", "test")]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 12
    with pytest.raises(UserError, match=r"no images in split 'holdout' \(splits that exist: 'test', 'train', 'valid"):
        load(options(path), "holdout")


def test_missing_file_and_folder_name_their_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: COCO caption file \(data\.captions\) not found"):
        load(options(tmp_path / "absent.json"), "train")
    path = write_coco_json(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere: image folder not found.*data\.images"):
        load(options(path, images=str(tmp_path / "elsewhere")), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no list under 'images'"),
        ('{"images": {}}', "no list under 'images'"),
        ('{"images": []}', "no list under 'annotations'"),
        ('{"images": [3], "annotations": []}', r"images\[0\] must be an object"),
        (
            '{"images": [{"id": 1, "filename": "a.jpg"}], "annotations": []}',
            "no key 'file_name'; did you mean 'filename'",
        ),
        (
            '{"images": [{"id": 1.5, "file_name": "a.jpg"}], "annotations": []}',
            r"images\[0\]\.id must be .*, not float",
        ),
        (
            '{"images": [{"id": 1, "file_name": null}], "annotations": []}',
            r"images\[0\]\.file_name must be text, not NoneType",
        ),
        (
            '{"images": [], "annotations": [{"image_id": 1, "caption": ["a"]}]}',
            r"annotations\[0\]\.caption must be text, not list",
        ),
        ('{"images": [], "annotations": [}', r"not valid JSON \(line 1, column 32"),
    ],
)
def test_files_that_are_not_in_coco_format(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(UserError, match=rf"captions\.json: .*{message}"):
        load(options(tmp_path / "captions.json"), "train")


def test_captions_without_image(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path)
    rewrite(path, lambda content: content["annotations"].append({"image_id": 99, "caption": "lost"}))
    with pytest.raises(UserError, match=r"captions\.json: 1 caption without image.*annotations\[8\] \(image_id 99\)"):
        load(options(path), "train")


def test_empty_captions(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path)
    rewrite(path, lambda content: content["annotations"][3].update(caption=" \n"))
    with pytest.raises(UserError, match=r"1 empty captions: annotations\[3\] \(image_id 11\)"):
        load(options(path), "train")


def test_empty_caption_list(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path, annotations=[])
    with pytest.raises(UserError, match=r"2 images of split 'train' have no caption.*ids 10, 12"):
        load(options(path), "train")


def test_images_without_captions_are_an_error_or_left_out(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path)
    rewrite(
        path, lambda content: content.update(annotations=[a for a in content["annotations"] if a["image_id"] != 12])
    )
    with pytest.raises(UserError, match=r"1 images of split 'train' have no caption.*data\.uncaptioned_images: ignore"):
        load(options(path), "train")
    assert [record.image_id for record in load(options(path, uncaptioned_images="ignore"), "train")] == ["10"]
    assert len(load(options(path), "val")) == 2


def test_duplicated_ids(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path)
    rewrite(path, lambda content: content["images"][2].update(id=11))
    rewrite(path, lambda content: content.update(annotations=content["annotations"][:4]))
    with pytest.raises(UserError, match=r"1 image ids occur more than once in 'images': 11"):
        load(options(path), "train")


@pytest.mark.parametrize("written", ["{images}/0.jpg", ".\\0.jpg"])
def test_absolute_names_and_backslashes_inside(tmp_path: Path, written: str) -> None:
    path = write_coco_json(tmp_path)
    name = written.format(images=tmp_path / "images")
    rewrite(path, lambda content: content["images"][0].update(file_name=name))
    assert load(options(path), "train")[0].image.read() == (tmp_path / "images" / "0.jpg").read_bytes()


@pytest.mark.parametrize("file_name", ["../secret.jpg", "/etc/hostname", "a/../../b.jpg", "..\\b.jpg"])
def test_path_traversal(tmp_path: Path, file_name: str) -> None:
    path = write_coco_json(tmp_path)
    rewrite(path, lambda content: content["images"][0].update(file_name=file_name))
    with pytest.raises(UserError, match=r"captions\.json: image id 10: file name "):
        load(options(path), "train")


@requires_shared
@pytest.mark.shared
@pytest.mark.parametrize(("name", "n_train", "n_validation"), [("coco", 2443, 72), ("flickr8k", 6000, 1000)])
def test_real_datasets(name: str, n_train: int, n_validation: int) -> None:
    real = options(SHARED / "data" / name / "captions.json", validation_split="val")
    train = load_split(real, "train", check_images=False)
    validation = load_split(real, "validation")
    assert (len(train), len(validation)) == (n_train, n_validation)
    assert not {record.image_id for record in train} & {record.image_id for record in validation}
    assert all(len(record.captions) >= 5 for record in validation)
