"""Pictures of one size for models whose processors give other shapes than (B, 3, height, width)."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image


class PicturesOfOneSize:
    """An image processor whose result is one tensor per picture, all of the same shape; picklable.

    Processors of chat models return a list of pictures per text, or patches of all pictures in one row.
    """

    def __init__(self, image_processor: Any, image_size: int | None) -> None:
        self.image_processor = image_processor
        self.image_size = image_size
        self.do_normalize = image_processor.do_normalize
        self.image_mean = image_processor.image_mean
        self.image_std = image_processor.image_std
        self.size = image_processor.size if image_size is None else {"height": image_size, "width": image_size}

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """Return {"pixel_values": (B, ...) float32} for one picture or a list of them."""
        assert return_tensors == "pt"
        pictures = images if isinstance(images, (list, tuple)) else [images]
        return {"pixel_values": torch.stack([self.pixels(picture) for picture in pictures])}

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """Return one picture's tensor."""
        if self.image_size is not None:
            picture = square(picture, self.image_size)
        values: torch.Tensor = self.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
        while values.ndim > 3:
            assert len(values) == 1, "pictures must not be split"
            values = values[0]
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, for the feature store's key."""
        return {**self.image_processor.to_dict(), "image_size": self.image_size}


def square(picture: Image.Image, side: int) -> Image.Image:
    """Resize to a square as the published card does, before the processor sees the picture."""
    return picture.resize((side, side), Image.Resampling.BICUBIC)
