"""The output of one shard: captions as a parquet file, or images with captions as a WebDataset tar."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import BinaryIO

from hfcap.captioning.output import parquet_of
from hfcap.captioning.partial_output import Result, Skipped
from hfcap.captioning.sharded.duplicates import Duplicate
from hfcap.captioning.shards import add_sample, image_ending, sample_of
from hfcap.schema import CaptionedImage, Prediction


class ShardWriter(ABC):
    """Writes the results of one shard in their order; equal results give equal bytes.

    Args:
        handle: open file. number: of the shard. more: columns besides those that every caption has.
    """

    ending: str
    with_images: bool
    """Whether the bytes of images are written, too."""

    def __init__(self, handle: BinaryIO, number: int, more: Sequence[str]) -> None:
        self.handle, self.number, self.more = handle, number, more

    @abstractmethod
    def add(self, record: CaptionedImage, result: Result | Duplicate) -> None:
        """Write one image."""

    @abstractmethod
    def end(self) -> None:
        """Write what is left."""


class ParquetWriter(ShardWriter):
    """A row for every image; the caption of unreadable ones and of duplicates is null, and another column says why."""

    ending, with_images = ".parquet", False

    def __init__(self, handle: BinaryIO, number: int, more: Sequence[str]) -> None:
        super().__init__(handle, number, more)
        self.rows: list[dict[str, object]] = []

    def add(self, record: CaptionedImage, result: Result | Duplicate) -> None:
        """Keep one row; captions are small."""
        if isinstance(result, Duplicate):
            self.rows.append(asdict(result) | {"file_name": record.file_name})
        elif isinstance(result, Skipped):
            self.rows.append({"image_id": result.image_id, "file_name": record.file_name, "problem": result.problem})
        else:
            self.rows.append({"cut": False} | result.as_row())

    def end(self) -> None:
        """Write the table."""
        self.handle.write(parquet_of(self.rows, self.more))


class TarWriter(ShardWriter):
    """A sample for every captioned image, with its bytes; keys are running numbers that no other shard has."""

    ending, with_images = ".tar", True

    def __init__(self, handle: BinaryIO, number: int, more: Sequence[str]) -> None:
        super().__init__(handle, number, more)
        self.archive = tarfile.open(fileobj=handle, mode="w")  # noqa: SIM115  closed in `end`
        self.n_samples = 0

    def add(self, record: CaptionedImage, result: Result | Duplicate) -> None:
        """Write one sample."""
        if isinstance(result, Prediction):
            content = record.image.read()
            key = f"{self.number:06d}{self.n_samples:06d}"
            add_sample(self.archive, sample_of(key, result, image_ending(record.file_name, content), content))
            self.n_samples += 1

    def end(self) -> None:
        """Write the end of the archive."""
        self.archive.close()


WRITERS: Mapping[str, type[ShardWriter]] = {"parquet": ParquetWriter, "webdataset": TarWriter}
