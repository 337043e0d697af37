"""What tables say of images that somebody captions, for prompts with fields: metadata files, rows of datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hfcap.captioners.asking.asked import has_fields, longest, prompts_of
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.room import require_room
from hfcap.data.images import FileImage
from hfcap.data.tables.columns import image_column
from hfcap.data.tables.layouts import BY_NAME
from hfcap.data.tables.reading import TableForm, read_rows
from hfcap.data.web.image_stream import ImageStream
from hfcap.decoding import DecodingJob
from hfcap.errors import UserError
from hfcap.recipe.prompt_fields import fields_of, values_of
from hfcap.schema import CaptionedImage

Tables = dict[Path, dict[str, Mapping[str, str]]]
"""Folder -> file name -> columns, of the metadata files that were read."""

_FOLDERS_ABOVE = 3
"""A metadata file may be in the image's folder, or in one of so many above it."""


def prepared_for(captioner: Captioner, job: DecodingJob, images: ImageStream) -> ImageStream:
    """Return the images with what the prompt asks of them, and refuse what the captioner could not follow.

    Raises:
        UserError: a listed image has no value for a field of the prompt, or a dataset no such column; or captions may
            outgrow the text model.
    """
    asked = job.prompt is None and any(record.asked for record in images.listed or ())
    if asked and not captioner.answers_prompts:
        raise UserError(
            f"captioner {captioner.family}: takes no instructions, so that it answers no questions about images; give "
            "an image-text-to-text model, or the address of a server"
        )
    if not has_fields(captioner, job.prompt):
        require_room(captioner, job.options, longest(captioner, prompts_of(captioner, job.prompt, [])))
        return images
    template = captioner.template if job.prompt is None else job.prompt
    if images.listed is not None:
        images.listed[:] = with_columns(images.listed)
        require_room(captioner, job.options, longest(captioner, prompts_of(captioner, job.prompt, images.listed)))
        return images
    if images.columns is not None and (lacking := [one for one in fields_of(template) if one not in images.columns]):
        raise UserError(
            f"prompt {template!r}: the dataset has no column for {{{lacking[0]}}} (columns: "
            f"{', '.join(images.columns) or 'none'}); change the prompt"
        )
    require_room(captioner, job.options, captioner.prompt)
    return images


def with_columns(records: Iterable[CaptionedImage], tables: Tables | None = None) -> Iterator[CaptionedImage]:
    """Yield image files with what the metadata files in their folders, or above, say of them; others as they are.

    Args:
        tables: those that were read before; others are added.

    Raises:
        UserError: a metadata file is damaged.
    """
    tables = {} if tables is None else tables
    for record in records:
        place = record.image.path.absolute() if isinstance(record.image, FileImage) else None
        yield record if record.columns or place is None else replace(record, columns=_of_file(place, tables))


def metadata_places(folder: Path) -> Iterator[Path]:
    """Yield where a metadata file of images in a folder may lie."""
    for place in (folder, *folder.parents[:_FOLDERS_ABOVE]):
        yield from (place / name for name in BY_NAME["metadata"].tables)


def _of_file(path: Path, tables: Tables) -> Mapping[str, str]:
    for folder in path.parents[: _FOLDERS_ABOVE + 1]:
        if folder not in tables:
            tables[folder] = _table_of(folder)
        if found := tables[folder].get(path.relative_to(folder).as_posix()):
            return found
    return {}


def _table_of(folder: Path) -> dict[str, Mapping[str, str]]:
    """Return file name -> columns of a folder's metadata file; empty where there is none."""
    found: dict[str, Mapping[str, str]] = {}
    for name in BY_NAME["metadata"].tables:
        if (folder / name).is_file():
            for row in read_rows(folder / name, TableForm(), "metadata file"):
                image = row.cells.get(image_column(row.cells) or "")
                if isinstance(image, str):
                    found.setdefault(Path(image.replace("\\", "/")).as_posix(), values_of(row.cells))
    return found
