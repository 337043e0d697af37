"""Captions into sidecars: which images get one, what happens to those that are there, and how each is written."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfcap.captioning.partial_output import Result
from hfcap.data.images import FileImage
from hfcap.data.marks import Mark, add_marks, image_name
from hfcap.data.sidecars import SidecarKind, read_sidecar_file, sidecar_of
from hfcap.data.web.image_stream import ImageStream, listed_images
from hfcap.errors import UserError
from hfcap.files import check_can_write, write_bytes
from hfcap.schema import CaptionedImage, Prediction

Existing = Literal["skip", "overwrite", "append"]
_JOURNAL = ".hfcap-sidecars"


class ImageOutput(ABC):
    """Where captions go that stay with their images: next to them, or inside."""

    @abstractmethod
    def wanted(self, images: ImageStream) -> ImageStream:
        """Return the images that are captioned.

        Raises:
            UserError: these are no files, or nothing may be written there.
        """

    @abstractmethod
    def journal(self, images: ImageStream) -> Path | None:
        """Return what a stopped captioning notes its progress next to; None where the images themselves tell."""

    def write(self, captioned: Iterable[tuple[CaptionedImage, Result]]) -> None:
        """Write the captions of some images, each file completely or not at all; twice does no more than once."""
        marks: dict[Path, dict[str, Mark]] = {}
        for record, result in captioned:
            path = path_of(record)
            if path is not None and isinstance(result, Prediction) and self._write_one(path, result):
                # Also where nothing was examined: what was said about another caption no longer holds.
                marks.setdefault(path.parent, {})[image_name(path)] = Mark(result.review or "")
        for folder, of_images in marks.items():
            add_marks(folder, of_images)

    @abstractmethod
    def _write_one(self, image: Path, prediction: Prediction) -> bool:
        """Write one caption; returns whether its mark may be another one now."""


@dataclass(frozen=True)
class SidecarOutput(ImageOutput):
    """Where captions go that are written next to their images.

    Attributes:
        kind: ending of the sidecars.
        existing: what happens to images that have one.
    """

    kind: SidecarKind
    existing: Existing = "skip"

    def wanted(self, images: ImageStream) -> ImageStream:
        """Return the images that are captioned: with `skip`, those without a sidecar that holds something.

        Raises:
            UserError: these are no files, two of them would share a sidecar, or nothing may be written there.
        """
        records = images.listed or []
        paths = [path_of(record) for record in records]
        if images.listed is None or None in paths:
            raise UserError("--sidecar: writes next to image files; give files or folders, or -o FILE for the others")
        places = [sidecar_of(path, self.kind) for path in paths if path is not None]
        _refuse_shared([path for path in paths if path is not None], places)
        for folder in dict.fromkeys(place.parent for place in places):
            check_can_write(folder, folder=True)
        if self.existing != "skip":
            return images
        return listed_images(
            [record for record, place in zip(records, places, strict=True) if not read_sidecar_file(place).captions]
        )

    def journal(self, images: ImageStream) -> Path | None:
        """Return what a stopped captioning notes its progress next to; with `skip`, the sidecars themselves tell."""
        if self.existing == "skip":
            return None
        folders = [path.parent.absolute() for record in images.listed or [] if (path := path_of(record)) is not None]
        return Path(os.path.commonpath(folders)) / _JOURNAL

    def _write_one(self, image: Path, prediction: Prediction) -> bool:
        """Write one sidecar; returns whether its mark may be another one now."""
        sidecar = read_sidecar_file(sidecar_of(image, self.kind))
        captions = prediction.candidates or (prediction.caption,)
        if self.existing == "append":
            captions = (*sidecar.captions, *(one for one in captions if one not in sidecar.captions))
        facts = {"file_name": image_name(image), "score": prediction.score, "review": prediction.review or None}
        content = sidecar.with_captions(captions, facts)
        if content == sidecar.content:
            return prediction.review is not None
        write_bytes(sidecar.path, content)
        return True


def path_of(record: CaptionedImage) -> Path | None:
    """Return the file of an image; None where it is none."""
    return record.image.path if isinstance(record.image, FileImage) else None


def _refuse_shared(images: Sequence[Path], places: Sequence[Path]) -> None:
    first: dict[Path, Path] = {}
    for image, place in zip(images, places, strict=True):
        other = first.setdefault(place.absolute(), image)
        if other.absolute() != image.absolute():
            raise UserError(f"{image} and {other} would share the sidecar {place.name}; rename one of them, or use -o")
