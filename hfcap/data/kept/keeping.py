"""Keeping the records of a split in the cache folder until what they were made of changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap.data.heic import heic_formats
from hfcap.data.image_files import OTHER_SUFFIXES
from hfcap.data.images import IMAGE_SUFFIXES
from hfcap.data.kept.stamps import UnsettledError, listing_of, stamp_of
from hfcap.data.kept.table import DamagedTableError, Places, RecordTable, open_table, write_table
from hfcap.files import cache_folder, sha256_of, write_json
from hfcap.progress import error_console
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage

FEWEST = 5_000
"""Splits of fewer images are read again each time: that takes less than a second."""

_BYTES_OF_RECORD = 20
"""The least that a file with captions has for each image."""

_RULES = 1
"""Raise it where sources make other records of the same files."""


@dataclass(frozen=True)
class Origin:
    """What the records of a split follow from, in addition to the recipe's `data` block.

    Attributes:
        facts: equal where the records would be (JSON).
        places: where their images are.
    """

    facts: dict[str, Any]
    places: Places


def origin_of_files(tables: Sequence[Path], root: Path, local: bool = False) -> Origin | None:
    """Return the origin of records that files with captions and a folder of images give.

    None where it is not known: something is missing, or has changed just now.

    Args:
        tables: files with captions; none = they are in the folder, where all files but images count.
        local: addresses may be in this machine's own network.
    """
    pixels = None if tables else frozenset(IMAGE_SUFFIXES | OTHER_SUFFIXES)
    try:
        folder = root.resolve(strict=True)
        stamps = [[str(path.resolve(strict=True)), *stamp_of(path)] for path in tables]
        if tables and sum(path.stat().st_size for path in tables) < FEWEST * _BYTES_OF_RECORD:
            return None  # too few records: the folder need not be looked through
        facts = {
            "tables": stamps,
            "root": str(folder),
            "listing": listing_of(folder, pixels),
            "heic": list(heic_formats()),
        }
    except (UnsettledError, OSError):
        return None
    return Origin(facts, Places(folder, local))


class Slot:
    """Where a split of one recipe's data is kept: `records/<hash>.arrow` in the cache folder and a `.json` about it."""

    def __init__(self, options: DataOptions, split_name: str) -> None:
        # Paths in a recipe may be relative, and then stand for others in another folder.
        key = [options.model_dump(mode="json"), split_name, str(Path.cwd())]
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.table = cache_folder() / "records" / f"{name}.arrow"
        self._about = self.table.with_suffix(".json")

    @property
    def is_taken(self) -> bool:
        """Whether anything was kept here."""
        return self._about.is_file()

    def kept(self, origin: Origin) -> RecordTable | None:
        """Return the records that were kept, and say what was said when they were made.

        None where they follow from something else, or are damaged.
        """
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            if about["rules"] != _RULES or about["facts"] != origin.facts or sha256_of(self.table) != about["sha256"]:
                return None
            said = [str(text) for text in about["said"]]
            table = open_table(self.table, origin.places)
        except (OSError, ValueError, TypeError, KeyError):  # a damaged table is a ValueError, as damaged JSON is
            return None
        for text in said:
            error_console.print(text, markup=False, style="yellow", soft_wrap=True)
        return table

    def keep(self, records: Sequence[CaptionedImage], origin: Origin, said: Sequence[str]) -> RecordTable | None:
        """Keep records, and return them as they are found there; None where that is not possible.

        Args:
            said: warnings that came up, to be said again.
        """
        for path in self.table.parent.glob(f"{self.table.stem}*"):
            path.unlink(missing_ok=True)
        try:
            if not write_table(self.table, records, origin.places):
                return None
            digest = sha256_of(self.table)
            write_json(self._about, {"rules": _RULES, "facts": origin.facts, "sha256": digest, "said": list(said)})
            return open_table(self.table, origin.places)
        except (OSError, DamagedTableError) as error:
            error_console.print(f"warning: records cannot be kept ({error}); they are read each time", markup=False)
            return None
