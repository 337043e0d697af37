from __future__ import annotations

import io
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from hfcap.data.images import decode_image
from hfcap.data.scenes.layout import COLOURS, SHAPES, Placed, Scene
from hfcap.data.scenes.rendering import SceneImage
from hfcap.data.source import load_split
from hfcap.data.sources.scenes import ScenesOptions, load
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage

OPTIONS = ScenesOptions(n_train=400, n_validation=100, n_test=100)
NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
NOUN_PHRASE = re.compile(
    rf"\b(a|an|one|two|three|four) ((?:small|large) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b"
)


@pytest.fixture(scope="module")
def records() -> list[CaptionedImage]:
    return load(OPTIONS, "train") + load(OPTIONS, "validation") + load(OPTIONS, "test")


def scene_of(record: CaptionedImage) -> Scene:
    assert isinstance(record.image, SceneImage)
    return record.image.scene


def objects_of(scene: Scene, group: int) -> list[Placed]:
    return [placed for placed in scene.objects if placed.group == group]


def test_same_seed_same_bytes_other_seed_other_scenes() -> None:
    first, second = load(OPTIONS, "train"), load(OPTIONS, "train")
    assert first == second
    assert all(one.image.read() == other.image.read() for one, other in zip(first[:20], second[:20], strict=True))
    reseeded = load(OPTIONS.model_copy(update={"seed": 1}), "train")
    assert sum(one.captions == other.captions for one, other in zip(first, reseeded, strict=True)) < 40


def test_scenes_do_not_depend_on_how_many_there_are() -> None:
    assert load(OPTIONS.model_copy(update={"n_train": 20}), "train") == load(OPTIONS, "train")[:20]


def test_no_content_is_shown_in_two_splits(records: list[CaptionedImage]) -> None:
    owners: dict[str, set[str]] = {}
    for record in records:
        owners.setdefault(scene_of(record).meaning(), set()).add(record.image_id.split("-")[0])
    assert Counter(len(splits) for splits in owners.values()) == {1: len(owners)}
    assert len({record.image_id for record in records}) == 600


def test_five_different_captions_each(records: list[CaptionedImage]) -> None:
    assert all(len(set(record.captions)) == 5 for record in records)


def test_named_objects_are_in_the_scene_with_count_colour_shape_and_size(records: list[CaptionedImage]) -> None:
    phrases = 0
    for record in records:
        groups = scene_of(record).groups
        looks = {(group.count, group.colour, group.shape, size) for group in groups for size in ("", group.size)}
        for caption in record.captions:
            for number, size, colour, shape in NOUN_PHRASE.findall(caption):
                assert (NUMBERS[number], colour, shape, size.strip()) in looks, (caption, groups)
                assert (number == "an") == ((size or colour)[0] in "aeiou" and NUMBERS[number] == 1), caption
                phrases += 1
    assert phrases > 3 * len(records)


def test_relations_in_captions_hold_for_every_object(records: list[CaptionedImage]) -> None:
    holds = {
        "to the left of": lambda a, b: a.x + a.radius < b.x - b.radius,
        "to the right of": lambda a, b: a.x - a.radius > b.x + b.radius,
        "above": lambda a, b: a.y + a.radius < b.y - b.radius,
        "below": lambda a, b: a.y - a.radius > b.y + b.radius,
    }
    seen: Counter[str] = Counter()
    for record in records:
        scene = scene_of(record)
        for caption in record.captions:
            for words, relation in holds.items():
                if f" {words} " not in caption or "one above the other" in caption:
                    continue
                subject, _ = caption.split(f" {words} ")
                first = next(i for i, group in enumerate(scene.groups) if f"{group.colour} {group.shape}" in subject)
                seen[words] += 1
                for a in objects_of(scene, first):
                    assert all(relation(a, b) for b in objects_of(scene, 1 - first)), (caption, scene)
    assert min(seen[words] for words in holds) > 30


def test_places_and_arrangements_hold(records: list[CaptionedImage]) -> None:
    for record in records:
        scene, text = scene_of(record), " | ".join(record.captions)
        x, y = (np.array([getattr(placed, axis) for placed in scene.objects]) for axis in "xy")
        if " left" in text and scene.place:
            assert x[0] < 0.35
        if "at the bottom" in text and scene.place:
            assert y[0] > 0.65
        if "in a row" in text:
            assert np.ptp(y) < 0.1 < 0.2 * len(x) <= np.ptp(x) + 0.2
        if "one above the other" in text:
            assert np.ptp(x) < 0.1 < np.ptp(y)


def test_objects_stay_in_the_image_and_apart(records: list[CaptionedImage]) -> None:
    for record in records:
        objects = scene_of(record).objects
        for number, one in enumerate(objects):
            assert one.radius < one.x < 1 - one.radius and one.radius < one.y < 1 - one.radius
            for other in objects[:number]:
                assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_sizes_are_told_apart_by_a_clear_gap(records: list[CaptionedImage]) -> None:
    radii: dict[str, list[float]] = {"small": [], "large": []}
    for record in records:
        scene = scene_of(record)
        for placed in scene.objects:
            radii[scene.groups[placed.group].size].append(placed.radius)
    assert min(radii["large"]) > 1.4 * max(radii["small"])


REFERENCE_COLOURS = {
    "red": (255, 0, 0),
    "orange": (255, 140, 0),
    "yellow": (255, 220, 0),
    "green": (0, 150, 50),
    "blue": (0, 80, 255),
    "purple": (120, 40, 180),
    "pink": (255, 130, 190),
    "black": (0, 0, 0),
}


def test_pixels_have_the_named_colours(records: list[CaptionedImage]) -> None:
    checked = 0
    for record in records[:150]:
        scene = scene_of(record)
        pixels = np.asarray(decode_image(record.image)).astype(int)
        for placed in scene.objects:
            group = scene.groups[placed.group]
            if group.shape == "moon":
                continue  # the middle of a moon is hollow
            middle = pixels[int(placed.y * 96), int(placed.x * 96)]
            nearest = min(REFERENCE_COLOURS, key=lambda name: np.abs(middle - REFERENCE_COLOURS[name]).sum())
            assert nearest == group.colour, (record.image_id, middle)
            checked += 1
    assert checked > 200


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_differ_from_each_other(shape: str, records: list[CaptionedImage]) -> None:
    single = next(scene_of(record) for record in records if len(scene_of(record).objects) == 1)

    def drawn(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int_]]:
        scene = Scene(
            (type(single.groups[0])(1, "large", "black", name),),
            "in the middle",
            None,
            None,
            "plain",
            "grey",
            (Placed(0, 0.5, 0.5, 0.18, 0.0),),
            variation=0,
        )
        image = Image.open(io.BytesIO(SceneImage(scene, 96, "x").read()))
        return np.asarray(image.convert("L")).astype(int)

    own = drawn(shape)
    size = int((own < 100).sum())
    for other in set(SHAPES) - {shape}:
        assert int((np.abs(own - drawn(other)) > 60).sum()) > 0.08 * size, other


def test_no_caption_is_frequent_and_none_is_unspecific(records: list[CaptionedImage]) -> None:
    counts = Counter(caption for record in records for caption in record.captions)
    assert counts.most_common(1)[0][1] <= 0.01 * len(records)
    for caption in counts:
        assert any(shape in caption for shape in SHAPES) and any(colour in caption for colour in COLOURS), caption


def test_edges_are_smooth() -> None:
    pixels = np.asarray(decode_image(load(OPTIONS, "train")[0].image))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("image_size", [32, 96, 224])
def test_image_size(image_size: int) -> None:
    record = load(OPTIONS.model_copy(update={"image_size": image_size, "n_train": 1}), "train")[0]
    assert decode_image(record.image).size == (image_size, image_size)
    assert Image.open(io.BytesIO(record.image.read())).format == "PNG"


def test_records_are_small_and_picklable() -> None:
    records = load(OPTIONS, "train")
    content = pickle.dumps(records)
    assert pickle.loads(content) == records
    assert len(content) / len(records) < 1500


def test_splits_and_limits() -> None:
    options = ScenesOptions(n_train=10, n_validation=5, n_test=0, max_train_images=3)
    assert [len(load_split(options, split)) for split in ("train", "validation")] == [3, 5]
    with pytest.raises(UserError, match=r"split 'test' \(splits that exist: 'train', 'validation'\); data\.n_train"):
        load_split(options, "test")
    with pytest.raises(ValidationError, match="image_size"):
        ScenesOptions(image_size=4)
