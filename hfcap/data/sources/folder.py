"""A folder of images with metadata.jsonl or metadata.csv, as `datasets` calls it: imagefolder."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hfcap.cells import JoinedLines, captions_of_cell, csv_rows
from hfcap.data.checks import clean_caption, listed
from hfcap.data.image_files import folder_images, meant_files
from hfcap.data.images import FileImage, resolve_inside
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.places import LocalPath
from hfcap.recipe.block_base import Share
from hfcap.recipe.blocks import DataOptions
from hfcap.registry import did_you_mean
from hfcap.schema import CaptionedImage

_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval"),
}
_FEWEST_TO_MOVE = 3
"""With fewer images there cannot be one in each split."""

_CANONICAL = {alias: split for split, aliases in _SPLIT_ALIASES.items() for alias in aliases}


class FolderOptions(DataOptions):
    """Keys of `data` for source folder."""

    source: Literal["folder"] = "folder"
    root: LocalPath = Field(description="folder of images with metadata.jsonl or metadata.csv")
    caption_columns: list[str] | None = Field(
        None, description="columns that hold captions; default: captions, caption, caption_0.. or text"
    )
    validation_share: Share = Field(0.1, description="share of images for validation, where no splits are given")
    test_share: Share = Field(0.1, description="share of images for the test, where no splits are given")
    split_seed: int = Field(0, description="another seed draws other images for validation and test")
    uncaptioned_images: Literal["error", "ignore"] = Field(
        "error", description="what to do with images in the folder that the metadata doesn't mention"
    )


@dataclass(frozen=True)
class MetadataRow:
    """One line of a metadata file; `file_name` is relative to the folder the metadata file is in."""

    file_name: str
    captions: tuple[str, ...]
    split: str | None
    line: int


def parse_metadata(path: Path, caption_columns: list[str] | None = None) -> list[MetadataRow]:
    """Parse metadata.jsonl or metadata.csv.

    Raises:
        UserError: with file and line: no file_name, no captions, an empty caption, or no valid JSON or CSV.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else read_json_lines(path, "metadata file")
    joined = JoinedLines()
    parsed = [_metadata_row(f"{path}: line {line}", line, row, caption_columns, joined) for line, row in rows]
    joined.refuse(str(path))
    return parsed


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, row in csv_rows(path, "metadata file"):
        if None in row:
            raise UserError(f"{path}: line {line} has more fields than the header; put captions with commas in quotes")
        # Cells of optional caption columns may be empty: then the image has fewer captions.
        yield line, {str(name): cell for name, cell in row.items() if isinstance(cell, str) and cell.strip()}


def _metadata_row(
    where: str, line: int, row: dict[str, Any], caption_columns: list[str] | None, joined: JoinedLines
) -> MetadataRow:
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise UserError(f"{where} has no text under 'file_name'{did_you_mean('file_name', row)}")
    where = f"{where} ({file_name})"
    columns = caption_columns or _caption_columns(row)
    if not any(column in row for column in columns):
        raise UserError(
            f"{where} has no captions (columns {', '.join(columns) or 'caption, captions, caption_0 or text'}); "
            "add captions, or name the columns with data.caption_columns"
        )
    captions = [caption for column in columns for caption in _captions_in(row.get(column, []), column, where, joined)]
    if not captions:
        raise UserError(f"{where}: the list of captions is empty")
    split = row.get("split")
    if split is not None and not isinstance(split, str):
        raise UserError(f"{where}: split is {type(split).__name__}, not text")
    return MetadataRow(file_name, tuple(captions), split, line)


def _captions_in(value: Any, column: str, where: str, joined: JoinedLines) -> Iterator[str]:
    for cell in value if isinstance(value, list) else [value]:
        if not isinstance(cell, str):
            raise UserError(f"{where}: {column} is {type(cell).__name__}, not text or a list of texts")
        for caption in captions_of_cell(cell, f"{where}: {column}"):
            if not caption.strip():
                raise UserError(f"{where}: empty caption in {column}")
            joined.add(caption)
            yield clean_caption(caption)


def _caption_columns(row: dict[str, Any]) -> list[str]:
    for name in ("captions", "caption"):
        if name in row:
            return [name]
    numbered = sorted((name for name in row if re.fullmatch(r"caption_\d+", name)), key=lambda name: int(name[8:]))
    return numbered or [name for name in ("text",) if name in row]


def load(options: FolderOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of one split, in the order of their first metadata line.

    Splits come from a `split` column, else from subfolders train, validation and test, else each image's file name
    decides by a hash, so that images added later don't move the others (but for one that filled an empty split).

    Raises:
        NoSuchSplitError: no image is in this split.
        UserError: metadata and images don't fit together.
    """
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: folder not found; the recipe's key data.root names it")
    rows = _all_rows(root, options.caption_columns)
    groups = _by_file(root, rows)
    _check_uncaptioned(root, groups, options)
    splits = _splits(root, groups, options)
    records = [
        CaptionedImage(name, name, tuple(row.captions), FileImage(resolve_inside(root, name)))
        for name, row in groups.items()
        if _canonical(splits[name]) == _canonical(split_name)
    ]
    if not records:
        remedy = "" if any(row.split for row in groups.values()) else "raise data.validation_share or data.test_share"
        raise NoSuchSplitError(str(root), split_name, sorted(set(splits.values())), remedy)
    return records


def _canonical(split_name: str) -> str:
    return _CANONICAL.get(split_name, split_name)


def _all_rows(root: Path, caption_columns: list[str] | None) -> list[tuple[str, MetadataRow]]:
    """Return (metadata file, row) of the metadata file in `root`, or of those in its split subfolders."""
    at_root = _metadata_file(root)
    if at_root is not None:
        rows = parse_metadata(at_root, caption_columns)
        return [(str(at_root), row) for row in _with_folder_splits(rows)]
    found: list[tuple[str, MetadataRow]] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name in _CANONICAL):
        path = _metadata_file(folder)
        if path is not None:
            for row in parse_metadata(path, caption_columns):
                inside = replace(row, file_name=f"{folder.name}/{row.file_name}", split=_CANONICAL[folder.name])
                _resolve(path, row, folder)
                found.append((str(path), inside))
    if not found:
        raise UserError(
            f"{root}: no metadata.jsonl or metadata.csv with captions, neither in the folder nor in its subfolders "
            "train, validation and test; see docs/data.md for the layout, or let a captioner begin one, in that "
            "folder: hfcap caption MODEL . -o metadata.csv"
        )
    return found


def _metadata_file(folder: Path) -> Path | None:
    found = [folder / name for name in _METADATA_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{folder}: holds metadata.jsonl and metadata.csv; keep one of them")
    return found[0] if found else None


def _with_folder_splits(rows: list[MetadataRow]) -> list[MetadataRow]:
    """Take the split from the first folder of the file name where no row has one and all are in split folders."""
    folders = [row.file_name.split("/", 1)[0] if "/" in row.file_name else "" for row in rows]
    if any(row.split for row in rows) or not all(folder in _CANONICAL for folder in folders):
        return rows
    return [replace(row, split=_CANONICAL[folder]) for row, folder in zip(rows, folders, strict=True)]


def _resolve(path: Path, row: MetadataRow, folder: Path) -> Path:
    """Resolve a row's file name inside `folder`; the error names metadata file and line."""
    try:
        return resolve_inside(folder, row.file_name)
    except UserError as error:
        raise UserError(f"{path}: line {row.line}: {error}") from None


def _by_file(root: Path, rows: list[tuple[str, MetadataRow]]) -> dict[str, MetadataRow]:
    """Merge rows of the same image: their captions, in order."""
    groups: dict[str, MetadataRow] = {}
    for path, row in rows:
        _resolve(Path(path), row, root)
    names = [os.path.normpath(row.file_name).replace(os.sep, "/") for _, row in rows]
    meant = meant_files(root, dict.fromkeys(names))
    for (path, row), written in zip(rows, names, strict=True):
        name = meant.get(written, written)
        first = groups.get(name)
        if first is None:
            groups[name] = replace(row, file_name=name)
        elif first.split != row.split:
            raise UserError(
                f"{path}: line {row.line} puts {name} into split {row.split!r}, line {first.line} into {first.split!r}"
            )
        else:
            groups[name] = replace(first, captions=first.captions + row.captions)
    if not groups:
        raise UserError(f"{root}: the metadata file has no rows")
    return groups


def _check_uncaptioned(root: Path, groups: dict[str, MetadataRow], options: FolderOptions) -> None:
    if options.uncaptioned_images == "ignore":
        return
    images = (path.relative_to(root).as_posix() for path in folder_images(root).found)
    without = [name for name in images if name not in groups]
    if without:
        raise UserError(
            f"{root}: {len(without):,} images without captions in the metadata: {listed(without)}; add captions, "
            "remove the files, or set data.uncaptioned_images: ignore"
        )


def _splits(root: Path, groups: dict[str, MetadataRow], options: FolderOptions) -> dict[str, str]:
    without = [name for name, row in groups.items() if not row.split]
    if not without:
        return {name: row.split or "" for name, row in groups.items()}
    if len(without) < len(groups):
        raise UserError(f"{root}: {len(without):,} images without a split, while others have one: {listed(without)}")
    if options.validation_share + options.test_share >= 1:
        raise UserError("data.validation_share and data.test_share leave no images for training; lower them")
    return _drawn_splits(groups, options)


def _drawn_splits(file_names: Iterable[str], options: FolderOptions) -> dict[str, str]:
    """Return the split of each image, decided by the place of its file name's hash in the unit interval.

    With few images a split may get none by chance. From three images on it then takes the training image that
    lies nearest to its interval (where training has one to spare, else another split's); all others stay.
    """
    test, validation = options.test_share, options.validation_share
    intervals = {"test": (0.0, test), "validation": (test, test + validation), "train": (test + validation, 1.0)}
    places = {name: _place(name, options.split_seed) for name in file_names}
    splits = {
        name: next(split for split, (_, end) in intervals.items() if place < end or split == "train")
        for name, place in places.items()
    }
    if len(places) < _FEWEST_TO_MOVE:
        return splits
    for split, (begin, end) in intervals.items():
        sizes = Counter(splits.values())
        if sizes[split] or begin == end:
            continue
        spare = {donor for donor, size in sizes.items() if size > 1}
        donors = {"train"} & spare or spare
        near = {name: max(begin - places[name], places[name] - end) for name in places if splits[name] in donors}
        splits[min(near, key=lambda name: (near[name], name))] = split
    return splits


def _place(file_name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{file_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


REGISTERED = Source(
    options=FolderOptions, load=load, description="a folder of images with metadata.jsonl or metadata.csv"
)
