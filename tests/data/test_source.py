from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hfcap import registry
from hfcap.data.source import Source, load_split
from hfcap.data.sources.coco_json import CocoJsonOptions
from hfcap.errors import UserError
from hfcap.recipe.blocks import DataOptions
from tests.data.sample_images import write_coco_json


def options(path: Path, **changes: object) -> CocoJsonOptions:
    return CocoJsonOptions.model_validate({"captions": str(path), "validation_split": "val", **changes})


@pytest.mark.parametrize("name", registry.names("sources"))
def test_every_source_file_registers_itself_under_its_name(name: str) -> None:
    source = registry.load("sources", name).REGISTERED
    assert isinstance(source, Source)
    assert issubclass(source.options, DataOptions)
    assert source.options.model_fields["source"].default == name
    assert source.description and "\n" not in source.description


def test_the_six_sources_are_there() -> None:
    assert {"coco", "coco_json", "folder", "hub", "scenes", "table"} <= set(registry.names("sources"))


def test_split_roles_map_to_the_sources_own_names(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path, n_images=6)
    assert [record.image_id for record in load_split(options(path), "train")] == ["10", "12", "14"]
    assert [record.image_id for record in load_split(options(path), "validation")] == ["11", "13", "15"]
    assert len(load_split(options(path, test_split="val"), "test")) == 3


def test_maximum_takes_the_first(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path, n_images=6)
    records = load_split(options(path, max_train_images=2), "train")
    assert [record.image_id for record in records] == ["10", "12"]
    assert len(load_split(options(path, max_train_images=2), "validation")) == 3


def test_empty_split_names_the_key_and_the_splits_that_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"split 'test' \(splits that exist: 'train', 'val'\).*data\.test_split"):
        load_split(options(write_coco_json(tmp_path)), "test")


def test_missing_and_corrupt_images_stop_the_run_unless_allowed(tmp_path: Path) -> None:
    path = write_coco_json(tmp_path, n_images=8)
    (tmp_path / "images" / "0.jpg").unlink()
    (tmp_path / "images" / "2.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    with pytest.raises(UserError, match=r"2 of 4 images.*0\.jpg: no such file.*2\.jpg: .*max_unreadable_images"):
        load_split(options(path), "train")
    allowed = options(path, max_unreadable_images=2)
    assert [record.file_name for record in load_split(allowed, "train")] == ["4.jpg", "6.jpg"]
    assert len(load_split(options(path), "train", check_images=False)) == 4


def test_unknown_source_offers_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown source 'coco_jason'; did you mean 'coco_json'"):
        load_split(DataOptions(source="coco_jason"), "train")


def test_records_can_travel_to_worker_processes(tmp_path: Path) -> None:
    records = load_split(options(write_coco_json(tmp_path)), "train")
    copies = pickle.loads(pickle.dumps(records))
    assert copies == records
    assert copies[0].image.read() == records[0].image.read()
