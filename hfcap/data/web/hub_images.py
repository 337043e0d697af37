"""Encoded images out of `datasets` rows: lazily from a table on disk, or streamed once into the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hfcap.data.images import MAX_IMAGE_BYTES, FileImage, UnreadableImageError
from hfcap.data.tables.cell_paths import values_at
from hfcap.data.web.hub_columns import Columns
from hfcap.data.web.kept_images import kept_web_image
from hfcap.data.web.network_errors import transport_errors
from hfcap.data.web.web_images import web_image
from hfcap.errors import UserError, WorkError
from hfcap.files import cache_folder, only_one, write_bytes, write_json, write_text
from hfcap.progress import error_console, progress_bar
from hfcap.recipe.prompt_fields import values_of

_COMMIT = "commit"
_ARCHIVES = ("zip", "tar", "gzip")

OpenSplit = Callable[[str | None], tuple[Any, Columns]]
RowFields = Callable[[Columns, str, int, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class CellImage:
    """An image in an undecoded Image cell that was read already, of a table that is streamed.

    Attributes:
        name: dataset, split and row.
        folder: the local folder that the user named as dataset; its files may be read.
        local: addresses may be in this machine's own network.
        keep: what is fetched from an address is kept in the cache folder.
    """

    cell: Any
    name: str
    folder: Path | None = None
    local: bool = False
    keep: bool = False

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            UnreadableImageError: the cell holds no image.
        """
        return encoded_bytes(self.cell, self.name, self.folder, self.local, self.keep)

    def describe(self) -> str:
        """Return dataset, split and row."""
        return self.name


@dataclass(frozen=True, slots=True)
class RowImage:
    """An image in one row of a map-style dataset whose image column isn't decoded; other attributes: CellImage.

    Attributes:
        column: the column, or a place in its cells (`images[0]`).

    Pickling it pickles the dataset, which names its files on disk instead of copying them.
    """

    dataset: Any
    column: str
    row: int
    name: str
    folder: Path | None = None
    local: bool = False

    def read(self) -> bytes:
        """As in CellImage."""
        cells = values_at(self.dataset[self.row], self.column)
        return CellImage(cells[0] if len(cells) == 1 else cells, self.name, self.folder, self.local, keep=True).read()

    def describe(self) -> str:
        """As in CellImage."""
        return self.name

    def check_key(self) -> str:
        """Return the table's fingerprint and the row."""
        return f"{self.dataset._fingerprint}\0{self.column}\0{self.row}"


@dataclass(frozen=True, slots=True)
class RowColumns(Mapping[str, str]):
    """What one row of a map-style dataset says of its image, column -> text, read when it is asked for.

    Attributes:
        table: only the columns that count.
    """

    table: Any
    row: int

    def __getitem__(self, name: str) -> str:
        return values_of(self.table[self.row])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(values_of(self.table[self.row]))

    def __len__(self) -> int:
        return len(values_of(self.table[self.row]))


def undecoded(table: Any, column: str, others: Sequence[str] = ()) -> Any:
    """Return a table of the one column, whose cells are {bytes, path} (or a list of those) and not yet images.

    Args:
        others: columns that stay next to it.
    """
    import datasets

    image = datasets.Image(decode=False)
    kind = type(table.features[column]).__name__ if table.features is not None else ""
    in_lists = kind in ("List", "LargeList", "Sequence")
    chosen = table.select_columns([column, *others])
    return chosen.cast_column(column, datasets.Sequence(image) if in_lists else image)


def encoded_bytes(cell: Any, name: str, folder: Path | None = None, local: bool = False, keep: bool = False) -> bytes:
    """Return the bytes of an undecoded Image cell.

    A file name in the cell is only followed into `folder` and into the caches of datasets and huggingface_hub.

    Raises:
        UnreadableImageError: no image, or a file elsewhere on this machine.
    """
    if isinstance(cell, list) and len(cell) > 1:
        raise UnreadableImageError(
            f"{name}: the row holds {len(cell)} images, and captions are about one; choose it with data.image_column, "
            "such as images[0]"
        )
    cell = cell[0] if isinstance(cell, list) and cell else cell
    if not isinstance(cell, dict) or (cell.get("bytes") is None and not cell.get("path")):
        raise UnreadableImageError(f"{name}: the row holds no image")
    if cell.get("bytes") is not None:
        encoded: bytes = cell["bytes"]
        return encoded
    path = str(cell["path"])
    if "://" in path:
        return _remote_bytes(path, name, local, keep)
    # A table from a stranger may name any file of this machine, which training would then memorise and publish.
    if not _in_trusted_folder(Path(path), folder):
        raise UnreadableImageError(
            f"{name}: names the file {path}, outside of the dataset; store the image's bytes in the dataset, "
            "or use source: folder"
        )
    return FileImage(Path(path)).read()


def _in_trusted_folder(path: Path, folder: Path | None) -> bool:
    import datasets
    from huggingface_hub import constants

    roots = [datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE]
    roots += [] if folder is None else [folder]
    resolved = path.resolve()
    return any(resolved.is_relative_to(Path(root).resolve()) for root in roots)


def _remote_bytes(path: str, name: str, local: bool, keep: bool) -> bytes:
    import fsspec  # type: ignore[import-untyped]

    if path.startswith(("http://", "https://")) and "::" not in path:
        try:
            return (kept_web_image if keep else web_image)(path, local).read()
        except UnreadableImageError:
            raise
        except UserError as error:  # no possible address
            raise UnreadableImageError(f"{name}: {error}") from None
    # Only the Hub's own protocol, and archives there ("zip://a.jpg::hf://datasets/..."): fsspec also knows file, local,
    # http and others, and each could stand in front.
    *inside, place = path.split("::")
    if not place.startswith("hf://datasets/") or any(part.partition("://")[0] not in _ARCHIVES for part in inside):
        raise UnreadableImageError(
            f"{name}: names {path}; only images on the Hub itself, and by http and https, are fetched"
        )
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *transport_errors())
    try:
        with fsspec.open(path, "rb") as handle:
            encoded: bytes = handle.read(MAX_IMAGE_BYTES + 1)
            return encoded
    except failures as error:
        raise UnreadableImageError(f"{name}: {path} cannot be fetched ({error})") from None


def stream_to_cache(
    identity: dict[str, Any],
    n_rows: int,
    open_split: OpenSplit,
    row_fields: RowFields,
    newest_commit: Callable[[], str | None],
) -> Iterator[tuple[dict[str, Any], FileImage]]:
    """Yield (fields, image) of the first `n_rows` rows of a streamed split; what is in the cache isn't fetched again.

    A stopped run goes on where it ended, with the commit it began with; once all rows are there no network is needed.
    Of several processes one fetches, and the others wait for it.

    Args:
        identity: everything that decides what a row looks like; names the cache folder.
        open_split: opens the stream of a commit; None = of no particular one.
        newest_commit: the dataset's commit now, None where it has none.
        row_fields: (columns, split, row number, row) -> JSON object that is kept with the image.

    Raises:
        WorkError: the stream breaks.
    """
    folder = _streamed_folder(identity)
    if not folder.is_dir():
        write_json(folder / "source.json", identity)
    rows = _complete_rows(folder)
    if len(rows) < n_rows and not (folder / "ended").exists():
        with only_one(folder / "lock"):
            commit = _first_commit(folder, newest_commit)
            rows = _complete_rows(folder)
            if len(rows) < n_rows and not (folder / "ended").exists():
                opened = partial(open_split, commit)
                rows += _fetch_rows(folder, len(rows), n_rows, identity["split"], opened, row_fields)
    for number, fields in enumerate(rows[:n_rows]):
        yield fields, FileImage(_image_path(folder, number))


def streamed_commit(identity: dict[str, Any]) -> str | None:
    """Return the commit of the rows that `stream_to_cache` keeps under this identity, if they have one."""
    path = _streamed_folder(identity) / _COMMIT
    return (path.read_text(encoding="utf-8") or None) if path.is_file() else None


def _streamed_folder(identity: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / "streamed" / key


def _image_path(folder: Path, number: int) -> Path:
    # Thousand files per folder: file systems slow down with hundreds of thousands in one.
    return folder / f"{number // 1000:05d}" / f"{number:08d}.image"


def _complete_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    # What follows the last line break was written by a run that was killed, or is being written.
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.split(b"\n") if line]


def _first_commit(folder: Path, newest_commit: Callable[[], str | None]) -> str | None:
    """Return the commit whose rows a cache folder holds; rows of another one would not continue them."""
    path = folder / _COMMIT
    if not path.is_file():
        write_text(path, newest_commit() or "")
    return path.read_text(encoding="utf-8") or None


def _fetch_rows(
    folder: Path,
    start: int,
    end: int,
    split: str,
    open_stream: Callable[[], tuple[Any, Columns]],
    row_fields: RowFields,
) -> list[dict[str, Any]]:
    import datasets

    stream, columns = open_stream()
    in_lists = type(stream.features[columns.image_base]).__name__ in ("List", "LargeList", "Sequence")
    image: Any = datasets.Image(decode=False)
    stream = stream.select_columns([columns.image_base, *columns.of_text]).cast_column(
        columns.image_base, datasets.Sequence(image) if in_lists else image
    )
    fetched: list[dict[str, Any]] = []
    failures: tuple[type[Exception], ...] = (OSError, *transport_errors())
    try:
        with (folder / "rows.jsonl").open("ab") as handle, progress_bar() as progress:
            _cut_half_line(folder / "rows.jsonl")
            task = progress.add_task(f"streaming {split}", total=end, completed=start)
            for number, row in enumerate(stream.skip(start).take(end - start), start=start):
                fields = row_fields(columns, split, number, row)
                try:
                    cells = values_at(row, columns.image)
                    encoded = encoded_bytes(cells[0] if len(cells) == 1 else cells, f"{split}, row {number}")
                except UnreadableImageError as error:
                    # An empty file: the check of images counts it against data.max_unreadable_images.
                    error_console.print(f"warning: {error}", markup=False)
                    encoded = b""
                # The image first: a line in rows.jsonl says that its image is complete.
                write_bytes(_image_path(folder, number), encoded)
                handle.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
                handle.flush()
                fetched.append(fields)
                progress.advance(task)
    except failures as error:
        raise WorkError(
            f"streaming stopped after {start + len(fetched):,} rows ({error}); run again to go on"
        ) from error
    if len(fetched) < end - start:
        (folder / "ended").touch()
    return fetched


def _cut_half_line(path: Path) -> None:
    """Drop a line that a killed run left unfinished."""
    content = path.read_bytes()
    with path.open("r+b") as handle:
        handle.truncate(content.rfind(b"\n") + 1)
