"""Human captions of any number of images in one buffer: texts become Python objects when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar, overload

import numpy as np

_AT_A_TIME = 4096
"""Images whose captions are Python objects together where all are gone through."""

Value = TypeVar("Value")


class CaptionGroups(Sequence[tuple[str, ...]]):
    """The captions of each of N images.

    Args:
        text: all captions, one after the other, in UTF-8.
        ends: where captions begin in `text`, M + 1 of them; the last is the end.
        firsts: where the captions of images begin in `ends`, N + 1 of them.
    """

    def __init__(self, text: bytes | bytearray, ends: array[int], firsts: array[int]) -> None:
        self._text, self._ends, self._firsts = text, ends, firsts

    def __len__(self) -> int:
        return len(self._firsts) - 1

    @overload
    def __getitem__(self, place: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, place: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        """Return the captions of one image, or of some."""
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        bounds = self._ends[self._firsts[number] : self._firsts[number + 1] + 1]
        start = bounds[0]
        content = self._text[start : bounds[-1]]
        if content.isascii():
            joined = content.decode("ascii")
            return tuple([joined[first - start : end - start] for first, end in pairwise(bounds)])
        return tuple(
            [content[first - start : end - start].decode("utf-8", "surrogatepass") for first, end in pairwise(bounds)]
        )

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from self[start : start + _AT_A_TIME]

    def counts(self) -> list[int]:
        """Return how many captions each image has."""
        return [end - first for first, end in pairwise(self._firsts)]


class CaptionTable(Mapping[str, tuple[str, ...]]):
    """Image id -> its human captions, in about the memory that the file takes on the disk.

    Attributes:
        image_ids: N ids, in the order of their first captions.
        groups: the captions of each, in that order.
    """

    def __init__(self, places: dict[str, int], groups: CaptionGroups) -> None:
        assert len(places) == len(groups)
        self._places = places
        self.image_ids = tuple(places)
        self.groups = groups

    def __getitem__(self, image_id: str) -> tuple[str, ...]:
        return self.groups[self._places[image_id]]

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def with_own_ids(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the same values under the very objects that are the ids here, so that no id is in memory twice."""
        ids, places = self.image_ids, self._places
        return {ids[places[key]] if key in places else key: value for key, value in values.items()}


class CaptionCollector:
    """Makes a table of captions that come in any order of images."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._text = bytearray()
        self._ends = array("q", [0])
        self._image_of = array("q")

    def place(self, image_id: str) -> int:
        """Return the number of an image, a new one if it was never seen."""
        return self._places.setdefault(image_id, len(self._places))

    def add(self, place: int, caption: str) -> None:
        """Add a caption of the image with this number."""
        self._text += caption.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))
        self._image_of.append(place)

    def table(self) -> CaptionTable:
        """Return what was collected; nothing may be added afterwards."""
        images = np.frombuffer(self._image_of, dtype=np.int64)
        counts = np.bincount(images, minlength=len(self._places))
        text: bytes | bytearray = self._text
        ends = self._ends
        if (images[1:] < images[:-1]).any():
            order = np.argsort(images, kind="stable")
            lengths = np.diff(np.frombuffer(ends, dtype=np.int64))
            text = b"".join(self._text[ends[number] : ends[number + 1]] for number in order.tolist())
            ends = _summed(lengths[order])
        return CaptionTable(self._places, CaptionGroups(text, ends, _summed(counts)))


def _summed(counts: Iterable[int]) -> array[int]:
    """Where parts of these sizes begin, and the end of the last."""
    sums = np.concatenate(([0], np.cumsum(np.asarray(counts, dtype=np.int64))))
    return array("q", sums.tobytes())


def caption_table(groups: Iterable[tuple[str, Iterable[str]]]) -> CaptionTable:
    """Return a table of image ids and their captions."""
    collector = CaptionCollector()
    for image_id, captions in groups:
        place = collector.place(image_id)
        for caption in captions:
            collector.add(place, caption)
    return collector.table()
