"""Metadata files next to images, whose columns prompts name: whether they are those that a captioning began with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os.path import dirname
from pathlib import Path

from hfcap.captioning.columns import metadata_places
from hfcap.data.images import FileImage
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage

Stamp = tuple[int, int]
"""Size and time of the last change of a file."""


def stamp_of(path: Path) -> Stamp | None:
    """Return size and time of the last change of a file; None where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def stamps_for(folders: Iterable[Path]) -> dict[str, Stamp]:
    """Return the metadata files that images in these folders get columns from, and in which state they are."""
    places = {place for folder in folders for place in metadata_places(folder)}
    found = {str(place): stamp_of(place) for place in sorted(places)}
    return {name: stamp for name, stamp in found.items() if stamp is not None}


def folders_of(records: Iterable[CaptionedImage]) -> set[Path]:
    """Return the folders that image files among the records are in."""
    # A million paths: their texts are cheaper than they.
    images = [record.image for record in records]
    names = {dirname(image.path) for image in images if isinstance(image, FileImage)}  # noqa: PTH120
    return {Path(name).absolute() for name in names}


def require_unchanged(began: Mapping[str, Stamp], folders: Iterable[Path]) -> None:
    """Refuse metadata files of these folders that are other ones than in the beginning.

    Args:
        began: `stamps_for` of these folders and perhaps of others.

    Raises:
        UserError: names one.
    """
    names = {str(place) for folder in folders for place in metadata_places(folder)}
    before = {name: began[name] for name in names if name in began}
    now = stamps_for(folders)
    if changed := sorted(name for name in names if before.get(name) != now.get(name)):
        raise UserError(
            f"{changed[0]}: was changed since the captioning began, and prompts name its columns; put it back as it "
            "was, or start again with --force"
        )
