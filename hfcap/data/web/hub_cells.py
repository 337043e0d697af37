"""The images of a map-style dataset, found again by split and row without reading the rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hfcap.data.web.hub_images import RowColumns, RowImage
from hfcap.schema import ImageBytes


@dataclass(frozen=True)
class HubPart:
    """One split of a dataset.

    Attributes:
        name: dataset and split. column: place of the image in a row.
        images: the column of images, undecoded. said: the columns that prompts may name.
    """

    name: str
    column: str
    images: Any
    said: Any

    def facts(self) -> list[Any]:
        """Return what changes with the rows (JSON)."""
        files = [Path(file["filename"]) for table in (self.images, self.said) for file in table.cache_files]
        stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in dict.fromkeys(files)]
        return [self.name, self.column, self.images._fingerprint, self.said._fingerprint, len(self.images), *stamps]


@dataclass(frozen=True)
class HubCells:
    """All splits of a dataset; other attributes: `CellImage`."""

    parts: tuple[HubPart, ...]
    folder: Path | None
    local: bool

    def place(self, image: ImageBytes) -> tuple[int, int] | None:
        """Return part and row of an image; None where it is none of this dataset's."""
        if not isinstance(image, RowImage):
            return None
        part = self._numbers.get((image.dataset._fingerprint, image.column))
        return None if part is None or self.image(part, image.row).name != image.name else (part, image.row)

    @cached_property
    def _numbers(self) -> dict[tuple[str, str], int]:
        return {(part.images._fingerprint, part.column): number for number, part in enumerate(self.parts)}

    def image(self, part: int, row: int) -> RowImage:
        """Return the image in a row."""
        found = self.parts[part]
        return RowImage(found.images, found.column, row, f"{found.name}, row {row}", self.folder, self.local)

    def columns(self, part: int, row: int) -> Mapping[str, str]:
        """Return what a row says of its image otherwise."""
        return RowColumns(self.parts[part].said, row)

    @property
    def hold_bytes(self) -> bool:
        """Whether the rows hold all images themselves: files that they name would change without them."""
        return self.folder is None or all(_all_in_rows(part.images) for part in self.parts)


def _all_in_rows(images: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = images.data.column(0)
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        return False
    return bool(pc.struct_field(column, "bytes").null_count == 0)
