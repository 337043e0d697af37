"""WebDataset shards: tar files that hold each image, its caption as text and what else is known as JSON."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from hfcap.data.images import UnreadableImageError
from hfcap.errors import UserError, WorkError
from hfcap.files import file_being_written
from hfcap.schema import IMAGE_FORMATS, CaptionedImage, Prediction

SHARD_SUFFIX = ".tar"
_NUMBER = re.compile(r"%0?(\d+)d")
_MAX_IMAGES, _MAX_BYTES = 10_000, 2**30
_ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}


def check_shards(path: Path) -> None:
    """Check the name of shards before any work.

    Raises:
        UserError: it has a percent sign that is no number of the shard, or more than one number.
    """
    numbers = _NUMBER.findall(path.name)
    if len(numbers) > 1 or "%" in _NUMBER.sub("", path.name):
        raise UserError(f"{path}: give one file (photos.tar), or a number for each shard (photos-%05d.tar)")


def write_shards(images: Iterable[CaptionedImage], predictions: Sequence[Prediction], path: Path) -> list[Path]:
    """Write images with their captions as one tar file, or where the name holds `%05d` as shards.

    A shard has at most 10,000 images or about 1 GB. Keys are running numbers, because file names may hold points, at
    which WebDataset cuts.

    Args:
        images: those that were captioned, in the order of `predictions`; others between them are left out.

    Raises:
        WorkError: an image can no longer be read.
    """
    written: list[Path] = []
    samples = _samples(images, predictions)
    numbered = bool(_NUMBER.search(path.name))
    while (first := next(samples, None)) is not None:
        name = _NUMBER.sub(lambda match: f"{len(written):0{match[1]}d}", path.name)
        written.append(path.with_name(name))
        _write_one(written[-1], first, samples, _MAX_IMAGES if numbered else None)
    return written


Sample = list[tuple[str, bytes]]
"""The files of one image: names and contents."""


def _samples(images: Iterable[CaptionedImage], predictions: Sequence[Prediction]) -> Iterator[Sample]:
    for number, (prediction, ending, content) in enumerate(captioned_files(images, predictions)):
        yield sample_of(f"{number:09d}", prediction, ending, content)


def sample_of(key: str, prediction: Prediction, ending: str, content: bytes) -> Sample:
    """Return the files of one image: itself, its caption, and its row."""
    return [
        (f"{key}.{ending}", content),
        (f"{key}.txt", prediction.caption.encode()),
        (f"{key}.json", json.dumps(prediction.as_row(), ensure_ascii=False).encode()),
    ]


def add_sample(archive: tarfile.TarFile, sample: Sample) -> None:
    """Write the files of one image; nothing of them tells when or by whom."""
    for name, content in sample:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def captioned_files(
    images: Iterable[CaptionedImage], predictions: Sequence[Prediction]
) -> Iterator[tuple[Prediction, str, bytes]]:
    """Yield each prediction with the ending of a name for its image, and the image's bytes; read again, one by one.

    Raises:
        WorkError: an image can no longer be read.
    """
    number = 0
    for record in images:
        if number == len(predictions):
            return
        prediction = predictions[number]
        if record.image_id != prediction.image_id:
            continue
        try:
            content = record.image.read()
        except UnreadableImageError as error:
            raise WorkError(f"cannot be read any more: {error}") from error
        yield prediction, image_ending(record.file_name, content), content
        number += 1


def image_ending(file_name: str, content: bytes) -> str:
    """Return the ending by which a reader decodes an image; names may lie."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            name = image.format or ""
    except UnidentifiedImageError:  # HEIC, which pillow-heif reads
        name = Path(file_name).suffix.removeprefix(".")
    return _ENDINGS.get(name, name.lower())


def _write_one(path: Path, sample: Sample, samples: Iterator[Sample], most: int | None) -> None:
    """Write a sample and those after it, until there is none or the shard is full (`most` images; None = never)."""
    with file_being_written(path) as handle, tarfile.open(fileobj=handle, mode="w") as archive:
        n_images = 0
        following: Sample | None = sample
        while following is not None:
            add_sample(archive, following)
            n_images += 1
            if most is not None and (n_images == most or handle.tell() > _MAX_BYTES):
                return
            following = next(samples, None)
