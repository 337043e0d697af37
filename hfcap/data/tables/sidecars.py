"""Captions next to their images: a text or JSON file of the same name, or the name itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hfcap.data.image_files import folder_images
from hfcap.data.tables.reading import Row
from hfcap.files import read_json_object, read_text

_NUMBER_BEFORE = re.compile(r"^\d+[\s_.)-]+")
_NUMBER_AFTER = re.compile(r"([\s_-]*\(\d+\)|[\s_-]+\d+)$")


def sidecar_of(image: Path, suffix: str) -> Path | None:
    """Return the file next to an image that has its name and this ending: `001.txt`, or `001.png.txt`."""
    for path in (image.with_suffix(suffix), image.with_name(image.name + suffix)):
        if os.path.isfile(path):  # noqa: PTH113 pathlib raises where a name with both endings is too long to exist
            return path
    return None


def sidecar_rows(suffix: str) -> Callable[[Path], Iterator[Row]]:
    """Return a reader of the images in a folder that have such a file; an empty one is no caption."""
    return partial(_sidecar_rows, suffix)


def _sidecar_rows(suffix: str, folder: Path) -> Iterator[Row]:
    for image in folder_images(folder).found:
        path = sidecar_of(image, suffix)
        if path is None:
            continue
        name = image.relative_to(folder).as_posix()
        if suffix == ".json":
            # The image's own name last: an object may name the file as it was somewhere else.
            yield Row(str(path), {**read_json_object(path, "sidecar file"), "file_name": name})
        elif text := read_text(path, "sidecar file").strip():
            yield Row(str(path), {"file_name": name, "caption": text})


def file_name_rows(folder: Path) -> Iterator[Row]:
    """Yield the images of a folder with what their names say: `012_a_red_rose.jpg` is a red rose."""
    for image in folder_images(folder).found:
        name = image.relative_to(folder).as_posix()
        if caption := caption_in_name(image.stem):
            yield Row(str(image), {"file_name": name, "caption": caption})


def caption_in_name(stem: str) -> str:
    """Return what a file's name says, without a number at its beginning or end; empty if that is nothing."""
    text = _NUMBER_AFTER.sub("", _NUMBER_BEFORE.sub("", stem))
    if " " not in text.strip():
        text = re.sub(r"[_-]+|\+|%20", " ", text)
    text = " ".join(text.split())
    return text if re.search(r"[^\W\d_]", text) else ""
