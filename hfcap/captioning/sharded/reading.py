"""The images of one shard, read one after the other; what is damaged becomes an image that says so."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from hfcap.captioning.columns import Tables, with_columns
from hfcap.captioning.inputs import MissingImage
from hfcap.captioning.sharded.plan import Plan, Shard
from hfcap.captioning.sharded.tables import folders_of, require_unchanged
from hfcap.data.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, BytesImage
from hfcap.data.tables.cell_paths import values_at
from hfcap.data.tables.columns import UnfitColumnsError
from hfcap.data.web.hub_columns import column_of, find_image_column
from hfcap.data.web.hub_images import CellImage
from hfcap.data.web.image_stream import part_columns, part_images
from hfcap.errors import UserError
from hfcap.files import parse_json
from hfcap.recipe.prompt_fields import values_of
from hfcap.schema import CaptionedImage, ImageBytes

_ROWS_AT_A_TIME = 16
_JSON = "json"
_MOST_JSON_BYTES = 2**20
"""Of a sample's JSON; what a prompt may name is short."""


class ReadOnce:
    """An image whose bytes are kept when they are read, because they are written as well."""

    def __init__(self, image: ImageBytes) -> None:
        self.image = image
        self.content: bytes | None = None

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            UnreadableImageError: there is none.
        """
        if self.content is None:
            self.content = self.image.read()
        return self.content

    def describe(self) -> str:
        """Return the name of the image."""
        return self.image.describe()


def images_in(
    plan: Plan, shard: Shard, fields: Sequence[str] = (), tables: Tables | None = None
) -> Iterator[CaptionedImage]:
    """Yield the images of a shard, in an order that stays the same.

    Args:
        fields: columns that the prompt names, of which records say something then.
        tables: of metadata files, see `with_columns`.

    Raises:
        WorkError: the Hub cannot be reached, or the stream of a dataset breaks.
        UserError: a metadata file in a folder of images is damaged, or was changed since the plan was made.
    """
    if shard.kind == "listed":
        listed = plan.listed(shard)
        return _with_columns(plan, listed, tables) if fields else listed
    if shard.part is not None:
        return part_images(shard.part)
    if not Path(shard.source).is_file():  # opening a named pipe would wait for somebody to write into it
        return iter([_missing(shard.label, f"{shard.label}: not a file, or no longer there")])
    return _in_tar(shard, fields) if shard.kind == "tar" else _in_parquet(shard, fields)


def _with_columns(plan: Plan, listed: Iterator[CaptionedImage], tables: Tables | None) -> Iterator[CaptionedImage]:
    """Yield images with their columns, if the metadata files before and afterwards are those of the beginning."""
    records = list(listed)
    if plan.tables is None:
        yield from with_columns(records, tables)
        return
    folders = folders_of(records)
    require_unchanged(plan.tables, folders)
    yield from with_columns(records, tables)
    require_unchanged(plan.tables, folders)


_LOOKED_AT = 16
"""Images of the first shard, of which some may lack what the others have."""


def require_columns(plan: Plan, template: str, fields: Sequence[str]) -> None:
    """Refuse a prompt whose fields the first shard does not have; a single image may still lack a value.

    Raises:
        UserError: names the field and the columns that there are.
    """
    shard = plan.shards[0]
    if shard.part is not None:
        known: Sequence[str] = part_columns(shard.part)
    elif shard.kind == "parquet" and Path(shard.source).is_file():
        known = _columns_of(Path(shard.source))
    else:
        first = list(islice(images_in(plan, shard, fields), _LOOKED_AT))
        if not first:
            return
        known = list(dict.fromkeys(name for record in first for name in record.columns))
    if lacking := [name for name in fields if name not in known]:
        where = shard.label or "the first shard"
        raise UserError(
            f"prompt {template!r}: {where} has no column for {{{lacking[0]}}} (columns: {', '.join(known) or 'none'}); "
            "change the prompt"
        )


def _missing(name: str, problem: str) -> CaptionedImage:
    return CaptionedImage(name, name, (), MissingImage(problem))


@dataclass
class _Sample:
    """Members with one key: images by their endings, and what the JSON among them says."""

    key: str
    images: list[tuple[str, ImageBytes]] = field(default_factory=list)
    columns: Mapping[str, str] = field(default_factory=dict)


def _in_tar(shard: Shard, fields: Sequence[str]) -> Iterator[CaptionedImage]:
    """Group members as WebDataset does: neighbours with the same name up to the first point are a sample."""
    n_samples = 0
    try:
        with tarfile.open(shard.source) as archive:
            sample: _Sample | None = None
            for member in archive:
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                its_key, ending = _key(member.name)
                if sample is None or its_key != sample.key:
                    if sample is not None:
                        yield _record(shard, sample)
                        n_samples += 1
                    sample = _Sample(its_key)
                if f".{ending}".endswith(tuple(IMAGE_SUFFIXES)):
                    sample.images.append((ending, _member(archive, member, shard.label)))
                elif fields and ending == _JSON:
                    sample.columns = _said_in(archive, member)
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all that it has seen
            if sample is not None:
                yield _record(shard, sample)
                n_samples += 1
            _require_end(archive)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        reason = str(error) or type(error).__name__
        yield _missing(shard.label, f"{shard.label}: damaged after {n_samples:,} samples ({reason})")


def _key(name: str) -> tuple[str, str]:
    """Return key and ending of a member: its name is cut at the first point after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, label: str) -> ImageBytes:
    where = f"{label}/{member.name}"
    if member.size > MAX_IMAGE_BYTES:
        return MissingImage(f"{where}: {member.size:,} bytes, more than the limit {MAX_IMAGE_BYTES:,}")
    stream = archive.extractfile(member)
    assert stream is not None, "only of regular files"
    content = stream.read()
    return BytesImage(content, where) if content else MissingImage(f"{where}: the file is empty")


def _said_in(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Mapping[str, str]:
    """Return what a sample's JSON object says; nothing where it is none."""
    stream = archive.extractfile(member)
    if stream is None or member.size > _MOST_JSON_BYTES:
        return {}
    try:
        cells = parse_json(stream.read().decode(), member.name)
    except (UserError, UnicodeDecodeError):
        return {}
    return values_of(cells) if isinstance(cells, dict) else {}


def _record(shard: Shard, sample: _Sample) -> CaptionedImage:
    name = f"{shard.label.removesuffix('.tar')}/{sample.key}"
    chosen = [one for one in sample.images if shard.column is None or one[0] == shard.column]
    if len(chosen) == 1:
        [(ending, image)] = chosen
        return CaptionedImage(name, f"{sample.key}.{ending}", (), image, columns=sample.columns)
    found = ", ".join(ending for ending, _ in sample.images) or "none"
    wanted = "one image" if shard.column is None else f"one image that ends in {shard.column}"
    return _missing(name, f"{name}: the sample must hold {wanted} (found: {found}; --image-column names the ending)")


def _require_end(archive: tarfile.TarFile) -> None:
    """Tell the end of an archive from a damaged header, which tarfile takes for the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("bad header")


def _columns_of(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return []


def _in_parquet(shard: Shard, fields: Sequence[str]) -> Iterator[CaptionedImage]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    prefix = shard.label.removesuffix(".parquet")
    row = shard.first_row
    try:
        with pq.ParquetFile(shard.source) as opened:
            place, column = _image_column(shard, opened.schema_arrow)
            groups = list(range(shard.start, shard.stop))
            others = [name for name in fields if name in opened.schema_arrow.names and name != column]
            for batch in opened.iter_batches(_ROWS_AT_A_TIME, row_groups=groups, columns=[column, *others]):
                for cells in batch.to_pylist():
                    name = f"{prefix}-{row}"
                    image = _cell(cells[column], column, place, f"{shard.label}, row {row}")
                    yield CaptionedImage(name, name, (), image, columns=values_of(cells, [column]))
                    row += 1
    # pyarrow reports damaged files as ValueError, too.
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        yield _missing(shard.label, f"{shard.label}: cannot be read from row {row} on ({reason})")


def _image_column(shard: Shard, schema: Any) -> tuple[str, str]:
    """Return the place of images in a row, and the column it is in.

    Raises:
        UnfitColumnsError: there is none, several could be meant, or the file's description of its columns is damaged.
    """
    import datasets

    try:
        features = datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnfitColumnsError(
            f"{shard.label}: damaged description of the columns ({error}); write the file again"
        ) from None
    place = find_image_column(shard.label, shard.column, features, "--image-column")
    return place, column_of(place, features)


def _cell(cell: Any, column: str, place: str, where: str) -> CellImage:
    found = values_at({column: _image_cells(cell)}, place)
    return CellImage(found[0] if len(found) == 1 else found, where)


def _image_cells(cell: Any) -> Any:
    """Return a cell in the form of `datasets`' undecoded images: bytes or a file's name may stand in it as they are."""
    if isinstance(cell, list):
        return [_image_cells(one) for one in cell]
    if isinstance(cell, bytes):
        return {"bytes": cell, "path": None}
    return {"bytes": None, "path": cell} if isinstance(cell, str) else cell
