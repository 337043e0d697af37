"""Any dataset of the Hub or of a local folder that the `datasets` library reads, if it has images and captions."""

from __future__ import annotations

import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Self

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from pydantic import Field, model_validator

from hfcap.cells import JoinedLines
from hfcap.data.checks import clean_caption
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.data.tables.columns import captions_in
from hfcap.data.web.hub_columns import Columns, find_columns
from hfcap.data.web.hub_images import RowImage, stream_to_cache, streamed_commit
from hfcap.data.web.network_errors import transport_errors
from hfcap.errors import UserError
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.places import Location
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage, ImageBytes

TABLE_SUFFIXES = (".parquet", ".arrow")


class HubOptions(DataOptions):
    """Keys of `data` for source hub."""

    source: Literal["hub"] = Field("hub", description="a dataset that `datasets` loads")
    dataset: Location = Field(description="Hub id, or a local folder (also of save_to_disk), .parquet or .arrow file")
    config_name: str | None = Field(None, description="configuration (subset) of the dataset")
    revision: str | None = Field(None, description="commit, tag or branch; a commit makes runs repeatable")
    image_column: str | None = Field(None, description="default: the only column of images")
    caption_columns: list[str] | None = Field(None, description="default: found by type and name, if unambiguous")
    image_id_column: str | None = Field(
        None, description="rows with the same id are captions of one image; default: each row is an image of its own"
    )
    uncaptioned_images: Literal["error", "ignore"] = Field(
        "error", description="what to do with rows whose caption is missing or empty; those left out are counted"
    )
    streaming: bool = Field(
        False, description="fetch only the first max_<split>_images rows and keep their images in the cache folder"
    )

    @model_validator(mode="after")
    def _limits_when_streaming(self) -> Self:
        if self.streaming and self.max_train_images is None:
            raise ValueError("streaming: true needs max_train_images (and the maximum of every other split it uses)")
        if self.streaming and self.uncaptioned_images == "ignore":
            raise ValueError("uncaptioned_images: ignore does not go with streaming: true; fetch the whole dataset")
        return self


def load(options: HubOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of one split, in the dataset's order; `split_name` may be a slice such as "train[:90%]".

    Raises:
        NoSuchSplitError: no such split, or it is empty.
        UserError: the dataset isn't there, or its columns don't say where images and captions are.
    """
    return _load_streaming(options, split_name) if options.streaming else _load_map_style(options, split_name)


def _load_map_style(options: HubOptions, split_name: str) -> list[CaptionedImage]:
    import datasets

    splits = open_splits(_pinned(options, _commit_of(options)), streaming=False)
    try:
        parts = datasets.ReadInstruction.from_spec(split_name).to_absolute(
            {name: len(part) for name, part in splits.items()}
        )
    except (ValueError, AssertionError):
        raise NoSuchSplitError(f"dataset {options.dataset}", split_name, splits) from None
    local = Path(options.dataset).expanduser()
    folder = local if local.is_dir() else None
    records: list[CaptionedImage] = []
    joined = JoinedLines()
    left_out: list[str] = []
    for part in parts:
        whole = splits[part.splitname]
        columns = find_columns(options, whole.features)
        images = whole.select_columns([columns.image]).cast_column(columns.image, datasets.Image(decode=False))
        others = whole.select_columns(columns.of_text)
        start, end = part.from_ or 0, len(whole) if part.to is None else part.to
        for number, row in enumerate(others.select(range(start, end)), start=start):
            name = f"{options.dataset}, {part.splitname}, row {number}"
            if options.uncaptioned_images == "ignore" and not any(_captions(columns, row, name)):
                left_out.append(name)
                continue
            image = RowImage(images, columns.image, number, name, folder)
            records.append(_record(options, columns, part.splitname, number, row, image))
            for cell in (row[column] for column in columns.captions):
                joined.add(cell if isinstance(cell, str) else "")
    joined.refuse(f"dataset {options.dataset}, split {split_name}")
    if left_out:
        warn_on_terminal(f"{len(left_out):,} rows without a caption are left out, the first: {left_out[0]}")
    if not records:
        raise NoSuchSplitError(f"dataset {options.dataset}", split_name, splits)
    return _merged(records) if options.image_id_column else records


def _load_streaming(options: HubOptions, split_name: str) -> list[CaptionedImage]:
    def open_split(commit: str | None) -> tuple[Any, Columns]:
        splits = open_splits(_pinned(options, commit), streaming=True)
        if split_name not in splits:
            raise NoSuchSplitError(f"dataset {options.dataset}", split_name, splits, "streaming knows no slices")
        rows = splits[split_name]
        rows = rows if rows.features is not None else rows._resolve_features()
        return rows, find_columns(options, rows.features)

    roles = [role for role in ("train", "validation", "test") if getattr(options, f"{role}_split") == split_name]
    limits = [getattr(options, f"max_{role}_images") for role in roles]
    if not limits or None in limits:
        keys = " and ".join(f"data.max_{role}_images" for role in roles) or "its max_<split>_images"
        raise UserError(f"streaming split {split_name!r} of {options.dataset} needs {keys}")
    identity, fields = _streamed_identity(options, split_name), partial(row_fields, options)
    rows = stream_to_cache(identity, max(limits), open_split, fields, partial(_commit_of, options))
    records = [CaptionedImage(row["image_id"], row["image_id"], tuple(row["captions"]), image) for row, image in rows]
    if not records:
        raise NoSuchSplitError(f"dataset {options.dataset}", split_name, [])
    return _merged(records) if options.image_id_column else records


def _streamed_identity(options: HubOptions, split_name: str) -> dict[str, Any]:
    fields = {"dataset", "config_name", "revision", "image_column", "caption_columns", "image_id_column"}
    return {**options.model_dump(include=fields), "split": split_name}


def loaded_commit(options: HubOptions, split_name: str) -> str | None:
    """Return the commit whose rows `load` gives; None for what is on this disk, or where the Hub does not tell."""
    if options.streaming:
        return streamed_commit(_streamed_identity(options, split_name))
    return _commit_of(options)


def _commit_of(options: HubOptions) -> str | None:
    """Return what the revision named when this process first asked."""
    if Path(options.dataset).expanduser().exists():
        return None
    return _commit_now(options.dataset, options.revision)


@lru_cache
def _commit_now(dataset: str, revision: str | None) -> str | None:
    failures: tuple[type[Exception], ...] = (OSError, HFValidationError, *transport_errors())
    try:
        return HfApi().dataset_info(dataset, revision=revision).sha
    except failures:
        return None  # opening it says why


def _pinned(options: HubOptions, commit: str | None) -> HubOptions:
    return options if commit is None else options.model_copy(update={"revision": commit})


def _captions(columns: Columns, row: dict[str, Any], where: str) -> list[str]:
    """Return what the caption columns of a row hold; empty captions stay, cells without a value hold none."""
    cells = [(name, [cell for cell in _listed(row[name]) if cell is not None]) for name in columns.captions]
    return [clean_caption(caption) for name, cell in cells for caption in captions_in(cell, name, where)]


def _listed(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def row_fields(options: HubOptions, columns: Columns, split: str, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return id and captions of one row."""
    where = f"dataset {options.dataset}, split {split}, row {number}"
    captions = _captions(columns, row, where)
    if options.uncaptioned_images == "ignore":
        captions = [caption for caption in captions if caption]
    if not captions or not all(captions):
        problem = "an empty caption" if captions else "no captions"
        remedy = "correct the dataset" + ("" if options.streaming else ", or set data.uncaptioned_images: ignore")
        raise UserError(f"{where}: {problem} in {', '.join(columns.captions)} (data.caption_columns); {remedy}")
    image_id = f"{split}-{number}" if columns.image_id is None else row[columns.image_id]
    if isinstance(image_id, bool) or not isinstance(image_id, str | int) or image_id == "":
        raise UserError(
            f"{where}: {columns.image_id} is {image_id!r}, no usable id; choose another data.image_id_column"
        )
    return {"image_id": str(image_id), "captions": captions}


def _record(
    options: HubOptions, columns: Columns, split: str, number: int, row: dict[str, Any], image: ImageBytes
) -> CaptionedImage:
    fields = row_fields(options, columns, split, number, row)
    return CaptionedImage(fields["image_id"], fields["image_id"], tuple(fields["captions"]), image)


def _merged(records: list[CaptionedImage]) -> list[CaptionedImage]:
    """Join the captions of rows with the same id; the first row's image stays."""
    merged: dict[str, CaptionedImage] = {}
    for record in records:
        first = merged.get(record.image_id)
        captions = record.captions if first is None else first.captions + record.captions
        kept = record if first is None else first
        merged[record.image_id] = CaptionedImage(kept.image_id, kept.file_name, captions, kept.image)
    return list(merged.values())


def open_splits(
    options: HubOptions,
    streaming: bool,
    remedy: str = "check data.dataset, data.config_name, data.revision and the network",
) -> Any:
    """Return the dataset's splits by name; code that comes with a dataset is never run.

    Raises:
        UserError: the dataset isn't there or isn't understood; the message ends with `remedy`.
    """
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(options.dataset).expanduser()
    try:
        if is_saved_dataset(path):
            return _from_disk(path, streaming)
        if path.suffix.lower() in TABLE_SUFFIXES:
            if not path.is_file():
                raise UserError(f"{path}: file not found; name it with the recipe's key data.dataset")
            return datasets.load_dataset(path.suffix.lower()[1:], data_files={"train": str(path)}, streaming=streaming)
        if path.is_dir():
            return datasets.load_dataset(str(path), name=options.config_name, streaming=streaming)
        if options.dataset.startswith((".", "/", "~")):
            raise UserError(f"{path}: folder not found; name it with the recipe's key data.dataset")
        return datasets.load_dataset(
            options.dataset, name=options.config_name, revision=options.revision, streaming=streaming
        )
    except UserError:
        raise
    # `datasets` raises these for what doesn't exist or isn't understood: id, configuration, revision, files.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset {options.dataset} cannot be opened ({first_line}); {remedy}") from error


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _from_disk(path: Path, streaming: bool) -> Any:
    import datasets

    if streaming:
        raise UserError(f"{path} is on this disk already: set data.streaming: false")
    loaded = datasets.load_from_disk(str(path))
    return loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}


REGISTERED = Source(
    options=HubOptions,
    load=load,
    description="any dataset of the Hub or on disk that the datasets library reads",
    revision=loaded_commit,
)
