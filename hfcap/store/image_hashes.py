"""SHA-256 of images' encoded bytes, the name under which stores keep what was computed from them; and of files."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hfcap.data.images import FileImage, UnreadableImageError, is_checkable
from hfcap.data.kept.known import HexDigests, known_facts
from hfcap.files import sha256_of
from hfcap.schema import CaptionedImage, ImageBytes
from hfcap.sqlite_cache import SqliteCache

_SETTLED_SECONDS = 10.0
"""A file changed again within the resolution of its time stamps would look unchanged: younger ones aren't trusted."""

_AT_A_TIME = 2048


def image_hashes(records: Sequence[CaptionedImage]) -> Sequence[str]:
    """Return 64 hexadecimal digits for each image.

    Hashes of files are remembered by path, size, inode and both times of change (`image_hashes.sqlite` in the cache
    folder), so that the next run reads no image for this. The time of the inode's change (ctime) also tells of a file
    that was replaced by one with an older date. Those of a table's rows are remembered by the table's fingerprint.
    Those of kept records are remembered next to these.

    Raises:
        UnreadableImageError: an image is missing.
    """
    facts = known_facts(records, "sha256", 32, of_bytes=True)
    if facts is None:
        hashes = []
        for found in _found(records, range(len(records))):
            hashes += [value.hex() for value in found]
        return hashes
    known, values = facts.read()
    if known.all():
        return HexDigests(values)
    unknown, values, start = np.flatnonzero(~known), values.copy(), 0
    for found in _found(records, unknown.tolist()):
        values[unknown[start : start + len(found)]] = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)
        start += len(found)
    facts.write(np.ones(len(records), dtype=np.bool_), values)
    return HexDigests(values)


def _found(records: Sequence[CaptionedImage], numbers: Sequence[int]) -> Iterator[list[bytes]]:
    """Yield the hashes of some of the images, many at a time."""
    with SqliteCache("image_hashes", "images are read each time") as memory, ThreadPoolExecutor() as pool:
        for start in range(0, len(numbers), _AT_A_TIME):
            images = [records[number].image for number in numbers[start : start + _AT_A_TIME]]
            keys = list(pool.map(_file_key, images))
            known = memory.known(key for key in keys if key is not None)
            unknown = [number for number, key in enumerate(keys) if key is None or key not in known]
            found = dict(zip(unknown, pool.map(_hash, [images[number] for number in unknown]), strict=True))
            # Looked at once more: a file that changed while it was read keeps no hash.
            again = dict(zip(unknown, pool.map(_file_key, [images[number] for number in unknown]), strict=True))
            memory.remember(
                [
                    (key, found[number])
                    for number in unknown
                    if (key := keys[number]) is not None and key == again[number]
                ]
            )
            yield [found[n] if n in found else known[keys[n] or b""] for n in range(len(images))]


def _hash(image: ImageBytes) -> bytes:
    return hashlib.sha256(image.read()).digest()


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of files as `image_hashes` does for images: remembered, so that large ones are read once.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    hashes = []
    with SqliteCache("image_hashes", "files are read each time") as memory:
        for path in paths:
            key = _key_of_path(path)
            known = {} if key is None else memory.known([key])
            value = known[key].hex() if key in known else sha256_of(path)
            if key is not None and key not in known and key == _key_of_path(path):
                memory.remember({key: bytes.fromhex(value)})
            hashes.append(value)
    return hashes


def _file_key(image: ImageBytes) -> bytes | None:
    """Return what identifies an image's content, None where its hash must not be remembered."""
    if isinstance(image, FileImage):
        return _key_of_path(image.path)
    if not is_checkable(image) or getattr(image, "folder", None) is not None:
        return None  # a table on this disk may name files, which change without it
    try:
        return hashlib.sha256(image.check_key().encode()).digest()
    except UnreadableImageError:
        return None  # reading it says what is wrong


def _key_of_path(path: Path) -> bytes | None:
    try:
        status = path.stat()
    except OSError:
        return None  # reading it says what is wrong
    newest = max(status.st_mtime, status.st_ctime)
    if time.time() - newest < _SETTLED_SECONDS:
        return None
    values = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.sha256(os.fsencode(path.absolute()) + f"\0{values}".encode()).digest()
