"""Images as Python programs hold them -> records: files, web addresses, encoded bytes, Pillow images, arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image

from hfcap.data.images import BytesImage, FileImage, OpenedImage
from hfcap.data.web.web_images import web_image
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage, ImageBytes

ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | torch.Tensor
"""One image: a path, an address of http or https, an encoded file's bytes, a Pillow image, or an array.

Arrays: numpy (height, width), (height, width, 1), (height, width, 3) or (height, width, 4); torch with the channels
first. Levels 0 to 255 as uint8, or 0 to 1 as floats.
"""

_ONE_IMAGE = (str, os.PathLike, bytes, Image.Image)
_CHANNELS = (1, 3, 4)


def is_one_image(images: object) -> TypeGuard[ImageLike]:
    """Tell one image from an iterable of images; arrays with four axes are a batch."""
    return isinstance(images, _ONE_IMAGE) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim < 4)


def image_records(images: Iterable[ImageLike]) -> Iterator[CaptionedImage]:
    """Yield the record of each image; nothing is read yet.

    Raises:
        UserError: something is no image, or an address is not of http or https.
    """
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise UserError(f"images: give one image or an iterable of images, not {type(images).__name__}")
    for number, image in enumerate(images):
        name, source = _source(image, f"image {number}")
        yield CaptionedImage(str(number), name, (), source)


def _source(image: object, name: str) -> tuple[str, ImageBytes]:
    """Return the name of an image and where its bytes come from; `name` is for what has none."""
    if isinstance(image, str) and "://" in image:
        return image, web_image(image)
    if isinstance(image, str | os.PathLike):
        path = Path(image).expanduser()
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the image files in it, such as sorted(Path(...).glob('*.jpg'))")
        return os.fspath(image), FileImage(path)
    if isinstance(image, bytes):
        return name, BytesImage(image, name)
    if isinstance(image, Image.Image):
        shown = getattr(image, "filename", "")
        shown = shown if isinstance(shown, str) and shown else name
        return shown, OpenedImage(image, shown)
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # numpy knows no bfloat16
        return name, OpenedImage(_from_array((array.movedim(0, -1) if array.ndim == 3 else array).numpy(), name), name)
    if isinstance(image, np.ndarray):
        return name, OpenedImage(_from_array(image, name), name)
    raise UserError(
        f"{name}: is {type(image).__name__}; give a path, a web address, bytes, a Pillow image, or an array of numpy "
        "or torch"
    )


def _from_array(array: np.ndarray[Any, Any], name: str) -> Image.Image:
    """Return an array (height, width) or (height, width, channels) as Pillow's image.

    Raises:
        UserError: another shape or type, or floats outside 0 to 1.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[-1] not in _CHANNELS):
        raise UserError(
            f"{name}: an array of shape {array.shape} is no image; give numpy (height, width, channels) or torch "
            "(channels, height, width) with 1, 3 or 4 channels"
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UserError(f"{name}: floats of an image lie from 0 to 1; scale them, or give levels as uint8")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{name}: levels of an image must be uint8 (0 to 255) or floats (0 to 1), not {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))
