"""Loading: epochs are partitions, deterministic, fair to every process; workers change nothing."""

from __future__ import annotations

import math
import os
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from hfcap.data.images import FileImage
from hfcap.data.loading import (
    BatchLoader,
    BlankInputs,
    CaptionBatch,
    CaptionDataset,
    CaptionItem,
    Collate,
    PixelInputs,
    epoch_batches,
    image_loader,
)
from hfcap.schema import CaptionedImage

START, END, PAD = 1, 2, 0
PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class NumberedInputs:
    """Image inputs whose values tell their index."""

    encoded = True
    plan = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((2, 3), float(index))


@given(
    n_images=st.integers(1, 150),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 10),
    epoch=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_an_epoch_is_a_partition(n_images: int, batch_size: int, world_size: int, seed: int, epoch: int) -> None:
    lengths = [random.Random(seed).randint(3, 60) for _ in range(n_images)]
    ranks = [epoch_batches(lengths, batch_size, seed, epoch, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1, "a process would wait for the others for ever"
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    seen = sorted(index for batches in ranks for batch in batches for index in batch)
    lost = set(range(n_images)) - set(seen)
    assert len(seen) == len(set(seen))
    # Only a last batch that cannot give every process an image is left out.
    assert len(lost) < world_size
    if world_size == 1:
        assert len(ranks[0]) == math.ceil(n_images / batch_size)


def test_same_seed_and_epoch_same_batches_others_differ() -> None:
    lengths = [10 + number % 13 for number in range(100)]
    first = epoch_batches(lengths, 8, seed=1, epoch=0)
    assert first == epoch_batches(lengths, 8, seed=1, epoch=0)
    others = [epoch_batches(lengths, 8, seed=1, epoch=1), epoch_batches(lengths, 8, seed=2, epoch=0)]
    assert all(
        {frozenset(batch) for batch in other} != {frozenset(batch) for batch in first} and other != first
        for other in others
    )


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_newer_hfcap_continues_in_the_same_order(world_size: int) -> None:
    """Written out: shuffle, sort in windows of 16 batches of all processes together, shuffle the batches."""
    lengths = random.Random(3).choices(range(5, 30), k=101)
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 2)
    shuffled = torch.randperm(101, generator=generator).tolist()
    together, window = 2 * world_size, 32 * world_size
    whole: list[list[int]] = []
    for number, index in enumerate(sorted(range(101), key=lambda k: (k // window, lengths[shuffled[k]]))):
        if number % window % together == 0:
            whole.append([])
        whole[-1].append(shuffled[index])
    whole = [batch for batch in whole if len(batch) >= world_size]
    order = torch.randperm(len(whole), generator=generator).tolist()
    for rank in range(world_size):
        expected = [whole[number][rank::world_size] for number in order]
        for keys in (lengths, np.array(lengths), [((9, 9), length) for length in lengths]):
            batches = epoch_batches(keys, 2, seed=7, epoch=2, rank=rank, world_size=world_size)
            assert list(batches) == expected and batches == expected and batches[3:7] == expected[3:7]


def test_batches_come_in_random_order_whatever_their_length() -> None:
    """Sorted inside a window of 16, an epoch would otherwise always begin with the shortest captions."""
    lengths = list(range(64))
    first_places, first_mates = [], []
    for epoch in range(160):
        batches = epoch_batches(lengths, 4, seed=0, epoch=epoch)
        (place,) = [number for number, batch in enumerate(batches) if 0 in batch]
        first_places.append(place)
        first_mates.append(sorted(batches[place]))
    # One window: the same batches each epoch, each of them in every one of the 16 places about 10 times.
    assert set(map(tuple, first_mates)) == {(0, 1, 2, 3)}
    counts = [first_places.count(place) for place in range(16)]
    assert min(counts) >= 1 and max(counts) <= 22  # four standard deviations of a count (3.1) around 10


def test_windows_hold_other_images_each_epoch() -> None:
    """With more than one window, who shares a batch with whom changes from epoch to epoch."""
    lengths = list(range(128))
    mates: set[frozenset[int]] = {
        frozenset(*(batch for batch in epoch_batches(lengths, 4, 0, epoch) if 0 in batch)) for epoch in range(20)
    }
    assert len(mates) > 15


def test_batches_hold_images_of_similar_length() -> None:
    lengths = random.Random(0).choices(range(5, 100), k=400)

    def padding(batches: Sequence[list[int]]) -> int:
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    order = random.Random(1).sample(range(400), 400)
    unsorted = [order[first : first + 8] for first in range(0, 400, 8)]
    assert padding(epoch_batches(lengths, 8, 0, 0)) < padding(unsorted) / 3


def test_lengths_do_not_come_in_order() -> None:
    """Grouping must not turn into a curriculum from short to long captions."""
    lengths = list(range(256))
    means = [sum(batch) / len(batch) for batch in epoch_batches(lengths, 8, 0, 0)]
    assert means != sorted(means) and means != sorted(means, reverse=True)


def _tokens(n_images: int, n_captions: int = 5) -> list[list[list[int]]]:
    return [[[10 + image, 50 + caption] for caption in range(n_captions)] for image in range(n_images)]


def test_captions_are_drawn_anew_each_epoch_and_alike_each_time() -> None:
    dataset = CaptionDataset(NumberedInputs(20), _tokens(20), captions_per_image=2, seed=3)
    epochs = [[dataset[(epoch, index)][1] for index in range(20)] for epoch in range(6)]
    again = CaptionDataset(NumberedInputs(20), _tokens(20), captions_per_image=2, seed=3)
    assert epochs[1] == [again[(1, index)][1] for index in range(20)]
    other_seed = CaptionDataset(NumberedInputs(20), _tokens(20), captions_per_image=2, seed=4)
    assert epochs[1] != [other_seed[(1, index)][1] for index in range(20)]
    assert epochs[0] != epochs[1]
    for index in range(20):
        drawn = [epoch[index] for epoch in epochs]
        assert all(len(captions) == 2 and captions[0] != captions[1] for captions in drawn)
        assert all(caption in dataset.tokens[index] for captions in drawn for caption in captions)
    everything = {tuple(caption) for epoch in epochs for captions in epoch for caption in captions}
    assert len(everything) > 80  # of 100: no caption is left out for good


def test_captions_drawn_depend_on_seed_epoch_and_image() -> None:
    """Written out, since a newer hfcap must draw the same."""
    dataset = CaptionDataset(NumberedInputs(3), _tokens(3, n_captions=5), 3, seed=9)
    for epoch in range(3):
        for index in range(3):
            expected = random.Random(f"9/{epoch}/{index}").sample(range(5), 3)
            assert dataset.drawn(epoch, index) == expected
            item = dataset[(epoch, index)]
            assert item.captions == [dataset.tokens[index][number] for number in expected]
            assert item.number == index and item.shown is None and float(item.image.mean()) == index


@pytest.mark.parametrize("captions_per_image", [None, 5, 9])
def test_all_captions_where_there_are_no_more(captions_per_image: int | None) -> None:
    dataset = CaptionDataset(NumberedInputs(3), _tokens(3, n_captions=4), captions_per_image, seed=0)
    assert sorted(map(list, dataset[(0, 1)][1])) == _tokens(3, n_captions=4)[1]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedImage]:
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(10):
        path = folder / f"{number}.jpg"
        Image.new("RGB", (20 + number, 16), (25 * number, 10, 200)).save(path, "JPEG")
        found.append(CaptionedImage(str(number), path.name, ("an image",), FileImage(path)))
    return found


def _all_batches(inputs: PixelInputs, num_workers: int, epoch: int = 1) -> list[CaptionBatch]:
    dataset = CaptionDataset(inputs, _tokens(len(inputs)), 2, seed=0)
    batches = epoch_batches([1] * len(inputs), 4, 0, epoch)
    return list(BatchLoader(dataset, Collate([START], END, PAD, inputs), num_workers).load(batches, epoch))


def test_workers_change_nothing(records: list[CaptionedImage]) -> None:
    inputs = PixelInputs(records, PROCESSOR)
    alone, with_workers = _all_batches(inputs, 0), _all_batches(inputs, 2)
    assert len(alone) == len(with_workers) == 3
    for first, second in zip(alone, with_workers, strict=True):
        assert torch.equal(first.images, second.images)
        assert first.n_captions == second.n_captions
        for name in ("input_ids", "position_ids", "caption_index", "labels"):
            assert torch.equal(getattr(first.packed, name), getattr(second.packed, name))


def test_images_stay_with_their_captions(records: list[CaptionedImage]) -> None:
    inputs = PixelInputs(records, PROCESSOR)
    seen = set()
    for batch in _all_batches(inputs, 0):
        for row, image in enumerate(batch.images):
            index = int(batch.packed.input_ids[row, 1]) - 10  # the first word tells the image
            assert torch.equal(image, inputs[index])
            seen.add(index)
    assert seen == set(range(len(records)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_does_not_move_the_random_state(records: list[CaptionedImage], num_workers: int) -> None:
    """Else training with a full feature store would differ from training that fills it."""
    inputs = PixelInputs(records, PROCESSOR)
    before = torch.get_rng_state()
    _all_batches(inputs, num_workers)
    list(image_loader(inputs, [[0, 1]], num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_image_loader_keeps_the_order(records: list[CaptionedImage]) -> None:
    inputs = PixelInputs(records, PROCESSOR)
    batches = [[7, 2], [0, 9, 3]]
    for batch, images in zip(batches, image_loader(inputs, batches, 0), strict=True):
        assert torch.equal(images, torch.stack([inputs[index] for index in batch]))


def test_states_of_half_precision_come_back_as_float32() -> None:
    collate = Collate([START], END, PAD, NumberedInputs(2))
    states = torch.ones(2, 3, dtype=torch.bfloat16)
    batch = collate([CaptionItem(states, [[5]], 7), CaptionItem(states, [[6]], 3)])
    assert batch.numbers == batch.to(torch.device("cpu")).numbers == (7, 3)
    assert batch.encoded and batch.n_captions == 2
    moved = batch.to(torch.device("cpu"))
    assert moved.images.dtype == torch.float32 and moved.images.shape == (2, 2, 3)


def test_a_batch_keeps_all_it_holds_on_its_way_to_the_device() -> None:
    collate = Collate([START, 7], END, PAD, NumberedInputs(2))
    batch = collate([CaptionItem(torch.ones(2, 3), [[5], [6, 8]], 7), CaptionItem(torch.ones(2, 3), [[9]], 3, [[4]])])
    moved = batch.to(torch.device("cpu"))
    for each in (batch, moved):
        assert (each.encoded, each.n_captions, each.numbers, each.plan) == (True, 3, (7, 3), None)
        assert each.packed.input_ids.tolist() == [[START, 7, 5, START, 7, 6, 8], [START, 7, 4, PAD, PAD, PAD, PAD]]
        assert each.packed.labels[1].tolist() == [-100, 9, END, -100, -100, -100, -100]
    elsewhere = batch.to(torch.device("meta"))
    assert {elsewhere.images.device.type, elsewhere.packed.labels.device.type} == {"meta"}


def test_large_jpegs_give_the_pixels_of_their_whole(tmp_path: Path) -> None:
    """Pillow could decode them at a half, which is faster, and differs by two levels on average."""
    path = tmp_path / "large.jpg"
    Image.effect_mandelbrot((640, 480), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(path, "JPEG", quality=95)
    record = CaptionedImage("1", path.name, (), FileImage(path))
    for processor in (
        ViTImageProcessor(size={"height": 48, "width": 64}),
        CLIPImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60}),
        ConvNextImageProcessor(size={"shortest_edge": 224}),
    ):
        full = processor(images=Image.open(path), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(PixelInputs([record], processor).pixel_values([0]), full, atol=0.03, rtol=0)


def test_blank_images_are_mid_grey_and_of_the_same_shape(records: list[CaptionedImage]) -> None:
    inputs = PixelInputs(records, PROCESSOR)
    blank = BlankInputs(inputs)
    assert len(blank) == len(inputs)
    grey = PROCESSOR(images=Image.new("RGB", (8, 8), (127, 127, 127)), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(blank[3], grey, atol=0.01, rtol=0)
    alone = BlankInputs(PixelInputs(records[:1], PROCESSOR))
    assert len(alone) == 1 and alone[0].dtype == torch.float32 and not alone[0].any()


def test_inputs_can_be_sent_to_workers(records: list[CaptionedImage]) -> None:
    inputs = PixelInputs(records, PROCESSOR)
    assert torch.equal(pickle.loads(pickle.dumps(inputs))[0], inputs[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_from_one_loader_are_those_of_new_loaders(records: list[CaptionedImage], num_workers: int) -> None:
    """Workers stay from epoch to epoch, also behind an epoch that was broken off."""
    inputs = PixelInputs(records, PROCESSOR)
    dataset = CaptionDataset(inputs, _tokens(len(inputs)), 2, seed=0)
    loader = BatchLoader(dataset, Collate([START], END, PAD, inputs), num_workers)
    for epoch in range(3):
        batches = epoch_batches([1] * len(inputs), 4, 0, epoch)
        next(loader.load(batches, epoch + 7))
        expected = _all_batches(inputs, 0, epoch)
        found = list(loader.load(batches, epoch))
        assert len(found) == len(expected) == 3
        for first, second in zip(found, expected, strict=True):
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.packed.input_ids, second.packed.input_ids)


def test_workers_stay(records: list[CaptionedImage]) -> None:
    class Process:
        """Says which process made it."""

        encoded = True
        plan = None

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor([os.getpid()])

    inputs = Process()
    loader = BatchLoader(CaptionDataset(inputs, _tokens(4), 2, 0), Collate([START], END, PAD, inputs), 1)
    seen = {int(pid) for epoch in range(3) for batch in loader.load([[0, 1], [2, 3]], epoch) for pid in batch.images}
    assert len(seen) == 1 and os.getpid() not in seen


def test_pixels_travel_as_bytes_and_are_normalised_on_the_device(records: list[CaptionedImage]) -> None:
    inputs = PixelInputs(records, PROCESSOR)
    [first, *_] = _all_batches(inputs, 0)
    assert first.images.dtype == torch.uint8
    moved = first.to(torch.device("cpu"))
    assert moved.plan is None and moved.images.dtype == torch.float32
    numbers = [int(row[1]) - 10 for row in first.packed.input_ids]
    images: list[Any] = [Image.open(records[number].image.describe()) for number in numbers]
    expected = PROCESSOR(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(moved.images, expected, atol=1e-6, rtol=0)
    assert torch.equal(moved.to(torch.device("cpu")).images, moved.images)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_rows_of_two_number_types_keep_their_values(num_workers: int) -> None:
    """A feature store may hold float16 and bfloat16 shards; 90,112 is beyond float16."""
    rows: Any = [torch.tensor([1.5, 2.0]).half(), torch.tensor([1.5, 90112.0]).bfloat16()]
    [batch] = image_loader(rows, [[0, 1]], num_workers)
    assert batch.tolist() == [[1.5, 2.0], [1.5, 90112.0]]


def test_a_cut_is_no_end() -> None:
    """The end token was a target after the cut, and captioners learnt to stop in the middle of a word."""
    dataset = CaptionDataset(NumberedInputs(1), [[[5, 6, 7, 8], [5, 6, 9], [9]]], None, 0, max_tokens=3)
    batch = Collate([START], END, PAD, NumberedInputs(1))([dataset[(0, 0)]])
    rows = batch.packed
    found = {
        tuple(rows.input_ids[0][rows.caption_index[0] == number].tolist()): tuple(
            rows.labels[0][rows.caption_index[0] == number].tolist()
        )
        for number in range(3)
    }
    assert found == {(START, 5, 6, 7): (5, 6, 7, -100), (START, 5, 6, 9): (5, 6, 9, END), (START, 9): (9, END)}
