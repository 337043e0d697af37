"""Augmentation: words follow the mirror, draws depend on seed, epoch and image alone, nothing leaks elsewhere."""

from __future__ import annotations

import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTImageProcessorPil

from hfcap.data.augmentation import (
    AugmentedDataset,
    ImageAugmentation,
    drop_words,
    replace_synonyms,
    swap_directions,
)
from hfcap.data.images import FileImage
from hfcap.data.loading import BatchLoader, CaptionDataset, Collate, PixelInputs
from hfcap.data.packing import pack_captions
from hfcap.recipe.blocks import AugmentOptions
from hfcap.schema import CaptionedImage

# ---- left and right ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("A man on the left holds a cup.", "A man on the right holds a cup."),
        ("the Left side of a road", "the Right side of a road"),
        ("a dog looks LEFT", "a dog looks RIGHT"),
        ("the leftmost bird and the rightmost one", "the rightmost bird and the leftmost one"),
        ("a left-handed batter", "a right-handed batter"),
        ("people to the left and right of a bus", "people to the right and left of a bus"),
        ("his right hand, her left foot", "his left hand, her right foot"),
        ("a sign points left , a car turns right", "a sign points right , a car turns left"),
        ("two dogs", "two dogs"),
        ("bright upright cleft", "bright upright cleft"),
        ("", ""),
    ],
)
def test_clear_directions_are_exchanged(caption: str, mirrored: str) -> None:
    assert swap_directions(caption) == mirrored


@pytest.mark.parametrize(
    "caption",
    [
        "a train that has left the station",
        "a boy right behind a girl",
        "food left over in a bowl",
        "on the left a man has left",
        "all right",
        "left",
        "they do it right",
    ],
)
def test_other_meanings_keep_the_image_unmirrored(caption: str) -> None:
    assert swap_directions(caption) is None


WORDS = st.sampled_from(
    [
        "a",
        "the",
        "left",
        "right",
        "Right",
        "LEFT",
        "leftmost",
        "rightward",
        "side",
        "of",
        "and",
        "hand",
        "man",
        "to",
        ".",
    ]
)


@given(st.lists(WORDS, max_size=9).map(" ".join) | st.text(max_size=30))
def test_mirroring_twice_gives_the_caption_back(caption: str) -> None:
    once = swap_directions(caption)
    if once is None:
        assert re.search(r"\b(left|right)\b", caption, re.IGNORECASE)
        return
    assert swap_directions(once) == caption
    # Nothing else moved, and every direction did.
    pattern = r"(?i)\b(?:left|right)(?=\b|most|ward)"
    assert re.sub(pattern, "X", once) == re.sub(pattern, "X", caption)
    directions = [re.findall(pattern, text) for text in (caption, once)]
    assert all(ours.lower() != theirs.lower() for ours, theirs in zip(*directions, strict=True))
    assert all(ours.istitle() == theirs.istitle() for ours, theirs in zip(*directions, strict=True))


# ---- words ------------------------------------------------------------------------------------------------------


def test_synonyms_replace_words_and_keep_what_is_around_them() -> None:
    synonyms = {"sofa": ["couch"], "big": ["large"]}
    assert replace_synonyms("Big sofa, (sofa) bigger", synonyms, 1.0, random.Random(0)) == "Large couch, (couch) bigger"
    assert replace_synonyms("Big sofa", synonyms, 0.0, random.Random(0)) == "Big sofa"
    halves = [replace_synonyms("sofa", synonyms, 0.3, random.Random(seed)) for seed in range(400)]
    assert 80 < halves.count("couch") < 160


def test_word_dropout_hides_what_is_read_and_keeps_what_is_predicted() -> None:
    shown = drop_words(list(range(10, 1010)), 0.2, 3, random.Random(0))
    assert 140 < shown.count(3) < 260
    assert all(ours in (token, 3) for ours, token in zip(shown, range(10, 1010), strict=True))
    whole = pack_captions([[[10, 11], [12]]], [1], 2, 0)
    hidden = pack_captions([[[10, 11], [12]]], [1], 2, 0, shown=[[[10, 3], [3]]])
    assert hidden.input_ids.tolist() == [[1, 10, 3, 1, 3]]
    for name in ("labels", "position_ids", "caption_index"):
        assert torch.equal(getattr(hidden, name), getattr(whole, name))


# ---- images ---------------------------------------------------------------------------------------------------


def gradient_image(width: int = 60, height: int = 40) -> Image.Image:
    """Red grows to the right, green downwards."""
    x = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, 0)
    y = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=2))


def changed(options: AugmentOptions, flip: bool = False, seed: int = 0) -> Any:
    return np.asarray(ImageAugmentation(options)(gradient_image(), flip, random.Random(seed))).astype(int)


def test_mirrored() -> None:
    assert np.array_equal(changed(AugmentOptions(), flip=True), np.asarray(gradient_image())[:, ::-1])
    assert np.array_equal(changed(AugmentOptions()), np.asarray(gradient_image()))


def test_crops_keep_the_promised_area_and_move_about() -> None:
    options = AugmentOptions(crop_scale=0.5)
    crops = [changed(options, seed=seed) for seed in range(60)]
    areas = [crop.shape[0] * crop.shape[1] / 2400 for crop in crops]
    assert 0.45 < min(areas) < 0.6 and 0.9 < max(areas) <= 1
    for crop in crops:
        # A part of the image, in its own pixels: colours grow in even steps.
        assert (np.diff(crop[0, :, 0]) > 0).all() and (np.diff(crop[:, 0, 1]) > 0).all()
        assert 0.74 < (crop.shape[1] / crop.shape[0]) / 1.5 < 1.36
    assert len({(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in crops}) > 20


def test_rotation_leaves_no_empty_corner() -> None:
    image = Image.new("RGB", (80, 50), (200, 200, 200))
    for seed in range(20):
        turned = ImageAugmentation(AugmentOptions(rotation=30))(image, False, random.Random(seed))
        assert np.asarray(turned).min() > 190
    # Turning counter-clockwise brings what was on the right to the top: red grows upwards too.
    turns = [changed(AugmentOptions(rotation=30), seed=seed) for seed in range(20)]
    slopes = [turn[0, :, 0].mean() - turn[-1, :, 0].mean() for turn in turns]
    assert min(slopes) < -5 and max(slopes) > 5


def test_colours() -> None:
    grey = gradient_image().convert("L").convert("RGB")
    for seed in range(10):
        chance = random.Random(seed)
        pixels = np.asarray(ImageAugmentation(AugmentOptions(brightness=0.4, contrast=0.4))(grey, False, chance))
        assert (pixels[..., 0] == pixels[..., 2]).all()  # grey stays grey
    means = [changed(AugmentOptions(brightness=0.4), seed=seed).mean() for seed in range(30)]
    base = changed(AugmentOptions()).mean()
    assert min(means) < 0.75 * base and max(means) > 1.1 * base and min(means) > 0.55 * base
    spread = [changed(AugmentOptions(saturation=0.5), seed=seed).std(axis=2).mean() for seed in range(30)]
    original = changed(AugmentOptions()).std(axis=2).mean()
    assert min(spread) < 0.7 * original < 1.2 * original < max(spread)


# ---- the dataset ------------------------------------------------------------------------------------------------

PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
EVERYTHING = AugmentOptions(
    crop_scale=0.6,
    rotation=10,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    horizontal_flip=0.5,
    word_dropout=0.2,
    synonym_replacement=0.5,
)
NUMBERS = {"a": 10, "dog": 11, "on": 12, "the": 13, "left": 14, "right": 15, "hound": 16}
CAPTIONS = [("a dog on the left", "a dog"), ("the dog on the right", "a dog left"), ("the dog", "a dog on a dog")]


def tokenise(captions: Any) -> list[list[int]]:
    return [[NUMBERS[word] for word in caption.split()] for caption in captions]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedImage]:
    folder = tmp_path_factory.mktemp("images")
    gradient_image().save(folder / "image.png")
    image = FileImage(Path(folder / "image.png"))
    return [CaptionedImage(str(n), "image.png", captions, image) for n, captions in enumerate(CAPTIONS)]


def dataset(records: list[CaptionedImage], options: AugmentOptions = EVERYTHING, seed: int = 0) -> AugmentedDataset:
    tokens = [tokenise(record.captions) for record in records]
    inputs, synonyms = PixelInputs(records, PROCESSOR), {"dog": ["hound"]}
    captions = [record.captions for record in records]
    return AugmentedDataset(inputs, tokens, captions, None, seed, options, tokenise, synonyms, 3)


def same(ours: Any, theirs: Any) -> bool:
    return torch.equal(ours.image, theirs.image) and ours[1:] == theirs[1:]


def test_draws_depend_on_seed_epoch_and_image_alone(records: list[CaptionedImage]) -> None:
    first, again, other = dataset(records), dataset(records), dataset(records, seed=1)
    items = {(epoch, index): first[(epoch, index)] for epoch in range(4) for index in range(3)}
    for key in reversed(list(items)):
        assert same(again[key], items[key])
    assert not all(same(other[key], items[key]) for key in items)
    assert len({tuple(item.image.flatten().tolist()) for item in items.values()}) == len(items)
    assert same(pickle.loads(pickle.dumps(first))[(2, 1)], items[(2, 1)])


def test_workers_change_nothing(records: list[CaptionedImage]) -> None:
    batches = [[0, 2], [1]]
    collate = Collate([1], 2, 0, PixelInputs(records, PROCESSOR))
    alone, helped = ([*BatchLoader(dataset(records), collate, workers).load(batches, 1)] for workers in (0, 2))
    for ours, theirs in zip(alone, helped, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.packed.input_ids, theirs.packed.input_ids)
        assert torch.equal(ours.packed.labels, theirs.packed.labels)


def test_mirrored_images_have_mirrored_captions(records: list[CaptionedImage]) -> None:
    for how in ("swap", "skip"):
        options = AugmentOptions(horizontal_flip=0.5, flip_captions=how)
        mirrored: set[tuple[int, bool]] = set()
        for epoch in range(20):
            for index in range(3):
                item = dataset(records, options)[(epoch, index)]
                flipped = bool(item.image[0, 8, 0] > item.image[0, 8, -1])
                mirrored.add((index, flipped))
                words = [word for caption in item.captions for word in caption]
                if index == 0:
                    assert (NUMBERS["right"] in words, NUMBERS["left"] in words) == (flipped, not flipped)
        # Of the second image one caption says "a dog left", which may mean that it went away.
        assert mirrored == ({(0, True)} if how == "swap" else set()) | {(0, False), (1, False), (2, False), (2, True)}


def test_without_options_nothing_is_changed(records: list[CaptionedImage]) -> None:
    plain = CaptionDataset(PixelInputs(records, PROCESSOR), [tokenise(group) for group in CAPTIONS], None, 0)
    for epoch in range(2):
        for index in range(3):
            assert same(dataset(records, AugmentOptions())[(epoch, index)], plain[(epoch, index)])


def test_captions_can_be_changed_where_states_are_stored(records: list[CaptionedImage]) -> None:
    class States:
        encoded = True
        plan = None

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.full((1, 2), float(index))

    options = AugmentOptions(synonym_replacement=1.0, word_dropout=0.9)
    tokens = [tokenise(group) for group in CAPTIONS]
    found = AugmentedDataset(States(), tokens, CAPTIONS, None, 0, options, tokenise, {"dog": ["hound"]}, 3)[(0, 2)]
    assert found.image.tolist() == [[2.0, 2.0]]
    assert sorted(map(list, found.captions)) == sorted(tokenise(["the hound", "a hound on a hound"]))
    assert found.shown is not None and found.shown != found.captions


def test_right_now_is_no_direction() -> None:
    assert swap_directions("the dog is looking right now") is None
    assert swap_directions("the dog is looking right") == "the dog is looking left"
