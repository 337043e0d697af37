"""Which images belong to which shard: made once, kept in the output folder, the same for every worker.

Shards are what the inputs bring: each WebDataset tar is one, each parquet file one or several along its row groups;
files, folders, patterns, addresses and lists of these are cut into shards of so many images.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from os.path import commonpath
from pathlib import Path
from typing import Any, Literal

from hfcap.captioning.inputs import DatasetChoice, MissingImage, images_of, is_list, require_one_readable
from hfcap.captioning.sharded.listed import ListedImages, listed_in
from hfcap.captioning.sharded.tables import Stamp, folders_of, stamp_of, stamps_for
from hfcap.captioning.shards import SHARD_SUFFIX
from hfcap.data.images import FileImage
from hfcap.data.web.image_stream import DatasetPart, identity_of
from hfcap.data.web.web_images import WebImage
from hfcap.errors import UserError
from hfcap.files import folder_being_written, write_json
from hfcap.schema import CaptionedImage, ImageBytes

PARQUET_SUFFIX = ".parquet"
_SHARDS, _IMAGES, _IDENTITY = "shards.jsonl", "images.jsonl", "plan.json"
_DIGITS = 5
_LOOKED_AT = 10
"""Lines of a list of which one must be an address or a file that is there."""


@dataclass(frozen=True, slots=True)
class _NamedFile(FileImage):
    """A file that messages call as somebody gave it: manifests are published, and hold no folders of this machine."""

    name: str

    def describe(self) -> str:
        """Return the name."""
        return self.name


@dataclass(frozen=True)
class Shard:
    """A unit of work: some images, whose captions become one file.

    Attributes:
        name: of its output, without ending. number: its place among all shards.
        source: file that the images are in; "" = they are listed in the plan.
        label: what the source is called in ids and the manifest; "" of listed images.
        start, stop: lines of the plan's list, or row groups of a parquet file (stop is after the last); of a tar 0, 0.
        first_row: number of the first row of a parquet file's part. offset: of the first line in the plan's list.
        stamp: size and time of the last change of the source when the plan was made.
        part: of a dataset.
    """

    name: str
    number: int
    kind: Literal["listed", "tar", "parquet", "dataset"]
    source: str = ""
    label: str = ""
    start: int = 0
    stop: int = 0
    first_row: int = 0
    offset: int = 0
    stamp: tuple[int, int] | None = None
    column: str | None = None
    part: DatasetPart | None = None


@dataclass(frozen=True)
class Asked:
    """What is to be captioned, as somebody asked for it.

    Attributes:
        inputs: tars, parquet files; or files, folders, patterns, addresses.
        images_per_shard: of inputs that are cut.
    """

    inputs: tuple[str, ...]
    choice: DatasetChoice
    images_per_shard: int

    def digest(self) -> str:
        """Return what tells this from other inputs and options."""
        return _digest(asdict(self))


@dataclass(frozen=True)
class Plan:
    """All shards of a captioning.

    Attributes:
        folder: where it is kept. identity: changes with the images. asked: changes with what was asked for.
        images: those that are listed, before they are written.
        tables: metadata files next to listed images; None = noted by an earlier hfcap, which knew of none.
    """

    folder: Path
    shards: tuple[Shard, ...]
    identity: str
    asked: str
    images: Sequence[CaptionedImage] = ()
    tables: Mapping[str, Stamp] | None = None

    def write(self) -> Plan:
        """Keep it in its folder, in place of another one; returns it as it is read there."""
        shards, folders = [], set[Path]()
        with folder_being_written(self.folder) as place:
            with (place / _IMAGES).open("wb") as handle:
                for shard in self.shards:
                    shards.append(replace(shard, offset=handle.tell()))
                    images = list(self.images[shard.start : shard.stop])
                    handle.writelines(map(_line, map(_row, images)))
                    folders |= folders_of(images)
            with (place / _SHARDS).open("wb") as handle:
                handle.writelines(map(_line, map(asdict, shards)))
            tables = stamps_for(folders)
            write_json(place / _IDENTITY, {"identity": self.identity, "asked": self.asked, "tables": tables})
        return replace(self, shards=tuple(shards), images=(), tables=tables)

    def listed(self, shard: Shard) -> Iterator[CaptionedImage]:
        """Yield the images of a shard of the plan's list, as it was written."""
        with (self.folder / _IMAGES).open("rb") as lines:
            lines.seek(shard.offset)
            for line in islice(lines, shard.stop - shard.start):
                row = json.loads(line)
                yield CaptionedImage(row["image_id"], row["file_name"], (), _image(row))


def make_plan(asked: Asked, folder: Path) -> Plan:
    """Divide inputs into shards; `folder` is where the plan would be kept.

    Raises:
        UserError: an input matches nothing, kinds of inputs are mixed, or an option of `choice` is not for them.
        WorkError: the Hub cannot be reached.
    """
    inputs, size = asked.inputs, asked.images_per_shard
    listed: Sequence[CaptionedImage] = []
    if files := _files(inputs):
        asked.choice.require_only(inputs[0], "image_column")
        shards = list(_of_files(files, size, asked.choice.image_column))
        identity = _digest([asdict(shard) for shard in shards])
    elif (long_list := _long_list(asked)) is not None:
        listed, shards = long_list, _of_listed(len(long_list), size)
        identity = _digest_of_listed(long_list, size)
    else:
        images = images_of(inputs, asked.choice)
        known = images.listed or []
        identity = _digest([images.identity, size])
        if len(known) == 1:  # a mistyped name; of many some may be missing
            require_one_readable(known)
        listed = known
        shards = [_of_part(part) for part in images.parts(size)] if images.parts else _of_listed(len(known), size)
    if not shards:
        raise UserError(f"{inputs[0]}: there is no image in it; give other inputs")
    return Plan(folder, tuple(_numbered(shards)), identity, asked.digest(), listed)


def _of_listed(count: int, size: int) -> list[Shard]:
    return [Shard("", 0, "listed", start=start, stop=min(start + size, count)) for start in range(0, count, size)]


def _long_list(asked: Asked) -> ListedImages | None:
    """Return the images of one long list, whose lines stay in their file; None of other inputs."""
    if len(asked.inputs) != 1 or not is_list(asked.inputs[0]):
        return None
    asked.choice.require_only(asked.inputs[0])
    images = listed_in(Path(asked.inputs[0]).expanduser())
    # Some other text, most likely: reading it as a whole says so.
    return images if images is not None and any(map(_may_be_there, images[:_LOOKED_AT])) else None


def _may_be_there(record: CaptionedImage) -> bool:
    return not isinstance(record.image, FileImage) or record.image.path.exists()


def _digest_of_listed(images: Iterable[CaptionedImage], size: int) -> str:
    """Return what `_digest` says of the identity of listed images, without the whole of it in memory."""
    digest, comma = hashlib.sha256(b"[["), b""
    for record in images:
        digest.update(comma + json.dumps(identity_of(record)).encode())
        comma = b", "
    digest.update(f"], {json.dumps(size)}]".encode())
    return digest.hexdigest()[:32]


def read_plan(folder: Path) -> Plan | None:
    """Return the plan that is kept in a folder; None where there is none."""
    try:
        identity = json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))
        lines = (folder / _SHARDS).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    shards = [_shard(json.loads(line)) for line in lines]
    tables = identity.get("tables")
    known = None if tables is None else {name: (size, time) for name, (size, time) in tables.items()}
    return Plan(folder, tuple(shards), identity["identity"], identity["asked"], tables=known)


def _shard(row: dict[str, Any]) -> Shard:
    stamp, part = row["stamp"], row["part"]
    read = {
        "stamp": None if stamp is None else tuple(stamp),
        "part": None if part is None else DatasetPart(**part),
    }
    return Shard(**(row | read))


def _of_part(part: DatasetPart) -> Shard:
    place = f"shard {part.start}" if part.n_shards else f"rows {part.start} to {part.stop - 1}"
    return Shard("", 0, "dataset", label=f"{part.split}, {place}", part=part)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _line(row: dict[str, Any]) -> bytes:
    # ASCII: names that are not UTF-8 come back as they were.
    return json.dumps(row).encode("ascii") + b"\n"


def _row(record: CaptionedImage) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": record.image_id, "file_name": record.file_name}
    if isinstance(record.image, FileImage):
        return row | {"file": str(record.image.path.absolute())}
    if isinstance(record.image, WebImage):
        return row | {"url": record.image.url}
    if isinstance(record.image, MissingImage):
        return row | {"problem": record.image.problem}
    raise UserError(f"{record.image_id}: is neither a file nor a web address; give -o FILE instead of --to-shards")


def _image(row: dict[str, Any]) -> ImageBytes:
    if "file" in row:
        return _NamedFile(Path(row["file"]), row["file_name"])
    return WebImage(row["url"]) if "url" in row else MissingImage(row["problem"])


def _files(inputs: Sequence[str]) -> list[Path]:
    """Return the tars or parquet files that are given, by name, by pattern or as a folder of tars.

    Raises:
        UserError: they are mixed with each other or with other inputs.
    """
    found: dict[Path, None] = {}
    others: list[str] = []
    for text in inputs:
        path = Path(text).expanduser()
        files = [path] if path.suffix.lower() in (SHARD_SUFFIX, PARQUET_SUFFIX) and "://" not in text else []
        if path.is_dir():
            files = sorted(path.glob(f"*{SHARD_SUFFIX}"))
        elif files and not path.exists():
            files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 as in inputs
            if not files:
                raise UserError(f"{text}: no such file, and no file matches it; check the path")
        found |= dict.fromkeys(files)
        others += [] if files else [text]
    kinds = {path.suffix.lower() for path in found}
    if found and (others or len(kinds) > 1):
        odd = others[0] if others else next(iter(found))
        raise UserError(f"{odd}: tars, parquet files and images are captioned apart; give one kind at a time")
    return list(found)


def _of_files(files: Sequence[Path], images_per_shard: int, column: str | None) -> Iterator[Shard]:
    absolute = [path.absolute() for path in files]
    root = Path(commonpath([path.parent for path in absolute]))
    for path in absolute:
        label = path.relative_to(root).as_posix()
        kind: Literal["tar", "parquet"] = "tar" if path.suffix.lower() == SHARD_SUFFIX else "parquet"
        whole = Shard("", 0, kind, str(path), label, stamp=stamp_of(path), column=column)
        if kind == "tar":
            yield whole
        else:
            yield from _parts(whole, images_per_shard)


def _parts(whole: Shard, images_per_shard: int) -> Iterator[Shard]:
    """Cut a parquet file where row groups end; a damaged one is a shard whose reading says so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(whole.source).is_file():
        yield whole
        return
    try:
        with pq.ParquetFile(whole.source) as opened:
            groups = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    except (pa.ArrowException, OSError):
        yield whole
        return
    start, n_rows, first_row = 0, 0, 0
    for number, rows in enumerate(groups):
        if n_rows and n_rows + rows > images_per_shard:
            yield replace(whole, start=start, stop=number, first_row=first_row)
            start, first_row, n_rows = number, first_row + n_rows, 0
        n_rows += rows
    yield replace(whole, start=start, stop=len(groups), first_row=first_row)


def _numbered(shards: Sequence[Shard]) -> list[Shard]:
    digits = max(_DIGITS, len(str(len(shards) - 1)))
    return [replace(shard, name=f"shard-{number:0{digits}d}", number=number) for number, shard in enumerate(shards)]
