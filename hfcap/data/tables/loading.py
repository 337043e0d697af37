"""From tables to the records of a split: read, located, grouped, shared out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hfcap.data.splits import canonical, split_in, splits_of
from hfcap.data.tables.columns import UnfitColumnsError
from hfcap.data.tables.entries import Entry, EntryReader
from hfcap.data.tables.finding import read_split_lists
from hfcap.data.tables.grouping import Group, grouped
from hfcap.data.tables.layout import Layout, TableFile
from hfcap.data.tables.locating import located, relative
from hfcap.data.tables.options import TableOptions
from hfcap.schema import CaptionedImage


def groups_of(
    tables: Sequence[TableFile], reader: EntryReader, options: TableOptions, folder: Path, where: str
) -> list[Group]:
    """Return every image of the tables with its captions and the split that is given for it, if one is.

    Args:
        folder: the images' folder.
        where: names the data in errors.

    Raises:
        UserError: tables and images don't fit together.
    """
    entries = [entry for table in tables for entry in reader.entries(table)]
    if not entries:
        left_out = f" (left out: {reader.left_out})" if reader.left_out.counts else ""
        raise UnfitColumnsError(f"{where}: there are no rows with captions{left_out}; add some")
    entries = relative(entries, folder, "data.images" if options.source == "table" else "data.root")
    entries = _with_given_splits(entries, reader.layout, tables[0].path, folder)
    images = located(entries, folder, options.allow_local_addresses)
    return grouped(entries, images, options.group_by == "content")


def records_of(groups: Sequence[Group], options: TableOptions, split_name: str, where: str) -> list[CaptionedImage]:
    """Return the records of one split, in the order of their first rows.

    Raises:
        NoSuchSplitError: no image is in this split.
    """
    from hfcap.data.source import NoSuchSplitError

    splits = splits_of({group.record.image_id: group.split for group in groups}, options, where)
    chosen = [group.record for group in groups if canonical(splits[group.record.image_id]) == canonical(split_name)]
    if not chosen:
        drawn = not any(group.split for group in groups)
        remedy = "raise data.validation_share or data.test_share" if drawn else ""
        raise NoSuchSplitError(where, split_name, sorted(set(splits.values())), remedy)
    return chosen


def _with_given_splits(entries: list[Entry], layout: Layout, table: Path, folder: Path) -> list[Entry]:
    """Fill in splits where no row has one: from lists of the layout, or where all images lie in folders of splits."""
    if any(entry.split for entry in entries):
        return entries
    if layout.split_lists:
        parent = table if table.is_dir() else table.parent
        listed = read_split_lists(parent, layout) or read_split_lists(folder, layout)
        if listed:
            found = [replace(entry, split=_listed_split(entry, listed)) for entry in entries]
            return [entry for entry in found if entry.split]
    splits = [_folder_split(entry) for entry in entries]
    if not all(splits):
        return entries
    return [replace(entry, split=split) for entry, split in zip(entries, splits, strict=True)]


def _listed_split(entry: Entry, listed: dict[str, str]) -> str | None:
    written = entry.listed_as or (entry.image if isinstance(entry.image, str) else "")
    name = PurePosixPath(written)
    return listed.get(written) or listed.get(name.name) or listed.get(name.stem)


def _folder_split(entry: Entry) -> str | None:
    if not isinstance(entry.image, str) or "://" in entry.image or "/" not in entry.image:
        return None
    return split_in(entry.image.split("/", 1)[0])
