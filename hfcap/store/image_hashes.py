"""SHA-256 of images' encoded bytes, the name under which stores keep what was computed from them; and of files."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hfcap.data.images import CheckableImage, FileImage, UnreadableImageError
from hfcap.files import sha256_of
from hfcap.schema import CaptionedImage, ImageBytes
from hfcap.sqlite_cache import SqliteCache

_SETTLED_SECONDS = 10.0
"""A file changed again within the resolution of its time stamps would look unchanged: younger ones aren't trusted."""

_AT_A_TIME = 2048


def image_hashes(records: Sequence[CaptionedImage]) -> list[str]:
    """Return 64 hexadecimal digits for each image.

    Hashes of files are remembered by path, size, inode and both times of change (`image_hashes.sqlite` in the cache
    folder), so that the next run reads no image for this. The time of the inode's change (ctime) also tells of a file
    that was replaced by one with an older date. Those of a table's rows are remembered by the table's fingerprint.

    Raises:
        UnreadableImageError: an image is missing.
    """
    hashes: list[str] = []
    with SqliteCache("image_hashes", "images are read each time") as memory, ThreadPoolExecutor() as pool:
        for start in range(0, len(records), _AT_A_TIME):
            images = [record.image for record in records[start : start + _AT_A_TIME]]
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
            hashes += [(found[n] if n in found else known[keys[n] or b""]).hex() for n in range(len(images))]
    return hashes


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
    if not isinstance(image, CheckableImage) or getattr(image, "folder", None) is not None:
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
