"""Which layout a folder has, and which of its files hold the captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hfcap.data.image_files import folder_images
from hfcap.data.splits import canonical, split_in
from hfcap.data.tables.cell_paths import template_text, values_at
from hfcap.data.tables.columns import caption_columns, image_column
from hfcap.data.tables.layout import Layout, TableFile
from hfcap.data.tables.layouts import LAYOUTS
from hfcap.data.tables.reading import TableForm, read_rows
from hfcap.data.tables.sidecars import sidecar_of
from hfcap.errors import UserError
from hfcap.files import read_json_object, read_text

_SIDECAR_SHARE = 0.5
_LOOKED_AT = 200


def layouts_of(folder: Path) -> list[tuple[Layout, list[TableFile]]]:
    """Return the layouts that a folder can be read as, the likeliest first, with the files that hold its captions."""
    found = []
    for layout in LAYOUTS:
        if layout.automatic and (tables := tables_of(folder, layout)):
            found.append((layout, tables))
    return found


def tables_of(folder: Path, layout: Layout) -> list[TableFile]:
    """Return the files of a layout in a folder; those in folders of splits name images relative to themselves.

    Raises:
        UserError: the folder holds metadata.jsonl and metadata.csv.
    """
    if layout.rows is not None:
        suffix = {"sidecar_txt": ".txt", "sidecar_caption": ".caption", "sidecar_json": ".json"}.get(layout.name)
        return [TableFile(folder)] if suffix is None or _has_sidecars(folder, suffix) else []
    at_root = _matching(folder, layout)
    if at_root:
        splits = [split_in(path.name) for path in at_root]
        # A single table that says train is all there is, and not a split of something.
        given = all(splits) and splits != ["train"]
        return [TableFile(path, splits[n] if given else None) for n, path in enumerate(at_root)]
    return [
        TableFile(path, canonical(below.name), f"{below.name}/")
        for below in sorted(path for path in folder.iterdir() if path.is_dir() and split_in(path.name) is not None)
        for path in _matching(below, layout)
    ]


def _matching(folder: Path, layout: Layout) -> list[Path]:
    """Return the tables right in the folder, else those one folder below."""
    if layout.name == "metadata":
        named = [folder / name for name in layout.tables if (folder / name).is_file()]
        if len(named) > 1:
            raise UserError(f"{folder}: holds {' and '.join(path.name for path in named)}; keep one of them")
        return named
    for below in (False, True):
        found: dict[Path, None] = {}
        for pattern in (one for one in layout.tables if one.startswith("*/") == below):
            if not (found and layout.one_kind):
                found.update(dict.fromkeys(_fitting(sorted(folder.glob(pattern)), layout)))
        if found:
            return list(found)
    return []


def _fitting(paths: list[Path], layout: Layout) -> list[Path]:
    files = [path for path in paths if path.is_file() and path.name[0] != "."]
    if layout.one_file_an_image:  # the first stands for thousands
        return files if files and fits(files[0], layout) else []
    return [path for path in files if fits(path, layout)]


def _has_sidecars(folder: Path, suffix: str) -> bool:
    images = folder_images(folder).found[:_LOOKED_AT]
    with_one = sum(sidecar_of(image, suffix) is not None for image in images)
    return with_one > 0 and with_one >= _SIDECAR_SHARE * len(images)


def fits(table: Path, layout: Layout) -> bool:
    """Whether the first row of a table has what the layout needs; a file that is no table fits nothing."""
    status = table.stat()
    cells = _first_row(table, layout.form, status.st_mtime_ns, status.st_size)
    return cells is not None and _has_needs(cells, layout)


# Many layouts are tried on the same file, and parsing a large one takes seconds.
@lru_cache(maxsize=256)
def _first_row(table: Path, form: TableForm, _mtime: int, _size: int) -> Mapping[str, Any] | None:
    try:
        return next((row.cells for row in read_rows(table, form)), None)
    except UserError:
        return None


def _has_needs(cells: Mapping[str, Any], layout: Layout) -> bool:
    if not all(values_at(cells, place) for place in layout.needs):
        return False
    image = any(_is_there(cells, place) for place in layout.image) if layout.image else image_column(cells) is not None
    captions = True if layout.captions else len(caption_columns(cells)) > 0
    return image and captions


def _is_there(cells: Mapping[str, Any], place: str) -> bool:
    return template_text(cells, place) is not None if "{" in place else bool(values_at(cells, place))


def read_split_lists(folder: Path, layout: Layout) -> dict[str, str]:
    """Return image name -> split of the files that list a split's images, one a line.

    Raises:
        UserError: a list is no text.
    """
    lists: Iterable[Path] = (path for pattern in layout.split_lists for path in sorted(folder.rglob(pattern)))
    splits: dict[str, str] = {}
    for path in lists:
        split = split_in(path.name)
        if path.suffix == ".json":
            content = read_json_object(path, "list of splits")
            splits |= {str(one): str(name) for name, ones in content.items() if isinstance(ones, list) for one in ones}
        elif split is not None:
            lines = map(str.strip, read_text(path, "list of images").splitlines())
            splits |= {line: split for line in lines if line}
    return splits
