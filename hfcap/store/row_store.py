"""Tensors of images on disk: one row per image in safetensors shards, memory-mapped and checksummed.

A shard is written under a temporary name and renamed, so a killed run leaves whole shards and goes on after them. Rows
are found by the SHA-256 of the image's encoded bytes; the shard's header lists them with the CRC-32 of each row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hfcap.errors import UserError, WorkError
from hfcap.files import read_json, write_bytes, write_json, write_problem
from hfcap.schema import Images, SizedImages
from hfcap.text import gigabytes

IMAGES_PER_SHARD = 512
BYTES_PER_SHARD = 128_000_000
SECONDS_PER_SHARD = 120.0
"""A shard ends at the first of the three limits: little memory, and little to do again after a kill."""

_TENSOR = "states"
_INFO, _USED, _UNFINISHED = "encoder.json", "last_used", ".shard-*"
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the row of one image lies, and the CRC-32 of its bytes.

    Attributes:
        row: its number in the shard; of states of an image that keeps its shape the number of the first one.
        length, size: how many states those are, and (width, height) of the image; None of rows of one shape.
    """

    path: Path
    row: int
    checksum: int
    length: int | None = None
    size: tuple[int, int] | None = None


class StoredRows:
    """Rows read from a store, memory-mapped; picklable for worker processes."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        """Return one row as it was stored (shape and dtype are the store's); `SizedImages` of one that keeps its shape.

        Raises:
            WorkError: the shard is gone, or its bytes are not those that were written.
        """
        place = self.places[index]
        if place.path not in self._open:
            try:
                self._open[place.path] = safe_open(place.path, framework="pt").get_slice(_TENSOR)
            except (SafetensorError, OSError) as error:
                raise WorkError(f"{place.path}: cannot be read ({error}); run again to compute it again") from error
        end = None if place.length is None else place.row + place.length
        row: torch.Tensor = self._open[place.path][place.row if end is None else slice(place.row, end)]
        if _checksum(row) != place.checksum:
            raise WorkError(f"{place.path}: damaged shard (row {place.row}); delete the file and run again")
        return row if place.size is None else SizedImages((row,), (place.size,))

    def sizes(self) -> list[tuple[int, int]] | None:
        """Return (width, height) of each image where images kept their shape; None where rows have one shape."""
        found = [place.size for place in self.places]
        return [size or (0, 0) for size in found] if any(found) else None

    def stacked(self) -> torch.Tensor:
        """Return all rows as one float32 tensor (N, ...); for rows that are small, as embeddings are."""
        return torch.stack([self[number].float() for number in range(len(self))])

    def __getstate__(self) -> dict[str, Any]:
        # Open files stay in their process.
        return {**self.__dict__, "_open": {}}


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store's folder holds, for people.

    Attributes:
        encoder: what computed the rows.
        shape, dtype: of a row. last_used: seconds since 1970.
    """

    folder: Path
    encoder: str
    shape: tuple[int, ...]
    dtype: str
    n_images: int
    n_bytes: int
    last_used: float


class RowStore:
    """One folder of shards: `shard-*.safetensors`, and next to them what the rows are.

    Args:
        folder: named by everything that decides what a row is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def places(self) -> dict[str, Place]:
        """Return hash of image -> place, of all whole shards.

        Raises:
            WorkError: a shard is damaged; the message names it.
        """
        places: dict[str, Place] = {}
        for path in self._shards():
            places |= dict(_header(path))
        return places

    def write_problem(self) -> str | None:
        """Return why nothing can be added to the store; None if it can."""
        return write_problem(self.folder)

    def require_room(self, n_bytes: int, what: str, remedy: str) -> int:
        """Return the free bytes of the disk.

        Raises:
            WorkError: fewer than `n_bytes` (and five per cent), or nothing can be written; says what, and the remedy.
        """
        if problem := self.write_problem():
            raise WorkError(f"{what}: {problem}; {remedy}")
        free = shutil.disk_usage(self.folder).free
        if n_bytes * 1.05 > free:
            raise WorkError(
                f"{self.folder}: {what} needs {gigabytes(n_bytes)} but only {gigabytes(free)} are free; {remedy}"
            )
        return free

    def describe(self, encoder: str, row: Images) -> None:
        """Note what the rows are, for `hfcap features list`."""
        first = row.values[0] if isinstance(row, SizedImages) else row
        shape, dtype = [*first.shape], str(first.dtype).removeprefix("torch.")
        write_json(self.folder / _INFO, {"encoder": encoder, "shape": shape, "dtype": dtype})

    def mark_used(self) -> None:
        """Note that the store is used now, and remove what killed processes left half written."""
        if not self.folder.is_dir():
            return
        with contextlib.suppress(OSError):  # a store of somebody else or on a read-only disk
            (self.folder / _USED).touch()
        for path in self.folder.glob(_UNFINISHED):
            with contextlib.suppress(OSError):  # another process may be quicker
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    def info(self) -> StoreInfo:
        """Return size, content and last use; what cannot be read counts as unknown."""
        note: Any = {}
        with contextlib.suppress(UserError):
            note = read_json(self.folder / _INFO, "note of a feature store")
        note = note if isinstance(note, dict) else {}
        shape = note.get("shape", ())
        shards, n_images = self._shards(), 0
        for path in shards:
            with contextlib.suppress(WorkError):
                n_images += len(_header(path))
        used = self.folder / _USED
        return StoreInfo(
            self.folder,
            str(note.get("encoder", "unknown")),
            tuple(shape) if isinstance(shape, list) else (),
            str(note.get("dtype", "unknown")),
            n_images,
            sum(path.stat().st_size for path in [*shards, *self.folder.glob(_UNFINISHED)]),
            (used if used.exists() else self.folder).stat().st_mtime,
        )

    def delete(self) -> None:
        """Delete the store's own files, and the folder where nothing else is in it."""
        for path in [*self._shards(), *self.folder.glob(_UNFINISHED), self.folder / _USED, self.folder / _INFO]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something that is not ours
            self.folder.rmdir()

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.safetensors"))

    def write_shard(self, rows: Images, hashes: Sequence[str]) -> None:
        """Write rows (N, ...) of the images with these hashes, or states (S, D) of images that keep their shape."""
        if isinstance(rows, SizedImages):
            described = [
                [value, _checksum(row), len(row), *size]
                for value, row, size in zip(hashes, rows.values, rows.sizes, strict=True)
            ]
            rows = torch.cat(rows.values)
        else:
            described = [[value, _checksum(row)] for value, row in zip(hashes, rows, strict=True)]
        listed = json.dumps(described)
        # Named by its images too: different files may give the same rows.
        name = hashlib.sha256(listed.encode()).hexdigest()[:16]
        path = self.folder / f"shard-{name}.safetensors"
        try:
            write_bytes(path, save({_TENSOR: rows.contiguous()}, metadata={"rows": listed}))
        except OSError as error:
            raise WorkError(
                f"{path}: cannot be written ({error.strerror or error}); make room, or set data.feature_store_folder"
            ) from error


class ShardWriter:
    """Collects rows and writes a shard whenever one is full; `close` writes the rest."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self._rows: list[Images] = []
        self._hashes: list[str] = []
        self._began = time.monotonic()

    def add(self, rows: Images, hashes: Sequence[str]) -> None:
        """Take in rows (N, ...) of the images with these hashes."""
        self._rows.append(rows)
        self._hashes += hashes
        size = sum(n_bytes(part) for part in self._rows)
        slow = time.monotonic() - self._began > SECONDS_PER_SHARD
        if len(self._hashes) >= IMAGES_PER_SHARD or size >= BYTES_PER_SHARD or slow:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._hashes:
            dtypes = {tensor.dtype for part in self._rows for tensor in _tensors(part)}
            # Half-precision rows may be of both kinds; only bfloat16 holds the large values of some.
            common = torch.bfloat16 if len(dtypes) > 1 else dtypes.pop()
            self.store.write_shard(_joined(self._rows, common), self._hashes)
        self._rows, self._hashes, self._began = [], [], time.monotonic()


def n_bytes(rows: Images) -> int:
    """Return how much room rows take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(rows))


def _tensors(rows: Images) -> Sequence[torch.Tensor]:
    return rows.values if isinstance(rows, SizedImages) else [rows]


def _joined(parts: Sequence[Images], dtype: torch.dtype) -> Images:
    sized = [part.mapped(lambda value: value.to(dtype)) for part in parts if isinstance(part, SizedImages)]
    return SizedImages.joined(sized) if sized else torch.cat([t.to(dtype) for part in parts for t in _tensors(part)])


def _header(path: Path) -> list[tuple[str, Place]]:
    try:
        with safe_open(path, framework="pt") as shard:
            rows = json.loads(shard.metadata()["rows"])
        places, first = [], 0
        for value, checksum, *rest in rows:
            length, width, height = rest or (None, 0, 0)
            size = None if length is None else (int(width), int(height))
            places.append((str(value), Place(path, first, int(checksum), length, size)))
            first += 1 if length is None else int(length)
        return places
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WorkError(f"{path}: damaged shard of the feature store ({error}); delete the file") from error


def _checksum(row: torch.Tensor) -> int:
    return zlib.crc32(row.contiguous().view(-1).view(torch.uint8).numpy().data)
