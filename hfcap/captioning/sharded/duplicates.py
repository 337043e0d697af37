"""Images that are there more than once: found by a hash of their bytes before anything is captioned.

Of images with the same bytes the first in the plan counts. Each shard is hashed once, by any worker, and the hashes are
compared when all are there: who was faster, or died, makes no difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hfcap.data.images import UnreadableImageError
from hfcap.files import file_being_written, read_json, write_json
from hfcap.schema import CaptionedImage

_BYTES = 16
"""Of SHA-256. Two of 10 ** 9 different images agree in them with a probability of about 10 ** -21."""
_THREADS, _AT_A_TIME = 8, 64
_ALL = "all"


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image that is not captioned, because another one in front of it has the same bytes.

    Attributes:
        duplicate_of: image id of the first one.
    """

    image_id: str
    duplicate_of: str


class Duplicates:
    """Hashes of shards, and what follows from all of them, in a folder that the workers share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has_hashes(self, shard: str) -> bool:
        """Whether the images of a shard are hashed."""
        return self._hashes(shard).is_file()

    def add(self, shard: str, images: Iterable[tuple[CaptionedImage, str]]) -> None:
        """Hash the images of a shard; what cannot be read is nobody's duplicate.

        Args:
            images: with what else tells them apart, such as what is asked about them.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        names: list[str] = []
        hashes: list[bytes | None] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            remaining = iter(images)
            while some := list(islice(remaining, _AT_A_TIME)):
                names += [record.image_id for record, _ in some]
                hashes += pool.map(_hash, some)
        columns = {"image_id": pa.array(names, pa.string()), "hash": pa.array(hashes, pa.binary(_BYTES))}
        with file_being_written(self._hashes(shard)) as handle:
            pq.write_table(pa.table(columns), handle)

    @property
    def are_known(self) -> bool:
        """Whether the hashes of all shards were compared."""
        return self._found(_ALL).is_file()

    def compare(self, shards: list[str]) -> None:
        """Find every image whose bytes are those of one before it; needs the hashes of all shards, in their order.

        Memory: 40 bytes for each image.
        """
        parts = [_digests(self._hashes(shard)) for shard in shards]
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        first = first_of_each(np.concatenate(parts))
        copies = np.flatnonzero(first != np.arange(len(first)))
        names = self._names(shards, bounds, np.unique(first[copies]))
        for number, shard in enumerate(shards):
            start, stop = bounds[number], bounds[number + 1]
            mine = copies[np.searchsorted(copies, start) : np.searchsorted(copies, stop)]
            if len(mine):
                write_json(self._found(shard), {str(place - start): names[int(first[place])] for place in mine})
        write_json(self._found(_ALL), len(copies))

    def of(self, shard: str) -> dict[int, str]:
        """Return place in the shard -> image id of the first image with these bytes."""
        path = self._found(shard)
        return {int(place): name for place, name in read_json(path, "duplicates").items()} if path.is_file() else {}

    def _names(self, shards: list[str], bounds: Any, places: Any) -> dict[int, str]:
        """Return place -> image id, reading the ids of the shards alone that some of the places are in."""
        import pyarrow.parquet as pq

        found: dict[int, str] = {}
        owners = np.searchsorted(bounds, places, side="right") - 1
        for number in np.unique(owners):
            ids = pq.read_table(self._hashes(shards[number]), columns=["image_id"]).column(0)
            for place in places[owners == number]:
                found[int(place)] = ids[int(place - bounds[number])].as_py()
        return found

    def _hashes(self, shard: str) -> Path:
        return self.folder / f"{shard}.parquet"

    def _found(self, shard: str) -> Path:
        return self.folder / f"{shard}.json"


def _hash(image: tuple[CaptionedImage, str]) -> bytes | None:
    record, asked = image
    try:
        content = record.image.read()
    except UnreadableImageError:
        return None
    digest = hashlib.sha256(content)
    if asked:
        digest.update(b"\0" + asked.encode())
    return digest.digest()[:_BYTES]


def _digests(path: Path) -> Any:
    """Return the hashes of a shard, shape (images, 2), as whole numbers; 0, 0 where there is none."""
    import pyarrow.parquet as pq

    none = bytes(_BYTES)
    hashes = pq.read_table(path, columns=["hash"]).column(0).to_pylist()
    return np.frombuffer(b"".join(one or none for one in hashes), dtype=np.uint64).reshape(-1, 2)


def first_of_each(digests: Any) -> Any:
    """Return the place of the first row that equals each row of (rows, 2) whole numbers; rows of zeros equal none."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # equal rows keep their order
    ordered = digests[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1) | ~ordered[1:].any(axis=1)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    return first


class LeftOut:
    """Takes the duplicates out of a shard's images on their way to the captioner, and puts them back in their places.

    Args:
        images: of the shard. duplicates: see `Duplicates.of`.
    """

    def __init__(self, images: Iterable[CaptionedImage], duplicates: dict[int, str]) -> None:
        self._images, self._duplicates = images, duplicates
        self._kept: list[int] = []
        self._records: dict[int, CaptionedImage] = {}

    def kept(self) -> Iterator[CaptionedImage]:
        """Yield the images that are captioned."""
        for place, record in enumerate(self._images):
            if place in self._duplicates:
                self._records[place] = record
            else:
                self._kept.append(place)
                yield record

    def before(self, number: int | None) -> Iterator[tuple[CaptionedImage, Duplicate]]:
        """Yield the duplicates that stand before the kept image of this number and after the last one asked for.

        Args:
            number: None = the end of the shard, when all images were taken.
        """
        stop = None if number is None else self._kept[number]
        waiting = sorted(place for place in self._records if stop is None or place < stop)
        for place in waiting:
            record = self._records.pop(place)
            yield record, Duplicate(record.image_id, self._duplicates[place])
