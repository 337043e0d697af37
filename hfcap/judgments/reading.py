"""Which layout a file, folder or dataset of human judgments is in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfcap.data.tables.reading import TABLE_SUFFIXES
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.judgments.layouts import composite, flickr8k, foil, pascal50s, tables
from hfcap.judgments.records import Judgments
from hfcap.metrics.shared.caption_files import read_references

_EXPERT_OR_CROWD = {"flickr8k_expert": flickr8k.EXPERT, "flickr8k_cf": flickr8k.CROWD}


def read_judgments(
    dataset: str,
    *,
    references: Sequence[Path] = (),
    split: str | None = None,
    config_name: str | None = None,
) -> Judgments:
    """Read human judgments in any of the layouts of `judgments/layouts`.

    Args:
        dataset: file, folder, or id of a dataset on the Hub.
        references: files of human captions, for layouts without them.
        split, config_name: of a dataset.

    Raises:
        UserError: it is in no layout that is known, damaged, or lacks something; the message says what.
        WorkError: the Hub cannot be reached.
    """
    path = Path(dataset).expanduser()
    human = {key: group for one in references for key, group in read_references(one).items()}
    if path.is_dir() and (found := _of_folder(path, human)) is not None:
        return found
    if path.name in (flickr8k.EXPERT, flickr8k.CROWD):
        layout = next(name for name, file in _EXPERT_OR_CROWD.items() if file == path.name)
        return flickr8k.read_text_files(path, layout)
    if path.suffix == ".json" and path.is_file():
        content = read_json(path, "file of human judgments")
        if foil.is_foil(content):
            return foil.read_foil(path, content, human)
        if _is_flickr8k(content):
            return flickr8k.read_json_file(path, content)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return tables.read_table(tables.rows_of_file(path), dataset, human)
    if path.is_file():
        raise UserError(f"{path}: no layout of human judgments is known by this ending; give CSV, JSON or parquet")
    return tables.read_table(tables.rows_of_dataset(dataset, split, config_name), dataset, human)


def _of_folder(folder: Path, human: dict[str, tuple[str, ...]]) -> Judgments | None:
    present = [layout for layout, name in _EXPERT_OR_CROWD.items() if (folder / name).is_file()]
    if len(present) > 1:
        names = " or ".join(str(folder / _EXPERT_OR_CROWD[layout]) for layout in present)
        raise UserError(f"{folder}: holds two sets of judgments; name one: {names}")
    if present:
        return flickr8k.read_text_files(folder / _EXPERT_OR_CROWD[present[0]], present[0])
    if (folder / pascal50s.PAIRS).is_file():
        return pascal50s.read_pascal50s(folder)
    return composite.read_composite(folder, human) if any(folder.glob(composite.FILES)) else None


def _is_flickr8k(content: Any) -> bool:
    first = next(iter(content.values()), None) if isinstance(content, dict) else None
    return isinstance(first, dict) and "human_judgement" in first
