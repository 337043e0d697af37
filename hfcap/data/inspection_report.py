"""What `hfcap data inspect` found, and how it says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hfcap.data.images import FileImage
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage
from hfcap.text import counted

N_EXAMPLES = 3
_SHOWN = 100
_CAPTIONS_SHOWN = 5


@dataclass
class Inspection:
    """What was found.

    Attributes:
        what: the kind of data, as a sentence.
        block: the recipe's `data` block.
        splits: name -> (images, captions).
        drawn: the splits are not in the data, but drawn by the shares.
        examples: name of an image and its captions.
        left_out: what is there and not read.
        notes: what to know, one sentence each.
        missing: names of files that the data name and that are not there.
        n_images: how many images the data name.
        folder: where files were looked for.
    """

    what: str
    block: dict[str, Any]
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    drawn: bool = False
    examples: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    n_images: int = 0
    folder: str = ""

    def look_for(self, records: Sequence[CaptionedImage], folder: Path) -> None:
        """Note which files of records are not there."""
        files = [(one.file_name, one.image.path) for one in records if isinstance(one.image, FileImage)]
        self.missing += [name for name, path in files if not path.is_file()]
        self.n_images += len(records)
        self.folder = str(folder)

    def verdict(self) -> str | None:
        """Say how many of the images are missing, and which; None where all are there."""
        if not self.missing:
            return None
        names = ", ".join(map(repr, self.missing[:N_EXAMPLES])) + (", ..." if len(self.missing) > N_EXAMPLES else "")
        return f"{len(self.missing):,} of {counted(self.n_images, 'image')} are not in {self.folder}: {names}"

    def refuse_missing(self) -> None:
        """Refuse data of which images are missing.

        Raises:
            UserError: says how many and which, and what to do.
        """
        if verdict := self.verdict():
            where = ", or name their folder with --images" if self.block["source"] in ("table", "coco_json") else ""
            raise UserError(f"{verdict}; add the files, or correct their names{where}")


def report(inspection: Inspection) -> str:
    """Return what was found as text for a terminal, the block to paste at its end."""
    verdict = inspection.verdict()
    lines = [*([verdict] if verdict else []), inspection.what]
    for name, (n_images, n_captions) in inspection.splits.items():
        captions = f", {counted(n_captions, 'caption')}" if n_captions else ""
        images = counted(n_images, "image") if n_images else "number of images unknown"
        lines.append(f"{'drawn ' if inspection.drawn else ''}split {name}: {images}{captions}")
    lines += [f"left out: {reason}" for reason in inspection.left_out]
    lines += [f"note: {note}" for note in inspection.notes]
    for name, of_image in inspection.examples:
        lines.append(f"example: {name}")
        lines += [f"    {_shortened(caption)}" for caption in of_image[:_CAPTIONS_SHOWN]]
        if len(of_image) > _CAPTIONS_SHOWN:
            lines.append(f"    and {len(of_image) - _CAPTIONS_SHOWN:,} more")
    return "\n".join([*lines, "", "in a recipe:", "", block_text(inspection)])


def block_text(inspection: Inspection) -> str:
    """Return the block as YAML."""
    return yaml.safe_dump({"data": inspection.block}, sort_keys=False, allow_unicode=True).rstrip()


def _shortened(caption: str) -> str:
    return caption if len(caption) <= _SHOWN else f"{caption[:_SHOWN]}..."
