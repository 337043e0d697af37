"""Any dataset of the Hub or of a local folder that the `datasets` library reads, if it has images and captions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Self

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from pydantic import Field, model_validator

from hfcap.cells import JoinedLines
from hfcap.data.checks import clean_caption
from hfcap.data.kept.keeping import Origin
from hfcap.data.kept.table import Places
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.data.splits import canonical
from hfcap.data.tables.cell_paths import values_at
from hfcap.data.tables.columns import captions_in, pointing_to_inspect
from hfcap.data.tables.conversations import Conversation, conversation_in, warn_of_system
from hfcap.data.tables.entries import JOINED_REMEDY, SEVERAL_IMAGES, Entry, own_pairs, passes, without_prompt
from hfcap.data.tables.grouping import grouped
from hfcap.data.tables.loading import records_of
from hfcap.data.tables.options import TableOptions
from hfcap.data.web.hub_cells import HubCells, HubPart
from hfcap.data.web.hub_columns import Columns, column_of, find_columns, text_columns
from hfcap.data.web.hub_images import RowColumns, RowImage, stream_to_cache, streamed_commit, undecoded
from hfcap.data.web.network_errors import transport_errors
from hfcap.errors import UserError, WorkError, shown
from hfcap.failures.hub import give_up_soon, out_of_reach
from hfcap.files import no_folder
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.places import Location
from hfcap.schema import CaptionedImage

_ROLES = ("train", "validation", "test")
TABLE_SUFFIXES = (".parquet", ".arrow")


class HubOptions(TableOptions):
    """Keys of `data` for source hub."""

    source: Literal["hub"] = Field("hub", description="a dataset that `datasets` loads")
    dataset: Location = Field(description="Hub id, or a local folder (also of save_to_disk), .parquet or .arrow file")
    config_name: str | None = Field(None, description="configuration (subset) of the dataset")
    revision: str | None = Field(None, description="commit, tag or branch; a commit makes runs repeatable")
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
        if self.streaming and (self.filter or self.split_column or self.group_by == "content"):
            raise ValueError("streaming: true reads rows in order; leave out filter, split_column, group_by: content")
        if self.streaming and self.own_prompts:
            raise ValueError("streaming: true keeps no prompts; leave out own_prompts, or fetch the whole dataset")
        return self


def load(options: HubOptions, split_name: str) -> list[CaptionedImage]:
    """Return the records of one split, in the dataset's order; `split_name` may be a slice such as "train[:90%]".

    Raises:
        NoSuchSplitError: no such split, or it is empty.
        UserError: the dataset isn't there, or its columns don't say where images and captions are.
    """
    with pointing_to_inspect(options.dataset):
        return _load_streaming(options, split_name) if options.streaming else _load_map_style(options, split_name)


def _load_map_style(options: HubOptions, split_name: str) -> list[CaptionedImage]:
    where = f"dataset {options.dataset}"
    splits = open_splits(_pinned(options, _commit_of(options)), streaming=False)
    column = _split_column(options, splits)
    drawn = column is None and _is_drawn(options, splits, split_name)
    parts = [(name, 0, len(rows)) for name, rows in splits.items()]
    entries: list[Entry] = []
    joined = JoinedLines()
    left_out: list[str] = []
    for name, start, end in parts if column or drawn else _parts(options, splits, split_name):
        entries += _entries(options, splits[name], (name, start, end), column, joined, left_out)
    if left_out:
        what = "that cannot be trained on" if options.own_prompts else "without a caption"
        warn_on_terminal(f"{len(left_out):,} rows {what} are left out, the first: {left_out[0]}")
    joined.refuse(f"{where}, split {split_name}", JOINED_REMEDY)
    if not entries:
        raise NoSuchSplitError(where, split_name, splits)
    images = [(entry.image_id or "", entry.image) for entry in entries if not isinstance(entry.image, str)]
    groups = grouped(entries, images, options.group_by == "content")
    if column or drawn:
        return records_of(groups, options, split_name, where)
    return [group.record for group in groups]


def _parts(options: HubOptions, splits: Any, split_name: str) -> list[tuple[str, int, int]]:
    """Return (split of the dataset, first row, row after the last) of what a name or slice stands for."""
    import datasets

    lengths = {name: len(part) for name, part in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split_name).to_absolute(lengths)
    except (ValueError, AssertionError):
        raise NoSuchSplitError(f"dataset {options.dataset}", split_name, splits) from None
    return [
        (part.splitname, part.from_ or 0, lengths[part.splitname] if part.to is None else part.to) for part in parts
    ]


def _split_column(options: HubOptions, splits: Any) -> str | None:
    """Return the column that says each row's split: the named one, or `split` where the dataset has no splits."""
    if options.split_column is not None:
        return options.split_column
    rows = next(iter(splits.values()))
    if len(splits) > 1 or "split" not in rows.features or "split" in (options.caption_columns or []):
        return None
    values = {canonical(value) for value in rows.unique("split") if isinstance(value, str)}
    return "split" if values & {"train", "validation", "test"} else None


def _is_drawn(options: HubOptions, splits: Any, split_name: str) -> bool:
    """Whether splits are drawn: all rows are one `train`, and the recipe names no slices and no split twice."""
    names = (options.train_split, options.validation_split, options.test_split)
    plain = len({canonical(name) for name in names}) == len(names) and not any(set("[+") & set(name) for name in names)
    return plain and [canonical(name) for name in splits] == ["train"] and canonical(split_name) in _ROLES


def _entries(
    options: HubOptions,
    whole: Any,
    part: tuple[str, int, int],
    split_column: str | None,
    joined: JoinedLines,
    left_out: list[str],
) -> Iterator[Entry]:
    name, start, end = part
    local = Path(options.dataset).expanduser()
    columns = find_columns(options, whole.features)
    images, said = _image_and_rest(whole, columns)
    more = [column_of(place, whole.features) for place in (*options.filter, *([split_column] if split_column else []))]
    texts = whole.select_columns(list(dict.fromkeys([*columns.of_text, *more])))
    systems = 0
    for number, row in enumerate(texts.select(range(start, end)), start=start):
        if not passes(row, options.filter):
            continue
        where = f"{options.dataset}, {name}, row {number}"
        talk = conversation_in(row, where) if columns.talk else None
        if talk is not None and talk.n_images > 1:
            left_out.append(f"{where} ({SEVERAL_IMAGES})")
            continue
        if (
            talk is None
            and options.uncaptioned_images == "ignore"
            and not any(captions_of_row(options, columns, row, where))
        ):
            left_out.append(where)
            continue
        systems += talk is not None and talk.system
        fields = row_fields(options, columns, name, number, row, talk)
        folder = local if local.is_dir() else None
        image = RowImage(images, columns.image, number, where, folder, options.allow_local_addresses)
        split = values_at(row, split_column) if split_column else []
        yield Entry(
            where,
            image,
            tuple(fields["captions"]),
            str(split[0]) if split else None,
            fields["image_id"],
            columns=RowColumns(said, number),
            asked=tuple(fields["asked"]) if options.own_prompts else (),
        )
        if options.caption_separator is None and talk is None:
            for cell in (value for place in columns.captions for value in values_at(row, place)):
                joined.add(cell if isinstance(cell, str) else "")
    warn_of_system(f"{options.dataset}, {name}", systems)


def _image_and_rest(whole: Any, columns: Columns) -> tuple[Any, Any]:
    """Return the images of a split, undecoded, and the columns that prompts may name."""
    hidden = [columns.image_base, *(column_of(place, whole.features) for place in columns.captions)]
    return undecoded(whole, columns.image_base), whole.select_columns(text_columns(whole.features, hidden))


def origin(options: HubOptions, _split_name: str) -> Origin | None:
    """Return what the records of a split follow from: the tables of all splits, by their fingerprints and files."""
    if options.streaming:
        return None
    import datasets

    local = Path(options.dataset).expanduser()
    parts = []
    try:
        for name, whole in open_splits(_pinned(options, _commit_of(options)), streaming=False).items():
            columns = find_columns(options, whole.features)
            parts.append(HubPart(f"{options.dataset}, {name}", columns.image, *_image_and_rest(whole, columns)))
        facts = {"parts": [part.facts() for part in parts], "datasets": datasets.__version__}
    except (UserError, WorkError, OSError):
        return None  # loading says what is wrong
    cells = HubCells(tuple(parts), local if local.is_dir() else None, options.allow_local_addresses)
    return Origin(facts, Places(cells=cells))


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
    found = [(Entry("", image, tuple(row["captions"]), None, row["image_id"]), image) for row, image in rows]
    if not found:
        raise NoSuchSplitError(f"dataset {options.dataset}", split_name, [])
    images = [(entry.image_id or "", image) for entry, image in found]
    return [group.record for group in grouped([entry for entry, _ in found], images, by_content=False)]


def _streamed_identity(options: HubOptions, split_name: str) -> dict[str, Any]:
    fields = {"dataset", "config_name", "revision", "image_column", "caption_columns", "image_id_column"}
    # Keys that came later name a folder of their own only where they are given.
    later = options.model_dump(include={"caption_separator", "prompt_column"}, exclude_defaults=True)
    return {**options.model_dump(include=fields), **later, "split": split_name}


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


def captions_of_row(options: HubOptions, columns: Columns, row: dict[str, Any], where: str) -> list[str]:
    """Return what the caption columns of a row hold; empty captions stay, cells without a value hold none."""
    cells = [(place, cell) for place in columns.captions for value in values_at(row, place) for cell in _listed(value)]
    return [
        clean_caption(caption)
        for place, cell in cells
        if cell is not None
        for caption in captions_in(cell, place, where, options.caption_separator)
    ]


def _listed(cell: Any) -> list[Any]:
    return cell if isinstance(cell, list) else [cell]


def row_fields(
    options: HubOptions,
    columns: Columns,
    split: str,
    number: int,
    row: dict[str, Any],
    talk: Conversation | None = None,
) -> dict[str, Any]:
    """Return id and captions of one row, and what they answer where that is asked for."""
    where = f"dataset {options.dataset}, split {split}, row {number}"
    captions = captions_of_row(options, columns, row, where) if talk is None else [text for _, text in talk.pairs]
    if options.uncaptioned_images == "ignore":
        captions = [caption for caption in captions if caption]
    prompts = values_at(row, options.prompt_column) if options.prompt_column else []
    if prompts and isinstance(prompts[0], str):
        captions = [without_prompt(caption, prompts[0]) for caption in captions]
    if not captions or not all(captions):
        problem = "an empty caption" if captions else "no captions"
        remedy = "correct the dataset" + ("" if options.streaming else ", or set data.uncaptioned_images: ignore")
        raise UserError(f"{where}: {problem} in {', '.join(columns.captions)} (data.caption_columns); {remedy}")
    image_id = f"{split}-{number}" if columns.image_id is None else row[columns.image_id]
    if isinstance(image_id, bool) or not isinstance(image_id, str | int) or image_id == "":
        raise UserError(
            f"{where}: {columns.image_id} is {shown(image_id)}, no usable id; choose another data.image_id_column"
        )
    prompt = prompts[0] if prompts and isinstance(prompts[0], str) else ""
    asked = [text for text, _ in own_pairs(talk, captions, prompt, where)] if options.own_prompts else []
    return {"image_id": str(image_id), "captions": captions, **({"asked": asked} if asked else {})}


def open_splits(
    options: HubOptions,
    streaming: bool,
    remedy: str = "check data.dataset, data.config_name, data.revision and the network",
) -> Any:
    """Return the dataset's splits by name; code that comes with a dataset is never run.

    Raises:
        UserError: the dataset isn't there or isn't understood; the message ends with `remedy`.
        WorkError: the Hub cannot be reached.
    """
    import datasets

    give_up_soon()
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
            raise UserError(no_folder(path, "folder", "name it with the recipe's key data.dataset"))
        return datasets.load_dataset(
            options.dataset, name=options.config_name, revision=options.revision, streaming=streaming
        )
    except UserError:
        raise
    # `datasets` raises these for what doesn't exist or isn't understood: id, configuration, revision, files; the last
    # three for files whose description of the columns is damaged.
    except (
        *(OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError),
        *(TypeError, LookupError, AttributeError),
    ) as error:
        if problem := out_of_reach(error):
            raise WorkError(
                f"dataset {options.dataset} cannot be opened: no such file or folder here; on the Hub: {problem}"
            ) from error
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
    origin=origin,
)
