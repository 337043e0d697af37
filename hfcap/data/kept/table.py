"""Records of any number in a memory-mapped Arrow file: a record becomes a Python object when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

import numpy as np
from numpy.typing import NDArray

from hfcap.data.images import FileImage
from hfcap.data.web.kept_images import KeptWebImage
from hfcap.files import file_being_written
from hfcap.schema import CaptionedImage, ImageBytes

if TYPE_CHECKING:
    import pyarrow as pa  # imported where it is used: commands that read no table start without it

ROWS_OF_PART = 16_384
"""Rows of a record batch; all but the last have as many, so that the place of a row follows from its number."""
_AT_A_TIME = 1_024
"""Rows that are Python objects at a time where all are gone through."""

_FILE, _ADDRESS, _CELL = 0, 1, 2


@cache
def schema() -> pa.Schema:
    """`kind` says where an image is: a file of this name in the root, at this address, or in a cell (`part`, `row`)."""
    import pyarrow as pa

    text, texts = pa.large_string(), pa.list_(pa.large_string())
    types = {"image_id": text, "file_name": text, "captions": texts, "kind": pa.int8(), "part": pa.int32()}
    types |= {"row": pa.int64(), "group": text, "prompts": texts, "asked": texts, "columns": text}
    return pa.schema(list(types.items()))


_LEADS_OUT = r"^/|\\|\x00|(^|/)\.\.(/|$)"


class Cells(Protocol):
    """A table that holds images in its cells, opened again."""

    def place(self, image: ImageBytes) -> tuple[int, int] | None:
        """Return part and row of an image; None where it is none of this table's."""
        ...

    def image(self, part: int, row: int) -> ImageBytes:
        """Return the image in a row."""
        ...

    def columns(self, part: int, row: int) -> Mapping[str, str]:
        """Return what a row says of its image otherwise."""
        ...

    @property
    def hold_bytes(self) -> bool:
        """Whether the cells hold the images' bytes themselves, and name no files."""
        ...


@dataclass(frozen=True)
class Places:
    """Where the images of records are.

    Attributes:
        root: folder of their files, without links on the way; None = no image is a file.
        local: addresses may be in this machine's own network.
        cells: the table that holds them.
    """

    root: Path | None = None
    local: bool = False
    cells: Cells | None = None

    def kind(self, record: CaptionedImage) -> tuple[int, int, int] | None:
        """Return (kind, part, row) of a record's image; None where it would not be found again by these."""
        image = record.image
        if isinstance(image, FileImage):
            same = self.root is not None and str(image.path) == f"{self.root}/{record.file_name}"
            return (_FILE, 0, 0) if same else None
        if isinstance(image, KeptWebImage):
            same = image.url == record.file_name and image.local == self.local
            return (_ADDRESS, 0, 0) if same else None
        place = None if self.cells is None else self.cells.place(image)
        return None if place is None else (_CELL, *place)

    def image(self, kind: int, name: str, part: int, row: int) -> ImageBytes:
        """Return an image that `kind` described."""
        if kind == _FILE:
            return FileImage(Path(f"{self.root}/{name}"))
        if kind == _ADDRESS:
            return KeptWebImage(name, self.local)
        assert self.cells is not None
        return self.cells.image(part, row)

    def columns(self, text: str | None, part: int, row: int) -> Mapping[str, str]:
        """Return what the table says of an image, read when it is asked for."""
        if text is not None:
            return JsonColumns(text)
        return {} if self.cells is None else self.cells.columns(part, row)


@dataclass(frozen=True, slots=True)
class JsonColumns(Mapping[str, str]):
    """Columns of one row as JSON, parsed when they are asked for."""

    text: str

    def _parsed(self) -> dict[str, str]:
        parsed: dict[str, str] = json.loads(self.text)
        return parsed

    def __getitem__(self, name: str) -> str:
        return self._parsed()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed())

    def __len__(self) -> int:
        return len(self._parsed())


class DamagedTableError(ValueError):
    """A file does not hold the records that were written there."""


def write_table(path: Path, records: Sequence[CaptionedImage], places: Places) -> bool:
    """Write records to an Arrow file, atomically.

    Returns:
        False where nothing was written: an image is somewhere else, or a name is no valid Unicode.

    Raises:
        OSError: nothing can be written there.
    """
    import pyarrow as pa

    remaining = iter(records)
    try:
        with file_being_written(path) as handle, pa.ipc.new_file(handle, schema()) as writer:
            while some := list(islice(remaining, ROWS_OF_PART)):
                writer.write_batch(_batch(some, places))
    except (UnicodeEncodeError, _ElsewhereError):
        return False
    return True


class _ElsewhereError(Exception):
    pass


def _batch(records: Sequence[CaptionedImage], places: Places) -> pa.RecordBatch:
    import pyarrow as pa

    rows = []
    for record in records:
        kind = places.kind(record)
        if kind is None:
            raise _ElsewhereError
        columns = None if kind[0] == _CELL else json.dumps(dict(record.columns))
        head = (record.image_id, record.file_name, record.captions)
        rows.append((*head, *kind, record.group, record.prompts, record.asked, columns))
    columns_of = list(zip(*rows, strict=True))
    arrays = [pa.array(list(values), field.type) for values, field in zip(columns_of, schema(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema())


Stamp = tuple[int, int, int]
"""Size, time and number of a file."""


def open_table(path: Path, places: Places) -> RecordTable:
    """Map a file of `write_table` into memory.

    Raises:
        DamagedTableError: it is none, or names files outside of the root.
        OSError: it cannot be read.
    """
    import pyarrow as pa

    stamp = _stamp(path)
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            if not reader.schema.equals(schema()):
                raise DamagedTableError(f"{path}: other columns")
            batches = tuple(reader.get_batch(number) for number in range(reader.num_record_batches))
        for number, batch in enumerate(batches):
            batch.validate(full=True)
            if not 0 < batch.num_rows <= ROWS_OF_PART or (batch.num_rows < ROWS_OF_PART and number + 1 < len(batches)):
                raise DamagedTableError(f"{path}: batch {number} has {batch.num_rows} rows")
            _require_sound(batch, places, path)
    except pa.ArrowException as error:
        raise DamagedTableError(f"{path}: {error}") from error
    return RecordTable(path, batches, places, range(sum(batch.num_rows for batch in batches)), stamp)


def _require_sound(batch: pa.RecordBatch, places: Places, path: Path) -> None:
    """Refuse values that no record has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    nulls = sum(batch.column(number).null_count for number in range(len(batch.schema) - 1))
    kinds = batch.column("kind").to_numpy()
    of_files = batch.column("file_name").filter(pa.array(kinds == _FILE))
    lost = (places.root is None and len(of_files)) or (places.cells is None and (kinds == _CELL).any())
    if nulls or lost or not np.isin(kinds, (_FILE, _ADDRESS, _CELL)).all():
        raise DamagedTableError(f"{path}: values that are missing or unknown")
    if pc.any(pc.match_substring_regex(of_files, _LEADS_OUT)).as_py():
        raise DamagedTableError(f"{path}: names that lead out of the folder")


class RecordTable(Sequence[CaptionedImage]):
    """Records in a memory-mapped file, or some of them in order; no Python object stays for each.

    Args:
        numbers: rows of the file that this holds.
        stamp: of the file when it was mapped: another command may put a newer one in its place.
    """

    def __init__(
        self,
        path: Path,
        batches: tuple[pa.RecordBatch, ...],
        places: Places,
        numbers: range | NDArray[np.int64],
        stamp: Stamp,
    ) -> None:
        self.path, self.places, self.numbers, self.stamp = path, places, numbers, stamp
        self._batches = batches

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, chosen: int) -> CaptionedImage: ...

    @overload
    def __getitem__(self, chosen: slice) -> Self: ...

    def __getitem__(self, chosen: int | slice) -> CaptionedImage | Self:
        """Return one record, or some as another table."""
        if isinstance(chosen, slice):
            return type(self)(self.path, self._batches, self.places, self.numbers[chosen], self.stamp)
        batch, row = divmod(int(self.numbers[chosen]), ROWS_OF_PART)
        return next(self._made(self._batches[batch].slice(row, 1)))

    def __iter__(self) -> Iterator[CaptionedImage]:
        for part in self._parts():
            yield from self._made(part)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process as the name of the file."""
        return _some_of, (self.path, self.places, self.numbers, self.stamp)

    def chosen(self, numbers: Iterable[int]) -> Self:
        """Return a table of the records at these places."""
        rows = np.asarray(self.numbers, dtype=np.int64)
        return type(self)(self.path, self._batches, self.places, rows[np.fromiter(numbers, np.int64)], self.stamp)

    def column(self, name: str) -> Iterator[Any]:
        """Yield one value of each record, a text or a tuple of texts, without making the record."""
        import pyarrow as pa

        for part in self._parts([name]):
            values = part.column(0).to_pylist()
            yield from map(tuple, values) if pa.types.is_list(part.schema.types[0]) else values

    @cached_property
    def n_asked(self) -> int:
        """How many captions answer a prompt of their own."""
        import pyarrow.compute as pc

        return sum(pc.sum(pc.list_value_length(part.column(0))).as_py() or 0 for part in self._parts(["asked"]))

    @property
    def is_replaced(self) -> bool:
        """Whether the file is another one by now; what is mapped stays as it was."""
        try:
            return _stamp(self.path) != self.stamp
        except OSError:
            return True

    @property
    def n_rows(self) -> int:
        """How many records the whole file has."""
        return sum(batch.num_rows for batch in self._batches)

    def files(self) -> Iterator[str | None]:
        """Yield the path of each image that is a file, None of each that is not."""
        import pyarrow as pa
        import pyarrow.compute as pc

        root, no_file = pa.scalar(f"{self.places.root}/", pa.large_string()), pa.scalar(None, pa.large_string())
        for part in self._parts(["file_name", "kind"]):
            names, kinds = part.columns
            paths = pc.binary_join_element_wise(root, names, pa.scalar("", pa.large_string()))
            yield from pc.if_else(pc.equal(kinds, _FILE), paths, no_file).to_pylist()

    def _parts(self, names: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the records as short batches, in order, of all columns or some."""
        import pyarrow as pa

        batches = [one if names is None else one.select(names) for one in self._batches]
        for start in range(0, len(self.numbers), _AT_A_TIME):
            some = self.numbers[start : start + _AT_A_TIME]
            rows = np.asarray(some, dtype=np.int64)
            places = rows // ROWS_OF_PART
            ends = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(rows)]
            for first, last in pairwise(ends):
                inside = rows[first:last] % ROWS_OF_PART
                batch = batches[places[first]]
                if isinstance(some, range) and some.step == 1:
                    yield batch.slice(int(inside[0]), len(inside))
                else:
                    yield batch.take(pa.array(inside))

    def _made(self, part: pa.RecordBatch) -> Iterator[CaptionedImage]:
        image, columns_of = self.places.image, self.places.columns
        for row in zip(*(column.to_pylist() for column in part.columns), strict=True):
            image_id, name, captions, kind, place, number, group, prompts, asked, columns = row
            yield CaptionedImage(
                image_id,
                name,
                tuple(captions),
                image(kind, name, place, number),
                group,
                tuple(prompts),
                columns_of(columns, place, number),
                tuple(asked),
            )


def _some_of(path: Path, places: Places, numbers: range | NDArray[np.int64], stamp: Stamp) -> RecordTable:
    whole = open_table(path, places)
    if whole.stamp != stamp:
        raise DamagedTableError(f"{path}: was replaced while it was in use, because its data changed; start again")
    return RecordTable(path, whole._batches, places, numbers, stamp)


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def values_of_records(records: Sequence[CaptionedImage], name: str) -> Iterator[Any]:
    """Yield one attribute of each record (`image_id`, `file_name`, `captions`): of a table without making records."""
    if isinstance(records, RecordTable):
        return records.column(name)
    return (getattr(record, name) for record in records)
