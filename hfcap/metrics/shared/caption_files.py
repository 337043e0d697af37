"""Reading predicted and human captions from the file formats people have, with every fault named.

Image ids are strings everywhere: 391895, "391895" and 391895.0 in a file are the same image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hfcap.cells import JoinedLines, captions_of_cell, csv_rows, stands_for_nothing, texts_of_list
from hfcap.errors import UserError, shown
from hfcap.failures.garbage import no_search_for_cycles
from hfcap.files import parse_json, read_json_lines, read_text
from hfcap.metrics.shared.caption_table import CaptionCollector, CaptionTable
from hfcap.progress import error_console
from hfcap.text import printable

Warn = Callable[[str], None]

_ID_KEYS = ("image_id", "id", "file_name")
"""What names an image in a row, the surest first; tables for people, and metadata of folders, have only the file."""

_SPLIT_SPELLINGS = {"val": "validation", "dev": "validation", "valid": "validation"}


def warn_on_terminal(message: str) -> None:
    """Print a warning to standard error."""
    error_console.print(printable(f"warning: {message}", "\n\t"), markup=False, style="yellow", soft_wrap=True)


def each_once(warn: Warn) -> Warn:
    """Return a `warn` that passes a message on the first time only, for the same files read again and again."""
    said: set[str] = set()

    def pass_on(message: str) -> None:
        if message not in said:
            said.add(message)
            warn(message)

    return pass_on


class _Row(NamedTuple):
    """One (image id, captions) of a file; `where` finds it again."""

    image_id: Any
    captions: Any
    where: str


def normalised_image_id(value: Any, where: str) -> str:
    """Return the id as a string: integers, whole floats and strings of the same number are one id.

    Raises:
        UserError: the value is empty or of another type.
    """
    if isinstance(value, str) and (stripped := value.strip()):
        # Tables in which an id is missing somewhere hold numbers as 391895.0.
        return re.sub(r"^(\d+)\.0+$", r"\1", stripped) if stripped.endswith("0") else stripped
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    raise UserError(f"{where}: image_id must be a number or a non-empty string, not {shown(value)}")


def _no_repeated_keys(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise UserError(f"{path}: key {repeated!r} occurs twice in one JSON object; remove one")
        return result

    return build


def _parsed_json(path: Path, what: str) -> Any:
    return parse_json(read_text(path, what), f"{path}: {what}", _no_repeated_keys(path), lines=True)


def _field(row: Any, names: tuple[str, ...], where: str) -> Any:
    if not isinstance(row, dict | Mapping):  # to tell a dict is many times as quick
        raise UserError(f"{where}: expected an object with {names[0]!r}, not {type(row).__name__}")
    for name in names:
        if name in row:
            return row[name]
    raise UserError(f"{where}: no {names[0]!r}; add it (found the keys {', '.join(map(repr, row))})")


def _rows_of_objects(rows: Iterator[tuple[str, Any]], caption_keys: tuple[str, ...]) -> Iterator[_Row]:
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with image_id and caption, not {type(row).__name__}")
        yield _Row(_field(row, _ID_KEYS, where), _field(row, caption_keys, where), where)


def _csv_rows(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, row in csv_rows(path, what):
        if "image_id" not in row and "file_name" not in row:
            columns = [name for name in row if name is not None]
            raise UserError(
                f"{path}: the first line must name the columns image_id (or file_name) and caption; found {columns}"
            )
        yield f"{path}: line {line}", {str(name): cell for name, cell in row.items()}


def _rows_of_json(path: Path, value: Any, caption_keys: tuple[str, ...]) -> Iterator[_Row]:
    if isinstance(value, list):
        numbered = ((f"{path}: entry {number}", row) for number, row in enumerate(value))
        yield from _rows_of_objects(numbered, caption_keys)
    elif isinstance(value, dict):
        for key, captions in value.items():
            yield _Row(key, captions, f"{path}: key {key!r}")
    else:
        raise UserError(f"{path}: expected a list of objects or a mapping from image id to captions")


def _is_json_lines(path: Path, what: str) -> bool:
    if path.suffix in (".jsonl", ".ndjson"):
        return True
    text = read_text(path, what)
    # Some tools name JSON lines .json; a second line that starts with '{' gives them away.
    lines = [line for line in text[:100_000].split("\n", 3)[:2] if line.strip()]
    return len(lines) == 2 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines)


def _of_language(rows: Iterator[tuple[str, Any]], language: str) -> Iterator[tuple[str, Any]]:
    """Rows of Crossmodal-3600 with the captions of one language alone, other rows as they are.

    Source: Thapliyal et al. 2022, `captions.jsonl`: {"image/key": ..., "de": {"caption": [...]}, ...}.
    """
    for where, row in rows:
        if not isinstance(row, dict) or "image/key" not in row:
            yield where, row
            continue
        group = row.get(language)
        if not isinstance(group, dict) or "caption" not in group:
            known = [key for key, value in row.items() if isinstance(value, dict) and "caption" in value]
            raise UserError(f"{where}: no captions in {language!r}; choose another language of {', '.join(known)}")
        yield where, {"image_id": row["image/key"], "captions": group["caption"]}


def _rows(path: Path, what: str, caption_keys: tuple[str, ...], language: str | None = None) -> Iterator[_Row]:
    if path.suffix in (".csv", ".tsv"):
        return _rows_of_objects(_csv_rows(path, what), caption_keys)
    if _is_json_lines(path, what):
        numbered = ((f"{path}: line {number}", row) for number, row in read_json_lines(path, what))
        return _rows_of_objects(_of_language(numbered, language) if language else numbered, caption_keys)
    return _rows_of_json(path, _parsed_json(path, what), caption_keys)


def _checked_caption(caption: Any, where: str) -> str:
    if not isinstance(caption, str):
        raise UserError(f"{where}: the caption must be text, not {shown(caption)}")
    return caption


def _listed(image_ids: list[str]) -> str:
    return ", ".join(image_ids[:3]) + (f" and {len(image_ids) - 3:,} more" if len(image_ids) > 3 else "")


@no_search_for_cycles()
def read_predictions(path: Path, *, warn: Warn = warn_on_terminal) -> dict[str, str]:
    """Read one caption per image: hfcap's files, a COCO result file, a JSON mapping id -> caption, or CSV.

    Returns:
        image id -> caption, in the order of the file. Repeated lines with the same caption count once, with a warning.

    Raises:
        UserError: the file is missing, malformed or empty, a caption is not text, or an image has two captions.
    """
    captions: dict[str, str] = {}
    repeated, empty, odd = [], [], []
    for row in _rows(path, "prediction file", ("caption",)):
        image_id = normalised_image_id(row.image_id, row.where)
        value = row.captions
        if isinstance(value, list) and len(value) == 1:  # the layout of pycocoevalcap's scorers
            value = value[0]
        caption = _checked_caption(value, row.where)
        # A captioner may have written these, so they are no fault of the file for certain.
        texts = texts_of_list(caption.strip())
        if texts is not None or stands_for_nothing(caption):
            odd.append(image_id)
        if texts is not None and len(texts) == 1:
            caption = texts[0]
        if image_id in captions:
            if captions[image_id] != caption:
                raise UserError(f"{row.where}: image {image_id} already has another caption; keep one per image")
            repeated.append(image_id)
        captions[image_id] = caption
        if not caption.strip():
            empty.append(image_id)
    if not captions:
        raise UserError(f"{path}: no captions in this prediction file; give another")
    if repeated:
        warn(f"{path}: {len(repeated):,} repeated lines counted once (images {_listed(repeated)})")
    if odd:
        warn(
            f"{path}: {len(odd):,} captions are a list written as text or stand for an empty cell (images "
            f"{_listed(odd)}); a list of one is taken apart, all others are scored as they stand: correct the file"
        )
    if empty:
        warn(f"{path}: {len(empty):,} empty captions, which score 0 (images {_listed(empty)})")
    return captions


def _coco_rows(path: Path, value: dict[str, Any], split: str | None) -> Iterator[_Row]:
    images, annotations = value.get("images"), value["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(row, dict) for row in annotations):
        raise UserError(f"{path}: 'annotations' must be a list of objects with image_id and caption")
    wanted: set[str] | None = None
    if split is not None and isinstance(images, list):
        chosen = _images_of_split(path, images, split)
        if chosen is not None:
            wanted = {normalised_image_id(_field(row, ("id",), f"{path}: images"), str(path)) for row in chosen}
    for row in _rows_of_objects(
        ((f"{path}: annotation {number}", row) for number, row in enumerate(annotations)), ("caption",)
    ):
        if wanted is None or normalised_image_id(row.image_id, row.where) in wanted:
            yield row


def _images_of_split(path: Path, images: list[Any], split: str) -> list[dict[str, Any]] | None:
    """Images of a split; None where the file says nothing of splits (then it is the split)."""

    def spelled(name: Any) -> str:
        return _SPLIT_SPELLINGS.get(str(name), str(name))

    rows = [row for row in images if isinstance(row, dict)]
    known = {spelled(row["split"]) for row in rows if row.get("split") is not None}
    if not known:
        return None
    # Karpathy's "restval" belongs to training.
    names = {spelled(split), "restval"} if split == "train" else {spelled(split)}
    if not names & known:
        raise UserError(f"{path}: no image of split {split!r}; choose one of {', '.join(sorted(known))}")
    return [row for row in rows if spelled(row.get("split")) in names]


def _karpathy_rows(path: Path, images: list[Any], split: str | None) -> Iterator[_Row]:
    chosen = images if split is None else _images_of_split(path, images, split)
    for number, row in enumerate(images if chosen is None else chosen):
        where = f"{path}: image {number}"
        sentences = _field(row, ("sentences",), where)
        if not isinstance(sentences, list):
            raise UserError(f"{where}: sentences must be a list, not {type(sentences).__name__}")
        captions = [_field(sentence, ("raw",), where) for sentence in sentences]
        yield _Row(_field(row, ("cocoid", "imgid", "filename"), where), captions, where)


def _reference_rows(path: Path, split: str | None, language: str) -> Iterator[_Row]:
    if path.suffix == ".json" and not _is_json_lines(path, "reference file"):
        value = _parsed_json(path, "reference file")
        if isinstance(value, dict) and "annotations" in value:
            return _coco_rows(path, value, split)
        if isinstance(value, dict) and isinstance(value.get("images"), list):
            return _karpathy_rows(path, value["images"], split)
        return _rows_of_json(path, value, ("captions", "caption"))
    return _rows(path, "reference file", ("captions", "caption"), language)


@no_search_for_cycles()
def read_references(
    path: Path, split: str | None = None, *, language: str = "en", warn: Warn = warn_on_terminal
) -> CaptionTable:
    """Read the human captions: COCO JSON, Karpathy JSON, JSON lines, a JSON mapping id -> list of captions, or CSV.

    JSON lines may be those of Crossmodal-3600, of which `language` chooses the captions.

    Args:
        split: keep only images whose `split` is this one; a file without split labels is taken as a whole.
        language: code; of a file with captions in several languages.

    Returns:
        image id -> captions without the empty ones, in the order of the file.

    Raises:
        UserError: the file is missing, malformed or empty, a caption is not text, or an image has none.
    """
    collected = CaptionCollector()
    empty: list[str] = []
    joined = JoinedLines()
    for row in _reference_rows(path, split, language):
        image_id = normalised_image_id(row.image_id, row.where)
        place = collected.place(image_id)
        for cell in row.captions if isinstance(row.captions, list | tuple) else [row.captions]:
            for caption in captions_of_cell(_checked_caption(cell, row.where), row.where):
                joined.add(caption)
                if caption.strip():
                    collected.add(place, caption)
                else:
                    empty.append(image_id)
    references = collected.table()
    if not references:
        raise UserError(f"{path}: no captions in this reference file; give another")
    joined.refuse(str(path))
    if empty:
        warn(f"{path}: {len(empty):,} empty human captions ignored (images {_listed(empty)})")
    counts = references.groups.counts()
    without = [image_id for image_id, count in zip(references.image_ids, counts, strict=True) if not count]
    if without:
        raise UserError(f"{path}: no human caption for {len(without):,} images ({_listed(without)}); remove them")
    return references


def read_image_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Return image id -> what a prediction or reference file says of the image, as far as it says anything.

    Raises:
        UserError: the file is missing or malformed.
    """
    return dict(_image_rows(path))


def _image_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    value: Any
    if path.suffix in (".csv", ".tsv"):
        value = (row for _, row in _csv_rows(path, "caption file"))
    elif _is_json_lines(path, "caption file"):
        value = (row for _, row in read_json_lines(path, "caption file"))
    else:
        value = _parsed_json(path, "caption file")
        value = value.get("images") if isinstance(value, dict) else value
    for row in value if isinstance(value, Iterable) else ():
        if isinstance(row, dict):
            known = [row[key] for key in (*_ID_KEYS[:2], "cocoid", "imgid", "filename", "file_name") if key in row]
            if known:
                yield normalised_image_id(known[0], str(path)), row


def read_file_names(path: Path) -> dict[str, str]:
    """Return image id -> file name of the image, as far as a prediction or reference file says so.

    Raises:
        UserError: the file is missing or malformed.
    """
    names: dict[str, str] = {}
    for image_id, row in _image_rows(path):
        name = row.get("file_name", row.get("filename"))
        if isinstance(name, str):
            names[image_id] = name
        else:
            names.pop(image_id, None)  # the last row of an image counts
    return names
