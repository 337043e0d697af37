"""COCO's format of captions: `images` with id and file_name, `annotations` with image_id and caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfcap.data.checks import listed
from hfcap.errors import UserError
from hfcap.registry import did_you_mean
from hfcap.text import counted


def is_coco_format(content: Any) -> bool:
    """Whether a JSON file holds images and annotations apart."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def coco_rows(path: Path, content: Any) -> Iterator[dict[str, Any]]:
    """Yield each image with its `annotations`.

    Raises:
        UserError: the file is not in COCO format, an id occurs twice, or an annotation has no image.
    """
    images = coco_entries(path, content, "images", ("id", "file_name"))
    annotations = coco_entries(path, content, "annotations", ("image_id", "caption"))
    of_image: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in distinct_ids(path, images)}
    orphans = []
    for number, annotation in enumerate(annotations):
        image_id = str(annotation["image_id"])
        if image_id in of_image:
            of_image[image_id].append(annotation)
        else:
            orphans.append(f"annotations[{number}] (image_id {image_id})")
    refuse_orphans(path, orphans)
    for image in images:
        yield {**image, "annotations": of_image[str(image["id"])]}


def coco_entries(path: Path, content: Any, key: str, required: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a list of the file, each of whose entries has the required keys.

    Raises:
        UserError: names the entry that has not.
    """
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path}: not a COCO caption file: no list under {key!r} at the top; give one")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: {key}[{number}] must be an object")
        for name in required:
            if name not in entry:
                raise UserError(f"{path}: {key}[{number}] has no key {name!r}{did_you_mean(name, entry)}")
            kinds, said = ((str, int), "text or a whole number") if name.endswith("id") else (str, "text")
            if not isinstance(entry[name], kinds) or isinstance(entry[name], bool):
                raise UserError(f"{path}: {key}[{number}].{name} must be {said}, not {type(entry[name]).__name__}")
    return entries


def distinct_ids(path: Path, images: list[dict[str, Any]]) -> list[str]:
    """Return the ids of the images.

    Raises:
        UserError: one occurs twice.
    """
    counts = Counter(str(image["id"]) for image in images)
    twice = [image_id for image_id, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"{path}: {len(twice):,} image ids occur more than once in 'images': {listed(twice)}; remove one of each"
        )
    return list(counts)


def refuse_orphans(path: Path, orphans: list[str]) -> None:
    """Refuse annotations of images that are not in the file.

    Raises:
        UserError: there are some.
    """
    if orphans:
        raise UserError(
            f"{path}: {counted(len(orphans), 'caption')} without image, that is not in 'images': {listed(orphans)}; "
            "add the images"
        )
