"""AMBER's Cog; expected values are counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.suite import build_metric

# AMBER's relation.json maps an object to words that are close to it.
WORDS = {
    "table": ["desk"],
    "person": ["man", "woman"],
    "man": ["person"],
    "cup": ["mug"],
    "chair": [],
    "sky": ["cloud"],
}
ROWS = [
    {"id": 1, "type": "generative", "truth": ["table"], "hallu": ["person", "cup"]},
    {"id": 2, "type": "generative", "truth": ["sky", "man"], "hallu": ["chair"]},
    {"id": 3, "type": "generative", "truth": ["chair"], "hallu": []},
    {"id": 1005, "type": "discriminative-hallucination", "truth": "no"},
]
CANDIDATES = {
    "1": "a woman with a mug, a cup and a cloud on a desk",  # person, cup: targets; sky, table: none
    "2": "a man on a chair under the sky",  # the man is there, the chair is a target
    "3": "a table next to a chair",  # no targets
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "relation.json").write_text(json.dumps(WORDS))
    (tmp_path / "annotations.json").write_text(json.dumps(ROWS))
    return {"vocabulary": str(tmp_path / "relation.json"), "instances": str(tmp_path / "annotations.json")}


def _captions() -> CaptionSet:
    return CaptionSet(CANDIDATES, ReferenceSet({key: ["a picture"] for key in CANDIDATES}))


def test_targets_of_amber(files: dict[str, str]) -> None:
    metric = build_metric("cog", {**files, "references": False})
    statistics = metric.statistics(_captions())
    assert statistics.tolist() == [[2, 4, 2], [1, 3, 1], [0, 2, 0]]
    assert metric.values(_captions(), statistics).tolist() == pytest.approx([3 / 9, 3 / 3])
    each = metric.per_image(statistics)
    assert each["cog"].tolist() == pytest.approx([2 / 4, 1 / 3, 0]) and math.isnan(each["cog_cover"][2])
    assert np.isnan(metric.from_sums(np.zeros(3), 0)).all()
    assert metric.signature()["n_targets"] == 3


def test_what_is_in_the_image_is_no_target(files: dict[str, str]) -> None:
    """A human caption mentions the cup: with the human captions it is there."""
    captions = CaptionSet(CANDIDATES, ReferenceSet({"1": ["a cup"], "2": ["the sky"], "3": ["a chair"]}))
    assert build_metric("cog", files).statistics(captions)[0].tolist() == [1, 4, 1]
    assert build_metric("cog", {**files, "references": False}).statistics(captions)[0].tolist() == [2, 4, 2]


def test_a_word_of_several_objects_is_the_one_that_is_a_target(files: dict[str, str]) -> None:
    """ "Person" may also be a man: not in the image, it is the target."""
    options = {**files, "references": False, "targets": {"1": ("man",), "2": (), "3": ()}}
    captions = CaptionSet({**CANDIDATES, "1": "a person"}, ReferenceSet({key: ["a picture"] for key in CANDIDATES}))
    assert build_metric("cog", options).statistics(captions)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("layout", ["mapping.json", "lines.jsonl", "amber.json"])
def test_targets_in_a_file_of_their_own(layout: str, files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / layout
    rows = [{"image_id": 1, "objects": ["cup"]}, {"image_id": 2, "objects": []}, {"image_id": 3, "objects": ["table"]}]
    contents = {
        "mapping.json": json.dumps({row["image_id"]: row["objects"] for row in rows}),
        "lines.jsonl": "\n".join(map(json.dumps, rows)),
        "amber.json": json.dumps([{"id": row["image_id"], "hallu": row["objects"], "truth": []} for row in rows]),
    }
    path.write_text(contents[layout])
    metric = build_metric("cog", {**files, "references": False, "targets": str(path)})
    assert metric.statistics(_captions()).tolist() == [[1, 4, 1], [0, 3, 0], [1, 2, 1]]


def test_what_is_missing_is_said(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="metric 'cog' needs to know which objects are in the images"):
        build_metric("cog")
    path = tmp_path / "plain.json"
    path.write_text(json.dumps([{"id": 1, "objects": ["cup"]}]))
    with pytest.raises(UserError, match="metric 'cog' needs the objects that people might imagine in the images: give"):
        build_metric("cog", {**files, "instances": str(path)})
    with pytest.raises(UserError, match=r"cog\.targets: 'dragon' is none of the objects of relation\.json"):
        build_metric("cog", {**files, "targets": {"1": ("dragon",)}})
    with pytest.raises(UserError, match=r"cog\.targets: 2 images, for example '2', have no list of targets; give"):
        build_metric("cog", {**files, "targets": {"1": ("cup",)}}).statistics(_captions())
    path.write_text(json.dumps([*ROWS, {"id": 4, "truth": []}]))
    with pytest.raises(UserError, match=r"plain\.json: entry 4: no image_id and hallu; add them"):
        build_metric("cog", {**files, "instances": str(path)})
