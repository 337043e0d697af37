"""From the names of images in a table to where their bytes are: files of a folder, addresses, cells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hfcap.data.image_files import meant_files, name_inside
from hfcap.data.images import FileImage, resolve_inside
from hfcap.data.tables.entries import Entry
from hfcap.data.web.kept_images import kept_web_image
from hfcap.errors import UserError
from hfcap.schema import ImageBytes


def relative(entries: Sequence[Entry], folder: Path, key: str) -> list[Entry]:
    """Return the entries with their files named relative to the folder, also where a table has absolute names.

    Args:
        key: the recipe's key of the folder, for the message.

    Raises:
        UserError: with the place in the table: an absolute name outside of the folder.
    """
    return [_relative(entry, folder, key) for entry in entries]


def _relative(entry: Entry, folder: Path, key: str) -> Entry:
    if not isinstance(entry.image, str) or "://" in entry.image:
        return entry
    try:
        name = name_inside(folder, entry.image, key)
    except UserError as error:
        raise UserError(f"{entry.where}: {error}") from None
    return entry if name == entry.image else replace(entry, image=name)


def located(entries: Sequence[Entry], folder: Path, local_addresses: bool) -> list[tuple[str, ImageBytes]]:
    """Return name and bytes of each entry's image; nothing is read or fetched yet.

    A file's name is relative to `folder`, with forward slashes. A file that is not there keeps its written name: the
    check of images reports it.

    Raises:
        UserError: with the place in the table: a name that leads out of the folder, or no address of http or https.
    """
    written: dict[int, str] = {}
    for number, entry in enumerate(entries):
        if isinstance(entry.image, str) and "://" not in entry.image:
            try:
                resolve_inside(folder, entry.image)
            except UserError as error:
                raise UserError(f"{entry.where}: {error}") from None
            written[number] = os.path.normpath(entry.image).replace(os.sep, "/")
    meant = meant_files(folder, dict.fromkeys(written.values()))
    return [_image(entry, written.get(number), meant, folder, local_addresses) for number, entry in enumerate(entries)]


def _image(
    entry: Entry, written: str | None, meant: Mapping[str, str], folder: Path, local_addresses: bool
) -> tuple[str, ImageBytes]:
    if written is not None:
        name = meant.get(written, written)
        return name, FileImage(resolve_inside(folder, name))
    if isinstance(entry.image, str):
        try:
            return entry.image, kept_web_image(entry.image, local_addresses)
        except UserError as error:
            raise UserError(f"{entry.where}: {error}") from None
    return entry.image.describe(), entry.image
