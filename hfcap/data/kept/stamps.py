"""What tells whether files are still what they were: of one file its size and times, of a folder the names in it."""

from __future__ import annotations

import hashlib
import os
import time
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SETTLED_SECONDS = 10.0
"""A file changed again within the resolution of its time stamps would look unchanged: younger ones aren't trusted."""

MOST_ENTRIES = 20_000_000
"""A folder of more files and folders takes longer to look through than is saved."""

Stamp = tuple[int, int, int, int]
"""Size, time of the last change in nanoseconds, that of the inode's, and the inode: (4,)."""


_NO_FILE, _MISSING = (0,) * 4, (-1,) * 4


class UnsettledError(Exception):
    """A file has changed just now, or cannot be looked at: nothing may be concluded from its times."""


def stamp_of(path: Path | str) -> Stamp:
    """Return the stamp of a file; links are followed.

    Raises:
        UnsettledError: it is not there, or younger than SETTLED_SECONDS.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 a Path costs as much as the call, and there are millions
    except OSError as error:
        raise UnsettledError(str(error)) from None
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
        raise UnsettledError(str(path))
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def stamps_of(paths: Iterable[str | None], count: int) -> NDArray[np.int64]:
    """Return the stamps of files, (N, 4); all -1 of those that are missing, all 0 of what is no file."""
    look, values = os.stat, array("q")
    for path in paths:
        try:
            if path is None:
                values.extend(_NO_FILE)
            else:
                status = look(path)
                values.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        except OSError:
            values.extend(_MISSING)
    assert len(values) == 4 * count
    return np.frombuffer(values, dtype=np.int64).reshape(count, 4)


def is_settled(stamps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which stamps (N, 4) may be trusted, (N,)."""
    newest = stamps[:, 1:3].max(axis=1, initial=0)
    return (newest >= 0) & (newest < time.time_ns() - int(SETTLED_SECONDS * 1e9))


def listing_of(folder: Path, without_stamp: frozenset[str] | None) -> str:
    """Return what changes when a file or folder below a folder comes, goes, or becomes a link.

    The order in which the system lists them does not matter, so that no list is made: hashes of entries are added.

    Args:
        without_stamp: endings of files whose names alone count, not their stamps; None = of all files.

    Raises:
        UnsettledError: a file has changed just now, or there are too many.
    """
    total = count = 0
    for entry, inside in _entries(folder):
        count += 1
        if count > MOST_ENTRIES:
            raise UnsettledError(f"{folder}: more than {MOST_ENTRIES:,} files")
        facts = ""
        if entry.is_symlink():
            if without_stamp is not None and entry.is_dir():
                raise UnsettledError(f"{entry.path}: a linked folder, in which tables may change unseen")
            facts = f"\0{os.readlink(entry.path)}"  # noqa: PTH115 as above
        stamped = without_stamp is not None and _ending(entry.name) not in without_stamp
        if stamped and not entry.is_dir(follow_symlinks=False):
            facts += f"\0{stamp_of(entry.path)}"
        digest = hashlib.blake2b(os.fsencode(f"{inside}/{entry.name}{facts}"), digest_size=16).digest()
        total += int.from_bytes(digest)
    return f"{count} {total % 2**128:032x}"


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower()


def _entries(folder: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    waiting = [(str(folder), "")]
    while waiting:
        path, inside = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    yield entry, inside
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{inside}/{entry.name}"))
        except OSError as error:
            raise UnsettledError(str(error)) from None
