"""A folder of images with their captions, in any layout of `tables/layouts.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from hfcap.data.checks import listed
from hfcap.data.image_files import folder_images
from hfcap.data.kept.keeping import Origin, origin_of_files
from hfcap.data.source import Source
from hfcap.data.tables.columns import look_at, pointing_to_inspect
from hfcap.data.tables.entries import EntryReader
from hfcap.data.tables.finding import layouts_of, tables_of
from hfcap.data.tables.grouping import Group
from hfcap.data.tables.layout import Layout, TableFile
from hfcap.data.tables.layouts import BY_NAME
from hfcap.data.tables.loading import groups_of, records_of
from hfcap.data.tables.options import TableOptions
from hfcap.errors import UserError
from hfcap.files import no_folder
from hfcap.places import LocalPath
from hfcap.registry import did_you_mean
from hfcap.schema import CaptionedImage
from hfcap.text import counted


class FolderOptions(TableOptions):
    """Keys of `data` for source folder."""

    source: Literal["folder"] = Field("folder", description="a folder of images with their captions")
    root: LocalPath = Field(description="folder of images with their captions")
    layout: str = Field("auto", description="how captions are kept: a name of 'hfcap list layouts'; auto = recognised")
    uncaptioned_images: Literal["error", "ignore"] = Field(
        "error", description="what to do with images in the folder, and rows, that have no caption"
    )


def load(options: FolderOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of one split, in the order of their first rows.

    Splits come from a column, else from the names of tables or subfolders, else each image's file name decides by a
    hash, so that images added later don't move the others (but for one that filled an empty split).

    Raises:
        NoSuchSplitError: no image is in this split.
        UserError: captions and images don't fit together.
    """
    root = Path(options.root).expanduser()
    with pointing_to_inspect(str(root)):
        groups, _ = all_groups(options, *found_layout(options))
    return records_of(groups, options, split_name, str(root))


def origin(options: FolderOptions, _split_name: str) -> Origin | None:
    """Return what the records of a split follow from: the names in the folder, and its tables' sizes and times."""
    return origin_of_files([], Path(options.root).expanduser(), options.allow_local_addresses)


def all_groups(options: FolderOptions, layout: Layout, tables: list[TableFile]) -> tuple[list[Group], EntryReader]:
    """Return every image of the folder with its captions, and what read them.

    Raises:
        UserError: captions and images don't fit together.
    """
    root = Path(options.root).expanduser()
    reader = EntryReader(layout, options, options.uncaptioned_images == "ignore", _what(layout))
    groups = groups_of(tables, reader, options, root, str(root))
    if options.uncaptioned_images == "error" and not options.filter and layout.whole_folder:
        _refuse_uncaptioned(root, groups)
    return groups, reader


def found_layout(options: FolderOptions) -> tuple[Layout, list[TableFile]]:
    """Return the layout of the folder and its files with captions.

    Raises:
        UserError: the folder is not there or in no layout that is known.
    """
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(no_folder(root, "folder", "name it with the recipe's key data.root"))
    if options.layout != "auto":
        if options.layout not in BY_NAME:
            raise UserError(f"unknown layout {options.layout!r} (data.layout){did_you_mean(options.layout, BY_NAME)}")
        layout = BY_NAME[options.layout]
        if not (tables := tables_of(root, layout)):
            raise UserError(f"{root}: no files of the layout {layout.name} ({layout.title}); {_suggestion(root)}")
        return layout, tables
    found = layouts_of(root)
    if not found:
        raise UserError(f"{root}: no captions in a layout that hfcap knows; {_suggestion(root)}")
    return found[0]


def _suggestion(root: Path) -> str:
    return (
        f"{look_at(str(root))}; see docs/data.md for the layouts, or let a captioner begin one, "
        "in that folder: hfcap caption MODEL . -o metadata.csv"
    )


def _what(layout: Layout) -> str:
    return "metadata file" if layout.name == "metadata" else "table"


def _refuse_uncaptioned(root: Path, groups: list[Group]) -> None:
    named = {group.record.file_name for group in groups}
    images = (path.relative_to(root).as_posix() for path in folder_images(root).found)
    without = [name for name in images if name not in named]
    if without:
        raise UserError(
            f"{root}: {counted(len(without), 'image')} without captions in the metadata: {listed(without)}; add "
            "captions, remove the files, or set data.uncaptioned_images: ignore"
        )


REGISTERED = Source(
    options=FolderOptions,
    load=load,
    description="a folder of images with their captions, in any known layout",
    origin=origin,
)
