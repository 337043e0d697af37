"""The batches of an epoch: length-aware grouping, the same order for the same seed, as arrays of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

GROUPING_WINDOW = 16
"""Batches whose images are sorted by caption length together: little padding, still a different mix each epoch."""


class EpochBatches(Sequence[list[int]]):
    """Batches of image numbers; a batch becomes a list when it is asked for.

    Args:
        order: (N,) image numbers, those of a batch of all processes next to each other.
        batches: which batches these are, in order; batch k begins at k * size.
        size: images of a batch of all processes.
        rank: which of them is this process's, of `world_size`.
    """

    def __init__(
        self, order: NDArray[np.int64], batches: NDArray[np.int64], size: int, rank: int, world_size: int
    ) -> None:
        self._order, self._batches, self._size, self._rank, self._world_size = order, batches, size, rank, world_size

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, chosen: int) -> list[int]: ...

    @overload
    def __getitem__(self, chosen: slice) -> EpochBatches: ...

    def __getitem__(self, chosen: int | slice) -> list[int] | EpochBatches:
        """Return one batch, or some."""
        if isinstance(chosen, slice):
            return EpochBatches(self._order, self._batches[chosen], self._size, self._rank, self._world_size)
        first = int(self._batches[chosen]) * self._size
        numbers: list[int] = self._order[first + self._rank : first + self._size : self._world_size].tolist()
        return numbers

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EpochBatches | list):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of lists, which these stand for


def epoch_batches(
    lengths: Sequence[Any] | NDArray[np.int64],
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> EpochBatches:
    """Indices of every micro-batch of one epoch for one process; all processes get equally many.

    Images are shuffled, sorted by length within a window of GROUPING_WINDOW batches, and the batches shuffled again.
    Lengths are numbers, or whatever sorts images of which batches are made: sizes first where images keep their shape.
    The last, smaller batch is kept unless it cannot give every process an image.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).numpy()
    size = batch_size * world_size
    window = size * GROUPING_WINDOW
    for first in range(0, len(order), window):
        part = order[first : first + window]
        if isinstance(lengths, np.ndarray):
            part[:] = part[np.argsort(lengths[part], kind="stable")]
        else:
            part[:] = sorted(part.tolist(), key=lengths.__getitem__)
    whole, rest = divmod(len(order), size)
    n_batches = whole + (rest >= world_size)
    return EpochBatches(order, torch.randperm(n_batches, generator=generator).numpy(), size, rank, world_size)
