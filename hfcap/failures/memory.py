"""A batch that the memory of the device does not hold is computed in parts: the same result, with less at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from accelerate.utils.memory import should_reduce_batch_size

from hfcap.errors import WorkError
from hfcap.progress import error_console


def is_full_memory(error: Exception) -> bool:
    """Whether an error says that the memory of the device (of a GPU, a Mac, the system) is too small for a batch."""
    return should_reduce_batch_size(error)


def parts_of(batches: Sequence[Sequence[int]], parts: int) -> list[list[int]]:
    """Cut each batch into at most `parts` parts whose sizes differ by one at most, in order."""
    cut: list[list[int]] = []
    for batch in batches:
        count = min(parts, len(batch))
        bounds = [len(batch) * number // count for number in range(count + 1)]
        cut += [list(batch[first:end]) for first, end in pairwise(bounds)]
    return cut


def windows_of(
    batches: Sequence[Sequence[int]], size: int, parts: int
) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
    """Return all batches in parts (see `parts_of`), and how many parts each window of `size` batches has.

    Uncut batches are returned as they are: of millions of images no list is made.
    """
    starts = range(0, len(batches), size)
    if parts == 1:
        return batches, [min(size, len(batches) - first) for first in starts]
    windows = [parts_of(batches[first : first + size], parts) for first in starts]
    return [part for window in windows for part in window], list(map(len, windows))


def more_parts(sizes: Sequence[int], parts: int, where: str) -> int:
    """Return twice as many parts for batches that were too large, and say so.

    Args:
        sizes: images of each part of the update that the memory did not hold. parts: into how many batches are cut.
        where: what is being done.

    Raises:
        WorkError: each part has one image already.
    """
    largest = max(sizes)
    if largest == 1:
        raise WorkError(
            f"{where}: the memory is too small for one image at a time; set train.gradient_checkpointing: true or "
            "train.mixed_precision: bf16, make the images smaller (model.image_size), or train adapters (the block "
            "lora)"
        )
    error_console.print(
        f"The memory is too small for {largest} images at once: training goes on with at most {-(-largest // 2)} at a "
        f"time, in the same updates; to start that way, divide train.per_device_train_batch_size and multiply "
        f"train.gradient_accumulation_steps by {parts * 2}",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    return parts * 2


def smaller_batch(
    size: int,
    purpose: str = "to caption",
    options: str = "the option --batch-size, or train.per_device_eval_batch_size,",
) -> int:
    """Return how many images to work on at once where the memory does not hold `size`, and say so.

    Args:
        purpose: what is done with them. options: what begins with fewer.
    """
    smaller = -(-size // 2)
    error_console.print(
        f"The memory is too small {purpose} {size} images at once: it goes on with {smaller} at a time ({options} "
        "begins with fewer)",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    return smaller
