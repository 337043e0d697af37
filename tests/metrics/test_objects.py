"""Objects by the user's own vocabulary, and their precision and recall; expected values are counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.chair import Chair
from hfcap.metrics.objects.annotations import read_annotations
from hfcap.metrics.shared.object_words import read_vocabulary
from hfcap.metrics.suite import build_metric

WORDS = """# kitchen things
mug, cup, coffee cup
pan: frying pan, skillet
knife: knives
egg

person, man, woman, cook
man, person
-, pan pipe
"""


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "objects.txt"
    path.write_text(WORDS)
    return path


@pytest.mark.parametrize(
    ("caption", "mentions"),
    [
        ("two coffee cups and a skillet", [("mug",), ("pan",)]),
        ("knives and a knife", [("knife",)] * 2),
        ("a frying pan next to pans and pan pipes", [("pan",), ("pan",)]),
        ("the man and a woman", [("man", "person"), ("person",)]),
        ("persons", [("person", "man")]),
        ("a dog", []),
        ("", []),
    ],
)
def test_phrases_of_a_vocabulary(caption: str, mentions: list[tuple[str, ...]], words: Path) -> None:
    assert read_vocabulary(words).mentions(caption.split()) == mentions


def test_json_and_text_say_the_same(words: Path, tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    table = {
        "mug": ["cup", "coffee cup"],
        "pan": ["frying_pan", "skillet"],
        "knife": ["knives"],
        "egg": [],
        "person": ["man", "woman", "cook"],
        "man": ["person"],
        "-": ["pan pipe"],
    }
    path.write_text(json.dumps(table))
    found, expected = read_vocabulary(path), read_vocabulary(words)
    assert found.meanings == expected.meanings and found.names == expected.names == tuple(table)[:-1]
    assert found.sha256() == expected.sha256()
    path.write_text(json.dumps({**table, "egg": ["eggshell"]}))
    assert read_vocabulary(path).sha256() != expected.sha256()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", "# nothing\n", "v.txt: no objects in this vocabulary; write one a line"),
        ("v.txt", "cup\n\ncup, mug", "line 3: the object 'cup' is there already"),
        ("v.txt", ", mug", "line 1: no name of an object in front"),
        ("v.txt", "cup, ...", "'...' has no word; remove it"),
        ("v.json", '{"cup": "mug"}', "key 'cup' must be the list of the object's synonyms"),
        ("v.json", '{" ": []}', "no name of an object"),
        ("v.json", "[]", "must be a JSON object"),
        ("nowhere.txt", None, "not found"),
    ],
)
def test_wrong_vocabularies_are_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as found:
        read_vocabulary(path)
    assert message in str(found.value) and name in str(found.value)


LAYOUTS: dict[str, Any] = {
    "mapping.json": {"1": ["cup", "egg"], "2": []},
    "list.json": [{"image_id": 1, "objects": ["cup"]}, {"image_id": 1, "objects": ["egg"]}, {"id": "2", "objects": []}],
    "amber.json": [
        {"id": 1, "type": "generative", "truth": ["mug", "egg"], "hallu": ["pan"]},
        {"id": 2, "type": "generative", "truth": [], "hallu": []},
        {"id": 3, "type": "discriminative-hallucination", "truth": "yes"},
    ],
    "coco.json": {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 5, "name": "mug"}, {"id": 6, "name": "egg"}],
        "annotations": [{"image_id": 1, "category_id": 5}, {"image_id": 1, "category_id": 6}],
    },
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "lines.jsonl"])
def test_layouts_of_annotations(layout: str, words: Path, tmp_path: Path) -> None:
    path = tmp_path / layout
    rows = LAYOUTS["list.json"] if layout == "lines.jsonl" else LAYOUTS[layout]
    path.write_text("\n".join(map(json.dumps, rows)) if layout == "lines.jsonl" else json.dumps(rows))
    assert read_annotations([path], read_vocabulary(words)) == {"1": frozenset({"mug", "egg"}), "2": frozenset()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1": ["dragon"]}, "'dragon' is none of the objects of objects.txt; correct it, or give a vocabulary"),
        ({"1": "cup"}, "the objects must be a list of names, not 'cup'"),
        ([3], "entry 0: expected an object with image_id and objects"),
        ([{"image_id": 1}], "entry 0: no image_id and objects; add them"),
        ([], "no annotated images"),
        (3, "no COCO instance annotations"),
    ],
)
def test_wrong_annotations_are_named(content: Any, message: str, words: Path, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as found:
        read_annotations([path], read_vocabulary(words))
    assert message in str(found.value) and "annotations.json" in str(found.value)


def _captions() -> CaptionSet:
    candidates = {
        "1": "a man with a cup and another cup",  # mug twice, right; man for the annotated person
        "2": "eggs in a skillet near a knife",  # egg and pan right, knife not
        "3": "a sunny day",
        "4": "a woman",  # nothing is annotated
    }
    references = {"1": ["a cook"], "2": ["a frying pan"], "3": ["a coffee cup"], "4": ["an egg"]}
    return CaptionSet(candidates, ReferenceSet(references))


ANNOTATED = {"1": ("mug", "man"), "2": ("egg",), "3": ("pan", "knife"), "4": ()}


def test_precision_and_recall_of_objects(words: Path) -> None:
    """With the human captions: 1 adds person, 2 pan, 3 mug, 4 egg."""
    metric = build_metric("objects", {"instances": ANNOTATED, "vocabulary": words})
    statistics = metric.statistics(_captions())
    assert statistics.tolist() == [[2, 2, 3], [2, 3, 2], [0, 0, 3], [0, 1, 1]]
    assert metric.values(_captions(), statistics).tolist() == pytest.approx([4 / 6, 4 / 9, 8 / 15])
    each = metric.per_image(statistics)
    assert math.isnan(each["object_precision"][2]) and each["object_recall"][2] == each["object_f1"][2] == 0
    assert np.isnan(metric.from_sums(np.zeros(3), 0)).all()


def test_annotations_alone_say_what_is_there(words: Path) -> None:
    options = {"instances": ANNOTATED, "vocabulary": words, "references": False}
    objects, chair = build_metric("objects", options), build_metric("chair", options)
    assert objects.statistics(_captions()).tolist() == [[2, 2, 2], [1, 3, 1], [0, 0, 2], [0, 1, 0]]
    statistics = chair.statistics(_captions())
    assert statistics.tolist() == [[0, 3, 0], [2, 3, 1], [0, 0, 0], [1, 1, 1]]
    assert chair.values(_captions(), statistics).tolist() == pytest.approx([3 / 7, 2 / 4])


def test_human_captions_alone_say_what_is_there(words: Path) -> None:
    """A cook is a person, and a man may be one; in 2 there is only the pan."""
    chair = build_metric("chair", {"vocabulary": words})
    assert chair.statistics(_captions()).tolist() == [[2, 3, 1], [2, 3, 1], [0, 0, 0], [1, 1, 1]]
    assert chair.signature()["annotated_images"] == 0


def test_signature_tells_vocabularies_apart(words: Path) -> None:
    hash_of = read_vocabulary(words).sha256()
    expected = {"objects": "objects.txt", "vocabulary": hash_of, "n_objects": 6, "annotated_images": 4}
    assert build_metric("objects", {"instances": ANNOTATED, "vocabulary": words}).signature() == expected
    without = build_metric("chair", {"instances": ANNOTATED, "vocabulary": words, "references": False})
    assert without.signature() == {**expected, "references": False}


def test_something_must_say_what_is_there(words: Path) -> None:
    for options in ({}, {"vocabulary": words, "references": False}):
        with pytest.raises(UserError, match="metric 'objects' needs to know which objects are in the images; give"):
            build_metric("objects", options)
    with pytest.raises(UserError, match=r"instances: 'dragon' is none of the objects of objects\.txt"):
        build_metric("chair", {"instances": {"1": ["dragon"]}, "vocabulary": words})


def test_the_users_own_vocabulary_of_coco_equals_the_built_in_one(tmp_path: Path) -> None:
    """The same words in a file give the same values as hfcap's table."""
    path = tmp_path / "few.txt"
    path.write_text("dog, puppy\ncat, kitten\nbench\nperson, woman, lady\nkite\n-, hot dog\n")
    captions = CaptionSet(
        {"1": "a puppy on benches", "2": "a cat and a hot dog", "3": "a lady with a kite"},
        ReferenceSet({"1": ["a dog"], "2": ["one kitten"], "3": ["a woman outside"]}),
    )
    instances = {"1": ["dog"], "2": ["cat"], "3": []}
    own = build_metric("chair", {"instances": instances, "vocabulary": path}).statistics(captions)
    assert own.tolist() == [[1, 2, 1], [0, 1, 0], [1, 2, 1]]
    table = Chair(Chair.options_class.model_validate({"instances": instances})).statistics(captions)
    assert table[[0, 2]].tolist() == own[[0, 2]].tolist()
