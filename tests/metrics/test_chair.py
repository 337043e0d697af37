import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, ReferenceSet
from hfcap.metrics.chair import Chair
from hfcap.metrics.objects.annotations import read_annotations
from hfcap.metrics.shared.coco_objects import CATEGORIES, coco_vocabulary, mentioned_objects
from hfcap.metrics.suite import build_metric


def test_eighty_categories_and_each_names_itself() -> None:
    assert len(CATEGORIES) == 80
    for category in CATEGORIES:
        assert mentioned_objects(f"there is {category} here".split()) == [category]


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("two dogs and three women", ["dog", "person"]),
        ("a hot dog on a table", ["hot dog", "dining table"]),
        ("a teddy bear on a bed", ["teddy bear", "bed"]),
        ("a brown bear", ["bear"]),
        ("a baby elephant near its mother", ["elephant"]),
        ("a baby in a crib", ["person"]),
        ("a person crosses the train tracks", ["person"]),
        ("a glass of orange juice", []),
        ("a man plays on a tennis court with a tennis racket", ["person", "tennis racket"]),
        ("knives and sandwiches and ponies", ["knife", "sandwich", "horse"]),
        ("a couple of sheep", ["sheep"]),
        ("a bow tie", ["tie"]),
        ("nothing of the kind", []),
    ],
)
def test_objects_of_a_caption(caption: str, objects: list[str]) -> None:
    assert mentioned_objects(caption.split()) == objects


def _chair(instances: Any) -> CaptionMetric:
    return build_metric("chair", {"instances": instances})


def _captions() -> CaptionSet:
    candidates = {"1": "a dog on a bench", "2": "a cat and a dog", "3": "a blue sky", "4": "a woman with a kite"}
    references = {"1": ["a dog"], "2": ["one cat"], "3": ["clouds"], "4": ["a lady outside"]}
    return CaptionSet(candidates, ReferenceSet(references))


def test_share_of_mentions_and_of_captions() -> None:
    metric = _chair({"1": ["dog", "bench"], "2": ["cat"], "3": [], "4": ["kite"]})
    statistics = metric.statistics(_captions())
    assert statistics.tolist() == [[0, 2, 0], [1, 2, 1], [0, 0, 0], [0, 2, 0]]
    assert metric.values(_captions(), statistics).tolist() == pytest.approx([1 / 6, 1 / 4])


def test_objects_of_human_captions_are_present() -> None:
    # The woman is annotated nowhere, but a reference speaks of a lady.
    metric = _chair({"1": ["dog", "bench"], "2": ["cat", "dog"], "3": [], "4": ["kite"]})
    assert metric.values(_captions(), metric.statistics(_captions())).tolist() == [0.0, 0.0]


def _instances(path: Path, names: dict[int, str]) -> Path:
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
        "annotations": [{"image_id": 1, "category_id": number} for number in names],
    }
    path.write_text(json.dumps(content))
    return path


def test_reads_instances(tmp_path: Path) -> None:
    path = _instances(tmp_path / "instances.json", {18: "dog", 15: "bench"})
    assert read_annotations([path], coco_vocabulary()) == {"1": frozenset({"dog", "bench"}), "2": frozenset()}
    assert _chair(str(path)).signature()["annotated_images"] == 2
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": []}))
    assert read_annotations([path], coco_vocabulary()) == {"1": frozenset({"dog", "bench"})}, (
        "an annotation tells of its image too"
    )


@pytest.mark.parametrize("content", ["[]", '{"images": [], "annotations": []}', '{"categories": 3}'])
def test_wrong_instances_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"instances\.json"):
        _chair(path)


def test_other_categories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dragon"):
        _chair(_instances(tmp_path / "instances.json", {1: "dragon"}))


def test_missing_instances_and_images() -> None:
    with pytest.raises(
        UserError, match=r"'chair' needs to know which objects .*; give its option instances, COCO's inst"
    ):
        Chair()
    with pytest.raises(
        UserError, match=r"'chair': 2 images, for example '2', are not .*; give the file of their split"
    ):
        _chair({"1": ["dog"], "3": []}).statistics(_captions())


def test_values_of_sums() -> None:
    """Of several resamples at once; without mentions there is no share of them, without images none of captions."""
    metric = _chair({"1": []})
    sums = np.array([[3.0, 12.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = metric.from_sums(sums, 8)
    assert found[[0, 2]].tolist() == [[0.25, 0.25], [1.0, 0.125]]
    assert math.isnan(found[1, 0]) and found[1, 1] == 0.0
    none = metric.from_sums(np.zeros(3), 0)
    assert none.shape == (2,) and np.isnan(none).all()
    assert metric.from_sums(sums[None], 8).shape == (1, 3, 2)


def test_values_of_single_images() -> None:
    metric = _chair({"1": ["dog", "bench"], "2": ["cat"], "3": [], "4": ["kite"]})
    each = metric.per_image(metric.statistics(_captions()))
    assert each["chair_i"][[0, 1, 3]].tolist() == [0.0, 0.5, 0.0] and math.isnan(each["chair_i"][2])
    assert each["chair_s"].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_instances_of_several_files_go_together(tmp_path: Path) -> None:
    first = _instances(tmp_path / "first.json", {18: "dog"})
    second = _instances(tmp_path / "second.json", {2: "cat"})
    assert read_annotations([first, second], coco_vocabulary()) == {"1": frozenset({"dog", "cat"}), "2": frozenset()}
    assert _chair([str(first), second]).signature()["annotated_images"] == 2


def test_empty_captions_mention_nothing() -> None:
    captions = CaptionSet({"1": "", "2": "a dog"}, ReferenceSet({"1": ["..."], "2": [""]}))
    assert _chair({"1": [], "2": []}).statistics(captions).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_phrases_as_in_the_original_rules() -> None:
    assert mentioned_objects(["a", "baseball", "player"]) == ["person"]
    assert mentioned_objects(["a", "passenger", "train"]) == ["train"]
    assert mentioned_objects(["an", "orange", "and", "a", "banana"]) == ["orange", "banana"]


PHRASES = {
    # The double words of the reference implementation (Rohrbach et al.), each one object or none.
    "motor bike": ["motorcycle"], "motor cycle": ["motorcycle"], "air plane": ["airplane"],
    "traffic light": ["traffic light"], "street light": ["traffic light"], "traffic signal": ["traffic light"],
    "stop light": ["traffic light"], "fire hydrant": ["fire hydrant"], "stop sign": ["stop sign"],
    "parking meter": ["parking meter"], "suit case": ["suitcase"], "sports ball": ["sports ball"],
    "baseball bat": ["baseball bat"], "baseball glove": ["baseball glove"], "tennis racket": ["tennis racket"],
    "wine glass": ["wine glass"], "wine glasses": ["wine glass"], "hot dog": ["hot dog"],
    "cell phone": ["cell phone"], "mobile phone": ["cell phone"], "teddy bear": ["teddy bear"],
    "hair drier": ["hair drier"], "potted plant": ["potted plant"], "bow tie": ["tie"],
    "laptop computer": ["laptop"], "stove top oven": ["oven"], "home plate": [], "train track": [],
    "toilet seat": ["toilet"],
    # Its rules for animals and vehicles, and what else is of the kind.
    **{f"{age} {animal}": [animal] for age in ("baby", "adult")
       for animal in ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")},
    **{f"{age} {word}": [] for age in ("baby", "adult") for word in ("animal", "cub")},
    "baby elephants": ["elephant"], "baby": ["person"], "adult": ["person"],
    "passenger train": ["train"], "passenger jet": ["airplane"], "passenger plane": ["airplane"],
    "passenger bus": ["bus"], "passenger ferry": ["boat"], "passenger trains": ["train"], "passenger": ["person"],
    "baseball player": ["person"], "football players": ["person"], "basketball player": ["person"],
    "volleyball player": ["person"], "baseball": ["sports ball"], "tennis player": ["person"],
}  # fmt: skip


@pytest.mark.parametrize("phrase", PHRASES)
def test_double_words_are_one_object(phrase: str) -> None:
    assert mentioned_objects(["a", *phrase.split(), "here"]) == PHRASES[phrase]
