"""What a folder, file or dataset is as data for captioning, and the `data` block that reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap import registry
from hfcap.data.image_files import folder_images
from hfcap.data.images import FileImage
from hfcap.data.inspection_report import N_EXAMPLES, Inspection
from hfcap.data.source import NoSuchSplitError, Source, Split
from hfcap.data.sources import folder as folder_source
from hfcap.data.sources import hub as hub_source
from hfcap.data.sources import table as table_source
from hfcap.data.splits import canonical, splits_of
from hfcap.data.tables.coco_format import is_coco_format
from hfcap.data.tables.columns import caption_columns, image_column, numbered_alike, split_column
from hfcap.data.tables.entries import EntryReader
from hfcap.data.tables.finding import layouts_of
from hfcap.data.tables.grouping import Group
from hfcap.data.tables.options import TableOptions
from hfcap.data.tables.reading import PARQUET_SUFFIXES, TABLE_SUFFIXES, TableForm, read_rows
from hfcap.data.tables.sidecars import caption_in_name
from hfcap.data.traps import caption_traps, repeated_in_images
from hfcap.data.web.dataset_counts import MAX_ROWS_OF_HUB, MAX_ROWS_ON_DISK, count_rows
from hfcap.data.web.hub_columns import find_columns
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.schema import CaptionedImage
from hfcap.text import counted

_ROLES: tuple[Split, ...] = ("train", "validation", "test")
_FEW_WORDS = 2.0
_ROWS_LOOKED_AT = 200


def inspect_data(text: str, layout: str | None = None, keys: Mapping[str, Any] | None = None) -> Inspection:
    """Look at a folder, a file, or a dataset of the Hub.

    Args:
        layout: read a folder as this layout.
        keys: of the block `data`, for what nobody can guess: `image_column`, `caption_columns`, `images`, ...

    Raises:
        UserError: nothing there can be read as images with captions; says what is there.
    """
    keys = keys or {}
    path = Path(text).expanduser()
    if path.is_dir() and not hub_source.is_saved_dataset(path):
        return _inspect_folder(text, path, layout, keys)
    if layout is not None:
        raise UserError(f"{text}: --layout says how a folder is read; leave it out")
    if path.is_file() and path.suffix.lower() != ".arrow":
        return _inspect_file(text, path, keys)
    return _inspect_dataset(text, keys)


def _block(text: str, source: str, start: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block of a source, with what the person knows of the data."""
    known = registry.load("sources", source).REGISTERED.options.model_fields
    if unknown := [key for key in keys if key not in known]:
        option = f"--{unknown[0].replace('_', '-')}"
        raise UserError(f"{text}: source {source} reads it, which has no key {unknown[0]}; leave {option} out")
    return {"source": source, **start, **keys}


# ---- a folder ------------------------------------------------------------------------------------------------------


def _inspect_folder(text: str, root: Path, layout: str | None, keys: Mapping[str, Any]) -> Inspection:
    if (root / "dataset_coco.json").is_file() and any((root / name).is_dir() for name in ("train2014", "train2017")):
        return Inspection("COCO with Karpathy's split", _block(text, "coco", {"root": text}, keys))
    if layout is not None:
        return _as_layout(text, root, layout, keys)
    found = layouts_of(root)
    problems = []
    for candidate, _ in found:
        try:
            inspection = _as_layout(text, root, candidate.name, keys)
        except UserError as error:
            problems.append(f"as {candidate.name}: {error}")
            continue
        others = [other.name for other, _ in found if other.name not in (candidate.name, "table")]
        if others:
            inspection.notes.append(
                f"it can also be read as {', '.join(others)}; data.layout chooses (--layout shows it)"
            )
        return inspection
    if any(root.glob("*.tar")):
        return _inspect_dataset(text, keys)
    if file := _only_table(root):
        return _inspect_file(str(Path(text) / file.relative_to(root)), file, keys)
    if _holds_files(root, (*PARQUET_SUFFIXES, ".arrow", ".tar")):
        return _inspect_dataset(text, keys)
    raise UserError(_not_understood(text, root, problems))


def _only_table(root: Path) -> Path | None:
    tables = [path for path in root.rglob("*") if path.suffix.lower() in TABLE_SUFFIXES and path.is_file()]
    return tables[0] if len(tables) == 1 else None


def _holds_files(root: Path, suffixes: Sequence[str]) -> bool:
    return any(path.suffix.lower() in suffixes for path in root.rglob("*") if path.is_file())


def _not_understood(text: str, root: Path, problems: list[str]) -> str:
    images = folder_images(root).found
    named = sum(len(caption_in_name(path.stem).split()) > _FEW_WORDS for path in images)
    if images and 2 * named >= len(images):
        remedy = "their names look like captions: read them with --layout file_names"
    elif images:
        remedy = (
            "write captions next to the images (a.jpg and a.txt), or let a captioner begin: "
            "hfcap caption MODEL . -o metadata.csv, in that folder"
        )
    else:
        remedy = "give the folder above images and captions, or the table itself"
    tried = "".join(f"\n{problem}" for problem in problems)
    return f"{text}: {counted(len(images), 'image')}, and no captions in a layout that hfcap knows; {remedy}{tried}"


def _as_layout(text: str, root: Path, name: str, keys: Mapping[str, Any]) -> Inspection:
    block = _block(text, "folder", {"root": text, "layout": name}, keys)
    layout, tables = folder_source.found_layout(folder_source.FolderOptions(**block))
    options, groups, reader = _read_leniently(folder_source.FolderOptions, block, layout_tables=(layout, tables))
    files = ", ".join(sorted(table.path.name for table in tables if table.path != root)[:N_EXAMPLES])
    inspection = Inspection(
        f"a folder in the layout {layout.name}: {layout.title}" + (f" ({files})" if files else ""), block
    )
    _fill(inspection, groups, options, reader, root, True)
    return inspection


def _read_leniently(
    options_class: type[Any], block: dict[str, Any], layout_tables: Any = None
) -> tuple[Any, list[Group], EntryReader]:
    """Read with the block; where it is refused for what a key can allow, with that key, which then is in the block."""
    for _ in range(3):
        options = options_class(**block)
        try:
            if layout_tables is None:
                return options, *table_source.all_groups(options)
            return options, *folder_source.all_groups(options, *layout_tables)
        except UserError as error:
            said = str(error)
            if "caption_separator" in said and "caption_separator" not in block:
                block["caption_separator"] = "\n"
            elif any(word in said for word in ("has no captions", "uncaptioned_images", "list of captions is empty")):
                if "uncaptioned_images" in block:
                    raise
                block["uncaptioned_images"] = "ignore"
            else:
                raise
    raise AssertionError("two keys can be added, and the third reading raises")


def _fill(
    inspection: Inspection, groups: list[Group], options: TableOptions, reader: EntryReader, folder: Path, whole: bool
) -> None:
    """Note what was read.

    Args:
        folder: where the images are.
        whole: all images in the folder belong to the data.
    """
    splits = splits_of({group.record.image_id: group.split for group in groups}, options, "inspect")
    inspection.drawn = not any(group.split for group in groups)
    inspection.look_for([group.record for group in groups], folder)
    images: Counter[str] = Counter()
    captions: Counter[str] = Counter()
    for group in groups:
        split = splits[group.record.image_id]
        images[split] += 1
        captions[split] += len(group.record.captions)
    order = sorted(images, key=lambda split: (_ROLES.index(role) if (role := canonical(split)) in _ROLES else 3, split))
    inspection.splits = {split: (images[split], captions[split]) for split in order}
    inspection.examples = [(group.record.file_name, group.record.captions) for group in groups[:N_EXAMPLES]]
    inspection.block.update(_split_keys(list(images)))
    inspection.left_out += reader.left_out.sentences()
    inspection.notes += [*_notes(inspection, reader), *_traps([group.record.captions for group in groups])]
    if whole:
        found = folder_images(folder)
        without = len(set(found.found)) - len({group.record.file_name for group in groups})
        if without > 0:
            inspection.left_out.append(f"{counted(without, 'image')} without a caption")
        if left_out := found.left_out():
            inspection.left_out.append(left_out.removeprefix("left out: "))


def _traps(captions: Sequence[Sequence[str]]) -> list[str]:
    every = [text for texts in captions for text in texts]
    found = (*caption_traps(every), repeated_in_images(captions))
    return [f"{trap.sentence(len(every))}: {trap.remedy}" for trap in found if trap is not None]


def _notes(inspection: Inspection, reader: EntryReader) -> list[str]:
    notes = []
    if "caption_separator" in inspection.block:
        notes.append('cells have several lines: each is read as a caption; if they are one, set caption_separator: ""')
    if inspection.drawn:
        notes.append("there are no splits: they are drawn by data.validation_share and data.test_share")
    if reader.prompts:
        text, count = reader.prompts.most_common(1)[0]
        notes.append(
            f"captions answer prompts: {len(reader.prompts):,} different ones, {count:,} times {text!r}; "
            "model.prompt can give one to the captioner, own_prompts: true each its own"
        )
    return notes


def _split_keys(names: Sequence[str], exact: bool = False) -> dict[str, str]:
    """Return the keys for splits that have other names than the usual ones.

    Args:
        exact: the source knows a split only by its own name, so that `val` needs a key.
    """
    keys: dict[str, str] = {}
    by_role = {canonical(name): name for name in names}
    for role in _ROLES:
        if role in by_role:
            if exact and by_role[role] != role:
                keys[f"{role}_split"] = by_role[role]
            continue
        near = [name for name in names if canonical(name) not in _ROLES and any(w in name for w in _words_of(role))]
        if near:
            keys[f"{role}_split"] = near[0]
    if not keys and len(names) == 1 and names[0] not in ("train", "test"):
        keys["test_split"] = names[0]
    return keys


def _words_of(role: str) -> tuple[str, ...]:
    return {"train": ("train",), "validation": ("val", "dev"), "test": ("test", "eval")}[role]


# ---- a file --------------------------------------------------------------------------------------------------------


def _inspect_file(text: str, path: Path, keys: Mapping[str, Any]) -> Inspection:
    if path.suffix.lower() not in (*TABLE_SUFFIXES, ".txt"):
        raise UserError(f"{text}: is no table of captions ({' '.join(TABLE_SUFFIXES)}); give the folder of the images")
    if path.suffix.lower() == ".json" and is_coco_format(content := read_json(path, "JSON file")):
        block = _block(text, "coco_json", {"captions": text}, keys)
        first = [image for image in content["images"][:_ROWS_LOOKED_AT] if isinstance(image, dict)]
        names = [str(image.get("file_name", "")).replace("\\", "/") for image in first]
        name = next((one for one in names if (path.parent / "images" / one).is_file()), names[0] if names else "")
        found = _folder_with(name, path.parent)
        if "images" not in keys and found not in (None, path.parent / "images"):
            block["images"] = str(found)
        images = Path(block.get("images", path.parent / "images")).expanduser()
        return _of_source("a file in COCO's caption format", block, images)
    block = _block(text, "table", {"table": text}, keys)
    rows = [row.cells for _, row in zip(range(_ROWS_LOOKED_AT), read_rows(path, TableForm()), strict=False)]
    if not rows:
        raise UserError(f"{text}: the table has no rows; give another")
    block.update(_guessed_columns(text, rows, keys))
    options, groups, reader = _read_leniently(table_source.TableSourceOptions, block)
    if "images" not in keys and (folder := _other_folder(groups, path.parent)):
        block["images"] = str(folder)
        options, groups, reader = _read_leniently(table_source.TableSourceOptions, block)
    inspection = Inspection(f"a table ({path.suffix.lower()[1:]})", block)
    _fill(inspection, groups, options, reader, Path(block.get("images", path.parent)).expanduser(), False)
    return inspection


def _other_folder(groups: Sequence[Group], beside: Path) -> Path | None:
    """Return where a table's images are if none is next to it."""
    files = [group.record for group in groups if isinstance(group.record.image, FileImage)]
    if not files or any(one.image.path.is_file() for one in files if isinstance(one.image, FileImage)):
        return None
    return _folder_with(files[0].file_name, beside)


def _folder_with(name: str, beside: Path) -> Path | None:
    """Return the folder that an image's name starts from: next to the table, below it, or next to its folder."""
    for place in (beside / "images", beside, beside.parent):
        if place.is_dir() and (place / name).is_file():
            return place
    for place in (beside, beside.parent):
        found = next((path for path in folder_images(place).found if path.as_posix().endswith(f"/{name}")), None)
        if found is not None:
            return Path(found.as_posix().removesuffix(f"/{name}"))
    return None


def _guessed_columns(text: str, rows: Sequence[Mapping[str, Any]], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys for columns that their names do not tell: captions are the texts with the most words."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    image = keys.get("image_column") or image_column(names)
    if image is None:
        raise UserError(
            f"{text}: no column names an image (columns: {', '.join(names)}); say which one with --image-column "
            "(in a recipe data.image_column)"
        )
    found = caption_columns(names)
    if "caption_columns" in keys or len(found) == 1 or (found and numbered_alike(found) == found):
        return {}
    candidates = found or [name for name in names if name not in (image, split_column(names))]
    words = {name: _mean_words(row.get(name) for row in rows) for name in candidates}
    best = max(words, key=lambda name: words[name], default=None)
    if best is None or words[best] < _FEW_WORDS:
        raise UserError(
            f"{text}: no column holds captions (columns: {', '.join(names)}); say which one with --caption-columns "
            "(in a recipe data.caption_columns)"
        )
    return {"caption_columns": [best]}


def _mean_words(values: Any) -> float:
    texts = [value for value in values if isinstance(value, str)]
    return sum(len(one.split()) for one in texts) / len(texts) if texts else 0.0


# ---- a dataset -----------------------------------------------------------------------------------------------------


def _inspect_dataset(text: str, keys: Mapping[str, Any]) -> Inspection:
    block = _block(text, "hub", {"dataset": text}, keys)
    options = hub_source.HubOptions(**block)
    local = Path(text).expanduser().exists()
    splits = hub_source.open_splits(options, streaming=not local, remedy="check the spelling, and the network")
    inspection = Inspection("a dataset on this disk" if local else "a dataset of the Hub", block)
    first = splits[next(iter(splits))]
    first = first if first.features is not None else first._resolve_features()
    columns = find_columns(options, first.features)
    inspection.notes.append(f"images: {columns.image}; captions: {', '.join(columns.captions)}")
    inspection.block.update(_split_keys(list(splits), exact=True))
    left = MAX_ROWS_ON_DISK if local else MAX_ROWS_OF_HUB
    for name, rows in splits.items():
        counts = count_rows(options, columns, name, rows, left)
        left -= counts.rows
        inspection.examples = inspection.examples or counts.examples
        if counts.complete:
            inspection.splits[name] = (counts.rows, counts.captions)
        else:
            n_rows = len(rows) if local else rows.info.splits[name].num_examples if rows.info.splits else 0
            inspection.splits[name] = (n_rows, 0)
            seen = f"{counts.captions:,} in the first {counted(counts.rows, 'row')}" if counts.rows else "none"
            inspection.notes.append(f"split {name}: not all captions are counted, because of its size: {seen}")
        if counts.without:
            inspection.block["uncaptioned_images"] = "ignore"
            inspection.left_out.append(f"{counted(counts.without, 'row')} of split {name} without a caption")
    return inspection


def _of_source(what: str, block: dict[str, Any], folder: Path) -> Inspection:
    """Inspect what a source reads by itself, split by split."""
    source: Source = registry.load("sources", block["source"]).REGISTERED
    inspection = Inspection(what, block)
    captions: list[tuple[str, ...]] = []
    for role in _ROLES:
        records = _records(source, block, role)
        if records:
            captions += [record.captions for record in records]
            inspection.look_for(records, folder)
            inspection.splits[role] = (len(records), sum(len(record.captions) for record in records))
            inspection.examples += [(one.file_name, one.captions) for one in records[:N_EXAMPLES]]
    inspection.examples = inspection.examples[:N_EXAMPLES]
    inspection.notes += _traps(captions)
    return inspection


def _records(source: Source, block: dict[str, Any], role: Split) -> list[CaptionedImage]:
    """Return the records of a split, none where there is no such one; keys that reading it needs go into the block."""
    for _ in range(3):
        options = source.options(**block)
        try:
            return source.load(options, getattr(options, f"{role}_split"))
        except NoSuchSplitError as error:
            keys = {key: name for key, name in _split_keys(error.existing, exact=True).items() if key not in block}
            if f"{role}_split" not in keys:
                return []
            block.update(keys)
        except UserError as error:
            if "uncaptioned_images" not in str(error) or "uncaptioned_images" in block:
                raise
            block["uncaptioned_images"] = "ignore"
    return []
