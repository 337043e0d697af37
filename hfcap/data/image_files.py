"""Image files of a folder: which are read, which are left out and why, and which one a name means."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from hfcap.data.heic import heic_formats
from hfcap.data.images import IMAGE_SUFFIXES
from hfcap.errors import UserError
from hfcap.text import counted, is_absolute

OTHER_SUFFIXES = frozenset(
    ".heic .heif .jxl .jp2 .svg .psd .xcf .tga .ico .eps .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf".split()  # noqa: SIM905 one a line is a page
)
"""Endings of images that are not read."""

_MACOS_ARCHIVE_FOLDER = "__MACOSX"
_SHOWN = 3
_COCO_NUMBER = re.compile(r"(?:^|_)(?=\d{12}$)0*(\d+)$")
"""COCO_val2014_000000000042 and 000000000042 are image 42."""


@dataclass
class FolderImages:
    """The image files of a folder and those below it.

    Attributes:
        found: those that are read, in order.
        unread: names of those in formats that are not read.
        hidden: names of those that are hidden, or in hidden folders.
    """

    found: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def left_out(self) -> str:
        """Return what was left out and what to do, as a sentence; empty where nothing was."""
        parts = []
        if self.unread:
            heic = any(name.lower().endswith((".heic", ".heif")) for name in self.unread)
            remedy = "convert them to JPEG" + (" (HEIC is read with: pip install pillow-heif)" if heic else "")
            parts.append(
                f"{counted(len(self.unread), 'file')} of formats that are not read ({some(self.unread)}): {remedy}"
            )
        if self.hidden:
            parts.append(f"{counted(len(self.hidden), 'hidden file')} ({some(self.hidden)})")
        return "left out: " + "; ".join(parts) if parts else ""


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def folder_images(folder: Path) -> FolderImages:
    """Look through a folder and those below it."""
    images = FolderImages()
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in IMAGE_SUFFIXES | OTHER_SUFFIXES or not path.is_file():
            continue
        inside = path.relative_to(folder)
        name = os.fsencode(inside.as_posix()).decode("utf-8", "replace")
        if any(part.startswith(".") or part == _MACOS_ARCHIVE_FOLDER for part in inside.parts):
            images.hidden.append(name)
        elif suffix in IMAGE_SUFFIXES or (suffix in (".heic", ".heif") and heic_formats()):
            images.found.append(path)
        else:
            images.unread.append(name)
    return images


def name_inside(folder: Path, written: str, key: str) -> str:
    """Return a file name from somebody's table relative to `folder`, with forward slashes.

    Whether a relative name stays inside is for `resolve_inside` to say.

    Args:
        key: the recipe's key of the folder, for the message.

    Raises:
        UserError: the name is absolute and outside of the folder.
    """
    name = written.replace("\\", "/")
    if not is_absolute(name):
        return name
    name = os.path.normpath(name)
    for root in (os.path.abspath(folder), os.path.realpath(folder)):  # noqa: PTH100 links of the folder stay or not
        if name.startswith(root.rstrip("/") + "/"):
            return name[len(root.rstrip("/")) + 1 :]
    raise UserError(
        f"file name {written!r} is absolute and outside of the folder {folder}; copy the image into it and write the "
        f"name relative to it, or name a folder above the image with {key}"
    )


def meant_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name -> the one file in `folder` that is meant by it, for names that are no file but nearly one.

    A name may differ in upper and lower case, in its ending, in the form of its accents (Unicode NFC, NFD), be written
    as in a web address (`%20`), be the number alone of COCO's names, or leave out or differ in the folders above.
    Names that several files could be meant by are left out, as are files that another name means.
    """
    wanted = list(names)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not missing:
        return {}
    by_name: dict[str, list[str]] = {}
    by_last_part: dict[str, list[str]] = {}
    for path in folder_images(folder).found:
        name = path.relative_to(folder).as_posix()
        for key in {_key(name), _key(_without_ending(name))}:
            by_name.setdefault(key, []).append(name)
        number = _COCO_NUMBER.search(path.stem)
        for key in {_key(path.name), _key(_without_ending(path.name)), *([number[1]] if number else [])}:
            by_last_part.setdefault(key, []).append(name)
    meant = {name: file for name in missing if (file := _only(by_name, name))}
    taken = {*meant.values(), *(set(wanted) - set(missing))}
    elsewhere = {name: _only(by_last_part, name.rpartition("/")[2]) for name in missing if name not in meant}
    twice = {file for file, count in Counter(elsewhere.values()).items() if count > 1}
    return meant | {name: file for name, file in elsewhere.items() if file and file not in taken | twice}


def _only(files: Mapping[str, list[str]], name: str) -> str | None:
    found = files.get(_key(name)) or files.get(_key(_without_ending(name))) or []
    return found[0] if len(found) == 1 else None


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 "/" stays


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()
