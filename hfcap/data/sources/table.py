"""Tables of captions in any of the usual files, with columns that are named or found."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from hfcap.data.kept.keeping import Origin, origin_of_files
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.data.tables.columns import pointing_to_inspect
from hfcap.data.tables.entries import EntryReader
from hfcap.data.tables.grouping import Group
from hfcap.data.tables.layout import TableFile
from hfcap.data.tables.layouts import COLUMNS_ONLY
from hfcap.data.tables.loading import groups_of, records_of
from hfcap.data.tables.options import TableOptions
from hfcap.errors import UserError
from hfcap.files import no_folder
from hfcap.places import LocalPath
from hfcap.schema import CaptionedImage


class TableSourceOptions(TableOptions):
    """Keys of `data` for source table."""

    source: Literal["table"] = Field("table", description="rows of a file, with columns that are found or named")
    table: LocalPath | dict[str, LocalPath] = Field(
        description="file of CSV with any separator, JSON, JSON lines or parquet; or a mapping from split name to file"
    )
    images: LocalPath | None = Field(None, description="folder of images; default: the table's")
    delimiter: str = Field("", max_length=1, description="between the cells of CSV; default: the one of its header")
    uncaptioned_images: Literal["error", "ignore"] = Field(
        "error", description="what to do with rows that have no caption"
    )


def load(options: TableSourceOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of one split, in the order of their first rows.

    Raises:
        NoSuchSplitError: no image is in this split.
        UserError: the table is not there, not understood, or names images outside of the folder.
    """
    if isinstance(options.table, dict):
        if split_name not in options.table:
            raise NoSuchSplitError("data.table", split_name, options.table)
        options = options.model_copy(update={"table": options.table[split_name]})
        return [group.record for group in _groups(options)]
    return records_of(_groups(options), options, split_name, options.table)


def origin(options: TableSourceOptions, split_name: str) -> Origin | None:
    """Return what the records of a split follow from: the table, and the names in the image folder."""
    named = options.table.get(split_name) if isinstance(options.table, dict) else options.table
    if named is None:
        return None
    path = Path(named).expanduser()
    return origin_of_files([path], _image_folder(options, path), options.allow_local_addresses)


def _image_folder(options: TableSourceOptions, path: Path) -> Path:
    return path.parent if options.images is None else Path(options.images).expanduser()


def _groups(options: TableSourceOptions) -> list[Group]:
    with pointing_to_inspect(str(options.table)):
        return all_groups(options)[0]


def all_groups(options: TableSourceOptions) -> tuple[list[Group], EntryReader]:
    """Return every image of a single table with its captions, and what read them.

    Raises:
        UserError: as `load`.
    """
    assert isinstance(options.table, str)
    path = Path(options.table).expanduser()
    folder = _image_folder(options, path)
    if not folder.is_dir():
        raise UserError(no_folder(folder, "image folder", "name it with the recipe's key data.images"))
    reader = EntryReader(COLUMNS_ONLY, options, options.uncaptioned_images == "ignore", delimiter=options.delimiter)
    return groups_of([TableFile(path)], reader, options, folder, str(path)), reader


REGISTERED = Source(
    options=TableSourceOptions,
    load=load,
    description="a table of file names or addresses and captions: CSV, TSV, JSON, JSON lines, parquet",
    origin=origin,
)
