"""Images for metrics that look at them: where they are, and their embeddings by the image half of a dual encoder."""

from __future__ import annotations

import io
import mimetypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.files import no_folder
from hfcap.progress import track
from hfcap.schema import IMAGE_FORMATS, ImageBytes

if TYPE_CHECKING:
    from PIL.Image import Image

Decode = Callable[[ImageBytes], "Image"]
"""Turns an image's record into an RGB image; raises OSError or ValueError for a broken one."""

COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")
"""Names of COCO's images end in the image id with leading zeros."""


class Images(Protocol):
    """The images that are scored, as pixels."""

    def embeddings(
        self, name: str, model: Any, image_processor: Any, image_ids: Sequence[str], batch_size: int
    ) -> NDArray[np.float32]:
        """Return what `model.get_image_features` says about each image, (N, D) float32, not normalised.

        Args:
            name: folder or Hub id of the model, for people.
            model: a transformers model, on the device where it shall run.
            image_processor: its image processor.

        Raises:
            UserError: an image is missing or cannot be read; the message names it.
        """
        ...


def check_present(image_ids: Sequence[str], known: Mapping[str, Any]) -> None:
    """Refuse ids without image.

    Raises:
        UserError: says how many there are and names one.
    """
    missing = [image_id for image_id in image_ids if image_id not in known]
    if missing:
        raise UserError(
            f"no image for {len(missing):,} of {len(image_ids):,} images, for example {missing[0]!r}; give the "
            "images of the split that is scored"
        )


def plain_decode(image: ImageBytes) -> Image:
    """Decode an image with Pillow alone, upright and on white; `data.images.decode_image` bounds sizes as well."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image.read()), formats=IMAGE_FORMATS) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Images that are decoded and encoded at every use.

    Attributes:
        images: image id -> image.
        decode: turns an image's record into an RGB image.
        bar: whether a progress bar shows how far it is.
    """

    images: Mapping[str, ImageBytes]
    decode: Decode = plain_decode
    bar: bool = True

    def embeddings(
        self, name: str, model: Any, image_processor: Any, image_ids: Sequence[str], batch_size: int
    ) -> NDArray[np.float32]:
        """See Images."""
        import torch

        check_present(image_ids, self.images)
        device = next(model.parameters()).device
        found: list[NDArray[np.float32]] = []
        starts = range(0, len(image_ids), batch_size)
        for start in track(starts, f"{name}: images") if self.bar else starts:
            images = [self.decoded(image_id) for image_id in image_ids[start : start + batch_size]]
            pixels = image_processor(images=images, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                output = model.get_image_features(pixel_values=pixels.to(device))
            found.append(getattr(output, "pooler_output", output).float().cpu().numpy())
        return np.concatenate(found)

    def decoded(self, image_id: str) -> Image:
        """Return one image as RGB.

        Raises:
            UserError: it is missing or cannot be read.
        """
        check_present([image_id], self.images)
        image = self.images[image_id]
        try:
            return self.decode(image)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"{image.describe()}: this image cannot be read ({error}); replace it") from None


@dataclass(frozen=True, slots=True)
class FileBytes:
    """An image file."""

    path: Path

    def read(self) -> bytes:
        """Return the encoded image."""
        return self.path.read_bytes()

    def describe(self) -> str:
        """Return the path."""
        return str(self.path)


def image_files(folder: Path, image_ids: Sequence[str], file_names: Mapping[str, str] | None = None) -> dict[str, Path]:
    """Find the file of each image in a folder and those below it.

    Args:
        file_names: image id -> file name relative to the folder, where somebody knows it. Other images are found by a
            file of the id's name, with or without ending, or by COCO's numbering (`COCO_val2014_000000391895.jpg`).

    Raises:
        UserError: there is no such folder, or an image has no image in it, or several.
    """
    if not folder.is_dir():
        raise UserError(no_folder(folder, "image folder", "give the folder of the images"))
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if (mimetypes.guess_type(path.name)[0] or "").startswith("image/") and path.is_file():
            coco = COCO_NAME.fullmatch(path.stem)
            names = {path.relative_to(folder).as_posix(), path.name, path.stem}
            for name in names | ({str(int(coco[1]))} if coco else set()):
                by_name.setdefault(name, []).append(path)
    found: dict[str, Path] = {}
    for image_id in image_ids:
        paths = by_name.get((file_names or {}).get(image_id, image_id), [])
        if len(paths) > 1:
            raise UserError(f"{folder}: several files for image {image_id!r}: {paths[0]} and {paths[1]}; remove one")
        if paths:
            found[image_id] = paths[0]
    missing = [image_id for image_id in image_ids if image_id not in found]
    if missing:
        raise UserError(
            f"{folder}: no image for {len(missing):,} of {len(image_ids):,} images, for example image "
            f"{missing[0]!r}{f' ({file_names[missing[0]]})' if file_names and missing[0] in file_names else ''}; "
            "file names must be those of the prediction or reference file, or the image ids"
        )
    return found
