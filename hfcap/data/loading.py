"""From records to batches: K captions per image, length-aware grouping, the same order for the same seed."""

from __future__ import annotations

import atexit
import io
import random
import signal
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from PIL.Image import open as open_image
from torch.utils.data import DataLoader, Dataset, Sampler

from hfcap.data.images import OpenedImage, decode_image
from hfcap.data.packing import AskedPrompt, pack_captions
from hfcap.data.packing import CaptionItem as CaptionItem
from hfcap.data.pixels import PixelPlan, plan_of
from hfcap.data.sampling.epochs import epoch_batches as epoch_batches
from hfcap.data.sampling.tokens import FlatTokens
from hfcap.errors import library_faults, reason_of
from hfcap.schema import IMAGE_FORMATS, CaptionedImage, Images, PackedCaptions, SizedImages, sent


class ImageInputs(Protocol):
    """What a captioner gets for each image: pixels, or the states a frozen encoder gave once.

    An item is a tensor, or `SizedImages` where images keep their shape: callers know which, so that its type is Any.

    Attributes:
        encoded: whether these are states of the encoder.
        plan: how pixels in bytes become what the captioner gets; None where they are that already. A whole batch of
            them goes through `prepared`.
    """

    encoded: bool

    @property
    def plan(self) -> PixelPlan | None:
        """See above."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def stacked(items: Sequence[Images]) -> Images:
    """Put the inputs of single images together: tensors to one, images that keep their shape side by side."""
    if isinstance(items[0], SizedImages):
        return SizedImages.joined(item for item in items if isinstance(item, SizedImages))
    return torch.stack([item for item in items if isinstance(item, torch.Tensor)])


def sizes_of(inputs: Any) -> list[tuple[int, int]] | None:
    """Return (width, height) of images that keep their shape; None where all inputs have one shape.

    Only to put like ones into one batch: as the file's header has them, (0, 0) where it cannot be read.
    """
    found = getattr(inputs, "sizes", None)  # inputs of other kinds have one shape
    sizes: list[tuple[int, int]] | None = None if found is None else found()
    return sizes


def _size_in_header(image: Any) -> tuple[int, int]:
    if isinstance(image, OpenedImage):
        return image.image.size
    try:
        with open_image(io.BytesIO(image.read()), formats=IMAGE_FORMATS) as opened:
            return opened.size
    except (OSError, ValueError):
        return 0, 0


class PixelInputs:
    """Decoded and resized images, one at a time (so that worker processes share the load)."""

    encoded = False

    def __init__(self, records: Sequence[CaptionedImage], image_processor: Any) -> None:
        self.records = records
        self.image_processor = image_processor
        self.plan = plan_of(image_processor)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        """Return levels (3, height, width) uint8, or without a plan pixel values float32."""
        return self.processed(self.image(index))

    def sizes(self) -> list[tuple[int, int]] | None:
        """Return (width, height) of each image where the processor keeps shapes."""
        keeps = getattr(self.image_processor, "keeps_shape", False)  # transformers' own processors do not say
        return [_size_in_header(record.image) for record in self.records] if keeps else None

    def pixel_values(self, numbers: Sequence[int]) -> Any:
        """Return these images as the captioner gets them, (B, 3, height, width) float32, or `SizedImages`."""
        return prepared(stacked([self[number] for number in numbers]), self.plan, torch.device("cpu"))

    def image(self, index: int) -> Image:
        """Return the decoded image, RGB, upright."""
        return decode_image(self.records[index].image)

    def processed(self, image: Image) -> Any:
        """Return what `self[index]` gives for this image."""
        if self.plan is not None:
            return self.plan.levels(image)
        with library_faults(self._no_pixels):
            values: Images = self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]
            return values

    def _no_pixels(self, error: Exception) -> str:
        return (
            f"{reason_of(error)}, says {type(self.image_processor).__name__}; where it is so with every image, put the "
            "model's preprocessor_config.json or processor_config.json back as it was"
        )


def prepared(images: Any, plan: PixelPlan | None, device: torch.device) -> Any:
    """Return a batch of image inputs on `device` as the captioner gets it, float32.

    Bytes travel to the device and are normalised there; stored states come back from half precision.
    """
    moved: Any = images.to(device) if isinstance(images, SizedImages) else sent(images, device)
    return plan.normalised(moved) if plan is not None else moved.float()


class BlankInputs:
    """The same number of blank (mid-grey) images: shows what a captioner says without looking."""

    encoded = False
    plan = None

    def __init__(self, inputs: ImageInputs) -> None:
        self.inputs = inputs
        first = inputs[0]
        self.blank = None if isinstance(first, SizedImages) else torch.zeros_like(first, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.inputs)

    def sizes(self) -> list[tuple[int, int]] | None:
        """Return those of the images."""
        return sizes_of(self.inputs)

    def __getitem__(self, index: int) -> Any:
        """Return zeros, which is mid-grey after normalisation, in the shape of the processed images."""
        if self.blank is not None:
            return self.blank
        image = self.inputs[index]
        assert isinstance(image, SizedImages)
        return image.mapped(lambda value: torch.zeros_like(value, dtype=torch.float32))


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    """One micro-batch.

    Attributes:
        images: pixels (B, 3, height, width), or image states (B, S, D) when `encoded`; `SizedImages` where images keep
            their shape.
        packed: captions of the B images.
        n_captions: captions in the batch.
        numbers: positions of the B images in the dataset.
        plan: normalisation that `to` applies to pixels in bytes; None where nothing is left to do.
    """

    images: Any
    encoded: bool
    packed: PackedCaptions
    n_captions: int
    numbers: tuple[int, ...] = ()
    plan: PixelPlan | None = None

    def to(self, device: torch.device) -> CaptionBatch:
        """Return a copy on `device` with the images as the captioner gets them, float32."""
        images = prepared(self.images, self.plan, device)
        return CaptionBatch(images, self.encoded, self.packed.to(device), self.n_captions, self.numbers)

    def pin_memory(self) -> CaptionBatch:
        """Return a copy in memory that a device can copy from while the host goes on; torch's data loader calls it."""
        return replace(self, images=self.images.pin_memory(), packed=self.packed.pin_memory())


class CaptionDataset(Dataset[Any]):
    """Images with tokenised captions; an item is addressed by (epoch, index) so that workers hold no state.

    Args:
        tokens: of the captions of each image, each with at least one token more than `max_tokens` if it is longer.
        max_tokens: longer captions are cut, and the cut is no end; None = none is cut.
        asked: what each caption of each image answers; None = all answer the captioner's prompt.
    """

    def __init__(
        self,
        inputs: ImageInputs,
        tokens: Sequence[Sequence[Sequence[int]]],
        captions_per_image: int | None,
        seed: int,
        max_tokens: int | None = None,
        asked: Sequence[Sequence[AskedPrompt]] | None = None,
    ) -> None:
        assert len(inputs) == len(tokens)
        self.asked = asked
        self.max_tokens = max_tokens
        self.inputs = inputs
        self.tokens = tokens
        self.captions_per_image = captions_per_image
        self.seed = seed

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: tuple[int, int]) -> CaptionItem:
        """Return the image input and the captions drawn for this epoch."""
        epoch, index = key
        numbers = self.drawn(epoch, index)
        cut, ended = self.cut([self.tokens[index][number] for number in numbers])
        return CaptionItem(self.inputs[index], cut, index, ended=ended, asked=self.asked_of(index, numbers))

    def asked_of(self, index: int, numbers: Sequence[int]) -> list[AskedPrompt] | None:
        """Return what captions of an image answer; None = the captioner's prompt."""
        return None if self.asked is None else [self.asked[index][number] for number in numbers]

    def cut(self, captions: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[bool]]:
        """Return captions of at most `max_tokens` tokens, and for each whether its end follows."""
        ended = [self.max_tokens is None or len(caption) <= self.max_tokens for caption in captions]
        return [caption[: self.max_tokens] for caption in captions], ended

    def drawn(self, epoch: int, index: int) -> list[int]:
        """Return which captions of an image take part in this epoch, in random order."""
        available = len(self.tokens[index])
        count = available if self.captions_per_image is None else min(self.captions_per_image, available)
        return random.Random(f"{self.seed}/{epoch}/{index}").sample(range(available), count)


class Collate:
    """Stacks image inputs and packs captions; picklable for worker processes."""

    def __init__(
        self, start_token_ids: Sequence[int], end_token_id: int, pad_token_id: int, inputs: ImageInputs
    ) -> None:
        self.start_token_ids = list(start_token_ids)
        self.end_token_id = end_token_id
        self.pad_token_id = pad_token_id
        self.encoded = inputs.encoded
        self.plan = inputs.plan

    def __call__(self, items: list[CaptionItem]) -> CaptionBatch:
        """Return one batch."""
        captions = [item.captions for item in items]
        shown = [item.captions if item.shown is None else item.shown for item in items]
        ended = [[True] * len(item.captions) if item.ended is None else item.ended for item in items]
        prompts = [item.asked for item in items if item.asked is not None] or None
        ids = (self.start_token_ids, self.end_token_id, self.pad_token_id)
        packed = pack_captions(captions, *ids, ended=ended, shown=shown, asked=prompts)
        images = stacked([item.image for item in items])
        numbers = tuple(item.number for item in items)
        return CaptionBatch(images, self.encoded, packed, sum(map(len, captions)), numbers, self.plan)


def batch_keys(dataset: CaptionDataset) -> list[Any] | NDArray[np.int64]:
    """Return what `epoch_batches` sorts by: tokens of all captions, after the size of images that keep their shape."""
    tokens = dataset.tokens
    if isinstance(tokens, FlatTokens):
        lengths = tokens.image_lengths()
    else:
        lengths = np.fromiter((sum(map(len, captions)) for captions in tokens), np.int64, len(tokens))
    sizes = sizes_of(dataset.inputs)
    return lengths if sizes is None else list(zip(sizes, lengths.tolist(), strict=True))


class _FixedBatches(Sampler[list[tuple[int, int]]]):
    def __init__(self, batches: Sequence[Sequence[int]] = (), epoch: int = 0) -> None:
        self.batches = batches
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        return ([(epoch, index) for index in batch] for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the main process still needs its workers to
    # finish the update and write a checkpoint, and stops them itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


_workers: weakref.WeakSet[Any] = weakref.WeakSet()


class _Loader(DataLoader[Any]):
    """A DataLoader whose workers end with the process, whether its iterator is still there or torch gave them up.

    Python and torch ask them by SIGTERM, which they leave to the main process; Python would wait for them for ever.
    """

    def __iter__(self) -> Any:
        """Return an iterator, and remember its workers."""
        iterator = super().__iter__()
        _workers.update(getattr(iterator, "_workers", ()))  # torch's own; there are none without worker processes
        return iterator


@atexit.register
def _end_workers() -> None:
    for worker in _workers:
        worker.kill()


class BatchLoader:
    """Loads chosen batches in order, prepared ahead by `num_workers` processes that stay from epoch to epoch.

    Workers hold no state: an item is addressed by (epoch, index), so it does not matter which worker makes it, nor
    whether the workers are new.

    Args:
        device: where the batches go; None = nowhere. For a CUDA device they are pinned, so that they go there while the
            host does other things.
    """

    def __init__(
        self, dataset: CaptionDataset, collate: Collate, num_workers: int, device: torch.device | None = None
    ) -> None:
        self._sampler = _FixedBatches()
        self._loader = _Loader(
            dataset,
            batch_sampler=self._sampler,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=_is_cuda(device),
            worker_init_fn=_leave_signals_to_the_main_process,
            # Its own generator: starting workers must not move the global random state, or a resumed run would differ.
            generator=torch.Generator(),
        )

    def load(self, batches: Sequence[Sequence[int]], epoch: int) -> Iterator[CaptionBatch]:
        """Return an iterator over the given batches of one epoch; it ends the one before."""
        self._sampler.batches, self._sampler.epoch = batches, epoch
        return iter(self._loader)


class _ImageOnly(Dataset[Any]):
    def __init__(self, inputs: ImageInputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index]


class _OneAtATime(Sampler[list[int]]):
    """Batches that become lists when they are loaded: of millions of images no list is made."""

    def __init__(self, batches: Sequence[Sequence[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def image_loader(
    inputs: ImageInputs, batches: Sequence[Sequence[int]], num_workers: int, device: torch.device | None = None
) -> DataLoader[Any]:
    """Load only the image inputs of the given batches, in order; `device` as in `BatchLoader`."""
    return _Loader(
        _ImageOnly(inputs),
        batch_sampler=_OneAtATime(batches),
        # The default puts rows of a worker into the number type of the first; a store may hold two.
        collate_fn=stacked,
        num_workers=num_workers,
        # As above: training must not depend on whether the feature store was full.
        generator=torch.Generator(),
        pin_memory=_is_cuda(device),
        worker_init_fn=_leave_signals_to_the_main_process,
    )
