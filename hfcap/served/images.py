"""Images on their way to a server: made smaller, encoded, and written as a web address."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

ImageFormat = Literal["jpeg", "png"]
_QUALITY = 95


def encoded(image: Image, max_side: int | None, image_format: ImageFormat) -> bytes:
    """Return an image as a file's bytes, pixels alone.

    Args:
        max_side: longest side in pixels; larger images are made smaller. None = as they are.
    """
    from PIL.Image import Resampling

    if max_side is not None and max(image.size) > max_side:
        image = image.copy()
        image.thumbnail((max_side, max_side), Resampling.BICUBIC)
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def data_url(content: bytes, image_format: ImageFormat) -> str:
    """Return a web address that holds the encoded image."""
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"
