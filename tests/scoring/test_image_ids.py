"""Ids of predictions that are spelled in another way than those of the references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfcap.errors import UserError
from hfcap.metrics.shared.image_ids import matched_ids
from hfcap.scoring import read_predictions, score_files


@pytest.mark.parametrize(
    "spelled", ["000000391895", "COCO_val2014_000000391895.jpg", "/home/me/val2014/COCO_val2014_000000391895.jpg"]
)
def test_cocos_names_and_numbers(spelled: str) -> None:
    assert matched_ids([spelled], ["391895", "4"]) == {spelled: "391895"}


def test_only_what_is_certain_is_matched() -> None:
    assert matched_ids(["x/a.jpg"], ["a.png", "a.jpg"]) == {"x/a.jpg": "a.jpg"}
    assert matched_ids(["x/a.gif"], ["a.png", "a.jpg"]) == {}
    assert matched_ids(["x/a.jpg", "y/a.jpg"], ["a.jpg"]) == {}
    assert matched_ids(["007", "7"], ["7"]) == {}
    assert matched_ids(["/p/dog.jpg"], ["12", "13"], {"12": "dog.jpg", "13": "cat.jpg"}) == {"/p/dog.jpg": "12"}


def test_captions_of_a_folder_are_scored_against_a_coco_file(tmp_path: Path) -> None:
    """`hfcap caption FOLDER -o FILE` writes paths as ids."""
    images = [{"id": 12, "file_name": "dog.jpg"}, {"id": 13, "file_name": "cat.jpg"}]
    annotations = [{"image_id": 12, "caption": "a red dog"}, {"image_id": 13, "caption": "two cats"}]
    (tmp_path / "r.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    rows = [("/photos/cat.jpg", "two cats"), ("/photos/dog.jpg", "a red dog")]
    lines = [json.dumps({"image_id": name, "file_name": name, "caption": caption}) for name, caption in rows]
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    said: list[str] = []
    report = score_files(tmp_path / "p.jsonl", tmp_path / "r.json", warn=said.append, n_resamples=0)
    assert report.metrics["bleu_1"] == pytest.approx(1)
    assert said[0].startswith("2 image ids are matched by file name or number")
    (tmp_path / "p.jsonl").write_text(lines[0].replace("cat.jpg", "bird.jpg") + "\n")
    with pytest.raises(UserError, match=r"1 of 1 ids, for example ./photos/bird\.jpg., are not in"):
        score_files(tmp_path / "p.jsonl", tmp_path / "r.json", warn=said.append, n_resamples=0)


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.csv", "image_id;caption\n391895.0;a dog\n"), ("p.tsv", "image_id\tcaption\n391895\ta dog\n")],
)
def test_tables_of_spreadsheets(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_predictions(tmp_path / name) == {"391895": "a dog"}
