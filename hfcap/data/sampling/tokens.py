"""Token ids of the captions of any number of images, in arrays: of many images in a file that is mapped into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from hfcap.files import cache_folder

_AT_A_TIME = 4_096
"""Images whose captions are Python objects together."""
_IN_MEMORY = 1_000_000
"""Tokens from which on they are in a file: its pages come and go, the process's memory stays."""


class FlatTokens(Sequence[list[list[int]]]):
    """Token ids of each caption of each image; those of an image become lists when they are asked for.

    Args:
        ids: (T,) int32, of all captions one after the other.
        captions: (C + 1,) int64, where captions begin in `ids`; the last is the end.
        images: (N + 1,) int64, where the captions of images begin in `captions`.
    """

    def __init__(self, ids: NDArray[np.int32], captions: NDArray[np.int64], images: NDArray[np.int64]) -> None:
        self._ids, self._captions, self._images = ids, captions, images

    def __len__(self) -> int:
        return len(self._images) - 1

    @overload
    def __getitem__(self, chosen: int) -> list[list[int]]: ...

    @overload
    def __getitem__(self, chosen: slice) -> list[list[list[int]]]: ...

    def __getitem__(self, chosen: int | slice) -> list[list[int]] | list[list[list[int]]]:
        """Return the captions of one image, or of some."""
        numbers = range(len(self))
        if isinstance(chosen, slice):
            return [self[number] for number in numbers[chosen]]
        first, end = self._images[numbers[chosen]], self._images[numbers[chosen] + 1]
        bounds = self._captions[first : end + 1]
        ids = self._ids[bounds[0] : bounds[-1]].tolist()
        places = (bounds - bounds[0]).tolist()
        return [ids[start:stop] for start, stop in pairwise(places)]

    def caption_lengths(self) -> NDArray[np.int64]:
        """Return how many tokens each caption has, (C,)."""
        return np.diff(self._captions)

    def image_lengths(self) -> NDArray[np.int64]:
        """Return how many tokens the captions of each image have together, (N,)."""
        return np.diff(self._captions[self._images])


def flat_tokens(
    captions: Iterable[Sequence[str]], tokenise: Callable[[Sequence[str]], Sequence[Sequence[int]]]
) -> FlatTokens:
    """Tokenise the captions of each image, some images at a time.

    Args:
        captions: of each image.
        tokenise: captions -> token ids of each.
    """
    per_caption, per_image = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    pieces: list[NDArray[np.int32]] = []
    n_tokens = 0
    spilled: IO[bytes] | None = None
    remaining = iter(captions)
    while some := list(islice(remaining, _AT_A_TIME)):
        found = tokenise([text for texts in some for text in texts])
        per_image.append(np.fromiter(map(len, some), np.int64, len(some)))
        per_caption.append(np.fromiter(map(len, found), np.int64, len(found)))
        pieces.append(np.fromiter((one for ids in found for one in ids), np.int32))
        n_tokens += len(pieces[-1])
        if n_tokens > _IN_MEMORY:
            spilled = spilled or _unnamed_file()
        if spilled is not None:
            spilled.writelines(piece.tobytes() for piece in pieces)
            pieces = []
    if spilled is None:
        ids = np.concatenate([*pieces, np.zeros(0, np.int32)])
    else:
        spilled.flush()
        ids = np.memmap(spilled, np.int32, "r", shape=(n_tokens,))
    return FlatTokens(ids, np.cumsum(np.concatenate(per_caption)), np.cumsum(np.concatenate(per_image)))


def _unnamed_file() -> IO[bytes]:
    """Return a file that is gone when nobody has it open or mapped."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)
