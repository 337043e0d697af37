"""Images of one size, or of their own, for models whose processors give other shapes than (B, 3, height, width)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from hfcap.errors import UserError
from hfcap.schema import SizedImages


class ImagesOfOneSize:
    """An image processor whose result is one tensor per image, all of the same shape; picklable.

    Processors of chat models return a list of images per text, or patches of all images in one row.

    Args:
        settings: further arguments of the image processor.
    """

    def __init__(self, image_processor: Any, image_size: int | None, settings: Mapping[str, Any] | None = None) -> None:
        self.image_processor = image_processor
        self.image_size = image_size
        self.settings = dict(settings or {})
        self.backend = getattr(image_processor, "backend", None)
        self.do_normalize = image_processor.do_normalize
        self.image_mean = image_processor.image_mean
        self.image_std = image_processor.image_std
        self.size = image_processor.size if image_size is None else {"height": image_size, "width": image_size}

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """Return {"pixel_values": (B, ...) float32} for one image or a list of them."""
        assert return_tensors == "pt"
        several = images if isinstance(images, (list, tuple)) else [images]
        return {"pixel_values": torch.stack([self.pixels(image) for image in several])}

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return one image's tensor: (3, height, width), or what its parts or patches are stacked to."""
        if self.image_size is not None:
            image = square(image, self.image_size)
        output = self.image_processor(images=[image], return_tensors="pt", **self.settings)
        values: torch.Tensor = output["pixel_values"]
        while values.ndim > 3 and len(values) == 1:
            values = values[0]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, for the feature store's key."""
        kind = {"class": type(self.image_processor).__name__, "image_size": self.image_size}
        return {**self.image_processor.to_dict(), **self.settings, **kind}


class ImagesOfOwnShape(ImagesOfOneSize):
    """An image processor whose result is what the model's own makes of each image: patches or tiles, as many as it has.

    Args:
        settings: further arguments of the image processor.
    """

    keeps_shape = True

    def __init__(self, image_processor: Any, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__(image_processor, None, settings)

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, Any]:
        """Return {"pixel_values": SizedImages} for one image or a list of them."""
        assert return_tensors == "pt"
        several = images if isinstance(images, (list, tuple)) else [images]
        values = tuple(self.pixels(image) for image in several)
        return {"pixel_values": SizedImages(values, tuple(image.size for image in several))}

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Return one image's tensor, in the shape that the processor gives it.

        Raises:
            UserError: the processor refuses an image of this shape.
        """
        try:
            output = self.image_processor(images=[image], return_tensors="pt", **self.settings)
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"an image of {image.width} x {image.height} pixels: the model's processor refuses it "
                f"({' '.join(str(error).split())[:120]}); set model.image_size, which makes all images one square"
            ) from error
        values: torch.Tensor = output["pixel_values"]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, for the feature store's key."""
        return {**super().to_dict(), "shape": "own"}


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize to a square as the published card does, before the processor sees the image."""
    return image.resize((side, side), Image.Resampling.BICUBIC)
