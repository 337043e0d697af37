"""Rows of a table file: CSV with any separator, JSON in its usual shapes, JSON lines, parquet."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hfcap.cells import csv_rows
from hfcap.data.tables.coco_format import coco_rows, is_coco_format
from hfcap.data.web.hub_images import RowImage
from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines

CSV_SUFFIXES = (".csv", ".tsv", ".tab", ".token")
LINES_SUFFIXES = (".jsonl", ".jsonlines", ".ndjson")
PARQUET_SUFFIXES = (".parquet",)
TABLE_SUFFIXES = (*CSV_SUFFIXES, *LINES_SUFFIXES, ".json", *PARQUET_SUFFIXES)
"""Endings of files that are read as tables without being named; a named .txt is read as CSV."""


class Row(NamedTuple):
    """One row: where it stands, for errors, and its cells."""

    where: str
    cells: dict[str, Any]


@dataclass(frozen=True)
class TableForm:
    """What a table file does not say itself.

    Attributes:
        delimiter: between the cells of CSV; empty = as the header tells.
        columns: names of the columns of CSV without a header.
        quoted: quotation marks enclose cells of CSV.
        one_row: a JSON file is one row, and its name stands under `json_file`.
        numbered: the first cell ends in `#` and the number of the caption.
    """

    delimiter: str = ""
    columns: tuple[str, ...] = ()
    quoted: bool = True
    one_row: bool = False
    numbered: bool = False


def read_rows(path: Path, form: TableForm, what: str = "table") -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        what: names the kind of file in errors.

    Raises:
        UserError: the file is missing, or not what its ending says; with the line.
    """
    suffix = path.suffix.lower()
    if suffix in LINES_SUFFIXES:
        for line, cells in read_json_lines(path, what):
            yield Row(f"{path}: line {line}", cells)
    elif suffix == ".json":
        yield from _json_rows(path, form, what)
    elif suffix in PARQUET_SUFFIXES:
        yield from _parquet_rows(path, what)
    else:
        yield from _csv_rows(path, form, what)


def _csv_rows(path: Path, form: TableForm, what: str) -> Iterator[Row]:
    delimiter = form.delimiter or ("\t" if path.suffix.lower() in (".tsv", ".tab", ".token") else "")
    for line, row in csv_rows(path, what, delimiter, form.columns, form.quoted):
        if None in row:
            raise UserError(f"{path}: line {line} has more fields than the header; put captions with commas in quotes")
        # Cells of optional caption columns may be empty: then the image has fewer captions.
        cells = {str(name).strip(): cell for name, cell in row.items() if isinstance(cell, str) and cell.strip()}
        if form.numbered and form.columns[0] in cells:
            cells[form.columns[0]] = re.sub(r"#\d+$", "", cells[form.columns[0]])
        yield Row(f"{path}: line {line}", cells)


def _json_rows(path: Path, form: TableForm, what: str) -> Iterator[Row]:
    content = read_json(path, what)
    if form.one_row:
        found: Any = [{**content, "json_file": path.name}] if isinstance(content, dict) else None
    elif is_coco_format(content):
        found = coco_rows(path, content)
    else:
        found = _rows_in(content)
    if found is None:
        raise UserError(
            f"{path}: {what} holds no rows; give a list of objects, or an object from file names to captions"
        )
    for number, cells in enumerate(found):
        where = f"{path}: row {number}"
        if not isinstance(cells, Mapping):
            raise UserError(f"{where} must be an object, not {type(cells).__name__}")
        yield Row(where, dict(cells))


def _rows_in(content: Any) -> list[Any] | None:
    """Return the rows of the usual shapes of JSON: a list, an object with one list of objects, names -> captions."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not content:
        return None
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1 and not all(isinstance(value, list) for value in content.values()):
        return lists[0]
    if len(content) == 1 and lists:
        return lists[0]
    if all(isinstance(value, dict) for value in content.values()):
        return [{"file_name": name, **value} for name, value in content.items()]
    if all(isinstance(value, str | list) for value in content.values()):
        return [{"file_name": name, "captions": value} for name, value in content.items()]
    return None


def _parquet_rows(path: Path, what: str) -> Iterator[Row]:
    import datasets
    import pyarrow

    if not path.is_file():
        raise UserError(f"{path}: {what} not found; check the path")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset("parquet", data_files={"train": str(path)})["train"]
    except (OSError, ValueError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: {what} is not valid parquet ({first_line}); write it again") from error
    of_bytes = [name for name, feature in table.features.items() if _holds_bytes(feature)]
    images = {name: table.select_columns([name]).cast_column(name, datasets.Image(decode=False)) for name in of_bytes}
    others = table.remove_columns(of_bytes)
    for number in range(len(table)):
        where = f"{path}: row {number}"
        cells = dict(others[number]) if others.column_names else {}
        cells |= {name: RowImage(images[name], name, number, where, path.parent) for name in of_bytes}
        yield Row(where, cells)


def _holds_bytes(feature: Any) -> bool:
    if type(feature).__name__ == "Value":
        return feature.dtype in ("binary", "large_binary")
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
