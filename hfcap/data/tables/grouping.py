"""Rows that are captions of one image become one image: by id, by name, or by the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from hfcap.data.images import UnreadableImageError, is_checkable
from hfcap.data.splits import canonical
from hfcap.data.tables.entries import Entry
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage, ImageBytes
from hfcap.sqlite_cache import SqliteCache


@dataclass(frozen=True, slots=True)
class Group:
    """An image with the captions of all its rows; the first row's place, split, image and columns stay."""

    where: str
    record: CaptionedImage
    split: str | None


def grouped(entries: Sequence[Entry], images: Sequence[tuple[str, ImageBytes]], by_content: bool) -> list[Group]:
    """Join the entries of each image, in the order of their first rows.

    Args:
        images: name and bytes of each entry's image.
        by_content: rows with the same bytes are one image too; every image is read for it.

    Raises:
        UserError: an image is in two splits.
    """
    groups: dict[str, Group] = {}
    for entry, (name, image) in zip(entries, images, strict=True):
        image_id = name if entry.image_id is None else entry.image_id
        prompts = (entry.prompt,) if entry.prompt else ()
        record = CaptionedImage(image_id, name, entry.captions, image, entry.group, prompts, entry.columns, entry.asked)
        _join(groups, image_id, Group(entry.where, record, entry.split))
    if not by_content:
        return list(groups.values())
    found = list(groups.values())
    of_bytes: dict[str, Group] = {}
    for group, digest in zip(found, _digests([group.record.image for group in found]), strict=True):
        _join(of_bytes, digest or f"unreadable {group.record.image_id}", group)
    return list(of_bytes.values())


def _join(groups: dict[str, Group], key: str, group: Group) -> None:
    first = groups.setdefault(key, group)
    if first is group:
        return
    if canonical(first.split or "") != canonical(group.split or ""):
        raise UserError(
            f"{group.where} puts {group.record.image_id} into split {group.split!r}, {_place(first.where)} "
            f"{'' if first.record.image_id == group.record.image_id else 'the same image '}into "
            f"{first.split!r}; choose one"
        )
    captions = first.record.captions + group.record.captions
    prompts = tuple(dict.fromkeys(first.record.prompts + group.record.prompts))
    asked = first.record.asked + group.record.asked
    groups[key] = replace(first, record=replace(first.record, captions=captions, prompts=prompts, asked=asked))


def _place(where: str) -> str:
    return where.rpartition(": ")[2]


def _digests(images: Sequence[ImageBytes]) -> list[str | None]:
    """Return the hash of each image's bytes, remembered; None of what cannot be read."""
    with SqliteCache("content_hashes", "images are read each time") as memory, ThreadPoolExecutor(8) as executor:
        keys = list(executor.map(_key, images))
        known = memory.known(key for key in keys if key)
        new = [image for image, key in zip(images, keys, strict=True) if key not in known]
        read = dict(zip(map(id, new), executor.map(_digest, new), strict=True))
        digests = [known.get(key) or read.get(id(image)) for image, key in zip(images, keys, strict=True)]
        memory.remember({key: digest for key, digest in zip(keys, digests, strict=True) if key and digest})
    return [None if digest is None else digest.hex() for digest in digests]


def _key(image: ImageBytes) -> bytes:
    try:
        return hashlib.sha256(image.check_key().encode()).digest() if is_checkable(image) else b""
    except UnreadableImageError:
        return b""


def _digest(image: ImageBytes) -> bytes | None:
    try:
        return hashlib.sha256(image.read()).digest()
    except UnreadableImageError:
        return None
