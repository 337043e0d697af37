"""FOIL: captions of COCO in which one word was exchanged for a wrong one (Shekhar et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.judgments.records import JudgedCaption, Judgments, Preference, tidy
from hfcap.metrics.shared.caption_files import normalised_image_id

_KEYS = {"caption", "foil", "id", "image_id"}


def is_foil(content: Any) -> bool:
    """Whether JSON is in this layout."""
    rows = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and "foil" in rows[0]


def read_foil(path: Path, content: Any, references: Mapping[str, Sequence[str]]) -> Judgments:
    """Read `foilv1.0_test_2017.json`: each right caption is better than its foils; it is no reference of itself.

    Args:
        references: image id -> human captions of COCO.

    Raises:
        UserError: a key is missing, a caption has no foil, or an image has no references.
    """
    if not references:
        raise UserError(f"{path}: the layout foil holds no human captions; give COCO's with --references")
    right: dict[str, tuple[str, str]] = {}
    foils: dict[str, list[str]] = {}
    for number, row in enumerate(content["annotations"]):
        where = f"{path}: annotation {number}"
        if not isinstance(row, dict) or not row.keys() >= _KEYS or not isinstance(row["caption"], str):
            raise UserError(f"{where}: must have the keys {', '.join(sorted(_KEYS))}")
        if row["foil"]:
            foils.setdefault(str(row["id"]), []).append(tidy(row["caption"]))
        else:
            right[str(row["id"])] = (normalised_image_id(row["image_id"], where), tidy(row["caption"]))
    captions: list[JudgedCaption] = []
    pairs: list[Preference] = []
    for key, wrong in foils.items():
        if key not in right:
            raise UserError(f"{path}: annotation id {key}: no right caption with this id; download the file again")
        image, caption = right[key]
        if image not in references:
            raise UserError(f"{path}: image {image}: no human captions in the file of --references; give those of COCO")
        human = tuple(one for one in map(tidy, references[image]) if one != caption)
        captions.append(JudgedCaption(image, caption, human))
        better = len(captions) - 1
        for foil in wrong:
            captions.append(JudgedCaption(image, foil, human))
            pairs.append(Preference(better, len(captions) - 1))
    if not pairs:
        raise UserError(f"{path}: no caption with a foil; give the file of both")
    return Judgments("foil", tuple(captions), preferences=tuple(pairs))
