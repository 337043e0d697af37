"""A text file of millions of addresses and file names as a sequence of images: its lines stay in the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from hfcap.captioning.inputs import image_of_line
from hfcap.data.images import FileImage
from hfcap.data.web.web_images import WebImage
from hfcap.schema import CaptionedImage

_FEWEST = 10_000
"""Shorter lists are read as a whole."""
_ADDRESS = 1


class ListedImages(Sequence[CaptionedImage]):
    """The images of a list without repetition, in order; an image is made when it is asked for.

    Args:
        starts: (N,) where the lines of the images begin in the file.
        kinds: (N,) 1 = an address that was examined, 0 = anything else.
        numbers: (N,) their lines, counted from 1.
    """

    def __init__(
        self, path: Path, starts: NDArray[np.int64], kinds: NDArray[np.uint8], numbers: NDArray[np.int64]
    ) -> None:
        self._path, self._starts, self._kinds, self._numbers = path, starts, kinds, numbers

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, chosen: int) -> CaptionedImage: ...

    @overload
    def __getitem__(self, chosen: slice) -> list[CaptionedImage]: ...

    def __getitem__(self, chosen: int | slice) -> CaptionedImage | list[CaptionedImage]:
        """Return one image, or a list of some."""
        if isinstance(chosen, slice):
            return list(self._made(range(len(self))[chosen]))
        return next(self._made([range(len(self))[chosen]]))

    def __iter__(self) -> Iterator[CaptionedImage]:
        return self._made(range(len(self)))

    def _made(self, numbers: Sequence[int]) -> Iterator[CaptionedImage]:
        with self._path.open("rb") as handle:
            place = -1
            for number in numbers:
                if place != (start := int(self._starts[number])):
                    handle.seek(start)
                content = handle.readline()
                place = start + len(content)
                line = _text(content, int(self._numbers[number]))
                if self._kinds[number] == _ADDRESS:
                    yield CaptionedImage(line, line, (), WebImage(line))
                else:
                    yield image_of_line(line, self._path, int(self._numbers[number]))


def listed_in(path: Path) -> ListedImages | None:
    """Return the images of a long list; None where it is short, or not plain UTF-8 with the usual line ends.

    Reading it as a whole says what is wrong with it.
    """
    starts: list[NDArray[np.int64]] = []
    keys: list[bytes] = []
    packed: list[bytes] = []
    kinds = bytearray()
    numbers: list[NDArray[np.int64]] = []
    some: list[tuple[int, int]] = []
    place = 0
    try:
        with path.open("rb") as handle:
            for number, content in enumerate(handle, start=1):
                if b"\r" in content.removesuffix(b"\n").removesuffix(b"\r"):
                    return None
                if line := _text(content, number):
                    image = image_of_line(line, path, number)
                    keys.append(_key(image))
                    kinds.append(_ADDRESS if isinstance(image.image, WebImage) else 0)
                    some.append((place, number))
                place += len(content)
                if len(some) == _FEWEST:
                    _pack(some, keys, packed, starts, numbers)
    except (OSError, UnicodeDecodeError):
        return None
    if len(kinds) < _FEWEST:
        return None
    _pack(some, keys, packed, starts, numbers)
    first = _first_of_each(packed)
    return ListedImages(
        path,
        np.concatenate(starts)[first],
        np.frombuffer(bytes(kinds), np.uint8)[first],
        np.concatenate(numbers)[first],
    )


def _text(content: bytes, number: int) -> str:
    return content.decode("utf-8-sig" if number == 1 else "utf-8").strip()


def _key(image: CaptionedImage) -> bytes:
    if isinstance(image.image, FileImage):
        text = os.fsencode(image.image.path)
    else:
        text = image.image_id.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _pack(
    some: list[tuple[int, int]],
    keys: list[bytes],
    packed: list[bytes],
    starts: list[NDArray[np.int64]],
    numbers: list[NDArray[np.int64]],
) -> None:
    """Put what was collected into arrays; 16 bytes of each key stay, as one text of bytes."""
    if some:
        both = np.array(some, dtype=np.int64)
        starts.append(both[:, 0].copy())
        numbers.append(both[:, 1].copy())
        some.clear()
    packed.append(b"".join(keys))
    keys.clear()


def _first_of_each(packed: list[bytes]) -> NDArray[np.int64]:
    """Return where each key comes first, in order."""
    whole = np.frombuffer(b"".join(packed), dtype="V16")
    pairs = whole.view(np.dtype([("high", "<u8"), ("low", "<u8")]))
    order = np.lexsort((pairs["high"], pairs["low"]))
    ordered = pairs[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    # lexsort is stable: the first of equal keys is the one that came first.
    return np.sort(order[new])
