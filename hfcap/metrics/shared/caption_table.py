"""Human captions of any number of images in one buffer: texts become Python objects when they are asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, ValuesView
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
        numbers = range(len(self))[place]
        if isinstance(numbers, int):
            return tuple(self._captions(numbers, numbers + 1))
        if numbers.step != 1:
            return [self[number] for number in numbers]
        found = []
        for start in range(numbers.start, numbers.stop, _AT_A_TIME):
            firsts = self._firsts[start : min(start + _AT_A_TIME, numbers.stop) + 1].tolist()
            captions = self._captions(start, start + len(firsts) - 1)
            found += [tuple(captions[first - firsts[0] : end - firsts[0]]) for first, end in pairwise(firsts)]
        return found

    def _captions(self, start: int, stop: int) -> list[str]:
        """Captions of the images from `start` to before `stop`, one after the other."""
        bounds = self._ends[self._firsts[start] : self._firsts[stop] + 1].tolist()
        begin = bounds[0]
        content = self._text[begin : bounds[-1]]
        if content.isascii():
            joined = content.decode("ascii")
            return [joined[first - begin : end - begin] for first, end in pairwise(bounds)]
        return [
            content[first - begin : end - begin].decode("utf-8", "surrogatepass") for first, end in pairwise(bounds)
        ]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self), _AT_A_TIME):
            yield from self[start : start + _AT_A_TIME]

    def counts(self) -> list[int]:
        """Return how many captions each image has."""
        return [end - first for first, end in pairwise(self._firsts)]


class _Values(ValuesView[tuple[str, ...]]):
    """The captions of a table, some images at a time."""

    _mapping: CaptionTable

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._mapping.groups)


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

    def values(self) -> ValuesView[tuple[str, ...]]:
        """Return the captions of all images."""
        return _Values(self)

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
