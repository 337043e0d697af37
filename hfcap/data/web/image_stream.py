"""Images to caption, one after the other: files and web addresses, or the rows of a dataset that is streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hfcap.data.images import UnreadableImageError, is_checkable
from hfcap.data.source import NoSuchSplitError
from hfcap.data.sources.hub import HubOptions, is_saved_dataset, open_splits
from hfcap.data.tables.cell_paths import values_at
from hfcap.data.web.hub_columns import column_of, find_image_column, text_columns
from hfcap.data.web.hub_images import CellImage, undecoded
from hfcap.data.web.network_errors import transport_errors
from hfcap.errors import UserError, WorkError
from hfcap.failures.hub import out_of_reach
from hfcap.recipe.prompt_fields import values_of
from hfcap.schema import CaptionedImage, ImageBytes


@dataclass(frozen=True)
class ImageStream:
    """Images in an order that stays the same.

    Attributes:
        identity: JSON value that changes when the images do.
        total: how many there are; None where only reading to the end tells.
        open: (how many are done, id of the last of them) -> the images after it, read when they are asked for.
        listed: the images, where they are known without reading; the same objects that `open` gives.
        columns: what the rows of a dataset say besides; None where only reading tells.
        parts: (rows a part should have) -> the parts of a dataset, which can be read apart; of others there are none.
    """

    identity: Any
    total: int | None
    open: Callable[[int, str | None], Iterator[CaptionedImage]]
    listed: list[CaptionedImage] | None = None
    columns: tuple[str, ...] | None = None
    parts: Callable[[int], list[DatasetPart]] | None = None


@dataclass(frozen=True)
class DatasetPart:
    """Some rows of a dataset, so that another process can read them.

    Attributes:
        dataset, config_name, image_column: see `dataset_images`; image_column is what was chosen. revision: commit.
        start, stop: rows; of a stream its shards from `start` to before `stop`, which is the next one.
        n_shards: of a stream (often its files); 0 = rows are counted.
    """

    dataset: str
    config_name: str | None
    revision: str | None
    split: str
    image_column: str
    start: int
    stop: int
    n_shards: int


def listed_images(records: Sequence[CaptionedImage]) -> ImageStream:
    """Return the stream of images that are known one by one."""
    known = list(records)

    def after(done: int, last: str | None) -> Iterator[CaptionedImage]:
        yield from known[done:]

    return ImageStream(list(map(identity_of, known)), len(known), after, known)


def identity_of(record: CaptionedImage) -> list[str]:
    """Return what changes when an image does (JSON)."""
    return [record.image_id, _stamp(record.image)]


def _stamp(image: ImageBytes) -> str:
    try:
        return image.check_key() if is_checkable(image) else image.describe()
    except UnreadableImageError:
        return ""  # missing: reading it says so


def dataset_images(
    dataset: str, *, split: str | None = None, config_name: str | None = None, image_column: str | None = None
) -> ImageStream:
    """Return the rows of a dataset; what is on the Hub is streamed, nothing is kept on this disk.

    Args:
        dataset: Hub id; or folder of save_to_disk, folder with tables, .parquet or .arrow file.
        split: only this one; None = all, one after the other.

    Raises:
        UserError: the dataset, its split or its column of images is not there, or several could be meant.
        WorkError: the Hub cannot be reached (as soon as images are asked for: or the stream breaks).
    """
    path = Path(dataset).expanduser()
    revision = None if path.exists() else _commit(dataset)
    splits = _splits(dataset, config_name, revision)
    if split is not None and split not in splits:
        raise NoSuchSplitError(f"dataset {dataset}", split, splits, "--split chooses one")
    names = list(splits) if split is None else [split]
    rows, columns, others = {}, [], {}
    for name in names:
        rows[name], column, others[name] = _table(splits[name], dataset, image_column)
        columns.append(column)
    folder = path if path.is_dir() else None

    def after(done: int, last: str | None) -> Iterator[CaptionedImage]:
        first, start = names[0], 0
        if last is not None:
            first, _, number = last.rpartition("-")
            start = int(number) + 1
        for place in range(names.index(first), len(names)):
            yield from _rows(rows[names[place]], columns[place], dataset, names[place], start, folder)
            start = 0

    def parts(size: int) -> list[DatasetPart]:
        found = []
        for name, column in zip(names, columns, strict=True):
            bounds, n_shards = _bounds(rows[name], size)
            found += [DatasetPart(dataset, config_name, revision, name, column, *one, n_shards) for one in bounds]
        return found

    identity = [dataset, config_name, names, columns, revision or _files(path)]
    known = tuple(name for name in others[names[0]] if all(name in others[one] for one in names))
    return ImageStream(identity, None, after, columns=known, parts=parts)


def _splits(dataset: str, config_name: str | None, revision: str | None) -> Any:
    options = HubOptions(dataset=dataset, config_name=config_name, revision=revision)
    remedy = "check the spelling, --config-name and the network"
    return open_splits(options, streaming=not is_saved_dataset(Path(dataset).expanduser()), remedy=remedy)


def _table(table: Any, dataset: str, image_column: str | None) -> tuple[Any, str, list[str]]:
    """Return a split with its images undecoded, the place of its images, and its columns of text.

    Raises:
        UserError: its column of images is not there, or several could be meant.
    """
    # A stream may not say what is in it before its first row was read.
    table = table if table.features is not None else table._resolve_features()
    column = find_image_column(dataset, image_column, table.features, "--image-column")
    base = column_of(column, table.features)
    others = text_columns(table.features, [base])
    return undecoded(table, base, others), column, others


def _bounds(table: Any, size: int) -> tuple[list[tuple[int, int]], int]:
    """Return (start, stop) of the parts of a split, and how many shards it has if it is a stream."""
    if hasattr(table, "num_shards"):
        return [(number, number + 1) for number in range(table.num_shards)], table.num_shards
    return [(start, min(start + size, len(table))) for start in range(0, len(table), size)], 0


def part_images(part: DatasetPart) -> Iterator[CaptionedImage]:
    """Yield the images of a part; ids of streams count within it, because nobody knows how many rows come before.

    Raises:
        UserError: the dataset is no longer there. WorkError: the Hub cannot be reached, or the stream breaks.
    """
    path = Path(part.dataset).expanduser()
    folder = path if path.is_dir() else None
    table, column, _ = _table_of(part.dataset, part.config_name, part.revision, part.split, part.image_column)
    if not part.n_shards:
        return _rows(table.select(range(part.stop)), column, part.dataset, part.split, part.start, folder)
    shard = table.shard(num_shards=part.n_shards, index=part.start)
    return _rows(shard, column, part.dataset, f"{part.split}-{part.start:05d}", 0, folder)


def part_columns(part: DatasetPart) -> list[str]:
    """Return the columns of text that rows of a part have next to their image.

    Raises:
        UserError: the dataset is no longer there. WorkError: the Hub cannot be reached.
    """
    return _table_of(part.dataset, part.config_name, part.revision, part.split, part.image_column)[2]


@lru_cache(maxsize=4)
def _table_of(
    dataset: str, config_name: str | None, revision: str | None, split: str, image_column: str
) -> tuple[Any, str, list[str]]:
    return _table(_splits(dataset, config_name, revision)[split], dataset, image_column)


def _rows(
    table: Any, column: str, dataset: str, split: str, start: int, folder: Path | None
) -> Iterator[CaptionedImage]:
    number = start
    # pyarrow reports damaged files as ValueError.
    breaks: tuple[type[Exception], ...] = (OSError, ValueError, *transport_errors())
    try:
        for row in table.skip(start):
            image_id = f"{split}-{number}"
            cells = values_at(row, column)
            image = CellImage(cells[0] if len(cells) == 1 else cells, f"{dataset}, {split}, row {number}", folder)
            yield CaptionedImage(image_id, image_id, (), image, columns=values_of(row, [column]))
            number += 1
    except breaks as error:
        raise WorkError(
            f"dataset {dataset}, {split}: reading stopped at row {number} ({error}); the same command goes on "
            "there: give it again"
        ) from error


def _commit(dataset: str) -> str | None:
    """Return the newest commit of a dataset on the Hub, so that a stopped captioning goes on with the same rows.

    Raises:
        UserError: the Hub has none of this name. WorkError: it cannot be reached.
    """
    here = f"{dataset}: no such file or folder here, and"
    unreachable: tuple[type[Exception], ...] = (OSError, *transport_errors())
    try:
        return HfApi().dataset_info(dataset).sha
    except HFValidationError:
        raise UserError(f"{here} not a valid Hub dataset id; write namespace/name") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500:
            raise WorkError(f"{here} the Hub is out of order (status {status}); run again later") from error
        raise UserError(
            f"{here} the Hub gives out no dataset of this name (status {status}); check the spelling, and sign in "
            "with 'hf auth login' if it is private or gated"
        ) from error
    except unreachable as error:
        reason = out_of_reach(error) or (str(error).splitlines() or [type(error).__name__])[0]
        raise WorkError(f"{here} as a dataset of the Hub: {reason}") from error


def _files(path: Path) -> list[list[Any]]:
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    # A captioning into the folder of its dataset is no change of the dataset.
    files = [file for file in files if not file.suffix.startswith(".part-")]
    return [[str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
