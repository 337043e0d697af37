"""Images on their way to a server: encoded where they are decoded, as bytes in a tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hfcap.files import write_json
from hfcap.schema import SizedImages
from hfcap.served.images import ImageFormat, data_url, encoded

_GREY = (127, 127, 127)


class SentImages:
    """An image processor whose pixel values are the bytes that are sent; the server's own processor does the rest.

    Only pixels are sent: upright, on white where they are transparent, without what cameras write into files.

    Args:
        max_side: longest side in pixels; larger images are made smaller. None = as they are.
    """

    keeps_shape = False  # images of different shapes are no different to a server

    def __init__(self, max_side: int | None, image_format: ImageFormat) -> None:
        self.max_side, self.image_format = max_side, image_format

    def __call__(self, images: Any, return_tensors: str = "pt") -> dict[str, Any]:
        """Return {"pixel_values": SizedImages} for one image or a list of them: (N,) uint8 for each."""
        assert return_tensors == "pt"
        several = images if isinstance(images, list | tuple) else [images]
        contents = [encoded(image, self.max_side, self.image_format) for image in several]
        values = tuple(torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents)
        return {"pixel_values": SizedImages(values, tuple(image.size for image in several))}

    def data_url(self, values: torch.Tensor, size: tuple[int, int]) -> str:
        """Return one image as a web address that holds it; zeros stand for a blank image of that size."""
        content = values.to(torch.uint8).cpu().numpy().tobytes()
        if not content.strip(b"\0"):
            content = encoded(Image.new("RGB", size, _GREY), self.max_side, self.image_format)
        return data_url(content, self.image_format)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, for fingerprints."""
        return {"image_processor_type": "SentImages", "max_side": self.max_side, "image_format": self.image_format}


class EndpointProcessor:
    """What stands for a processor: the image part. The server has tokenizer and chat template."""

    tokenizer = None

    def __init__(self, image_processor: SentImages) -> None:
        self.image_processor = image_processor

    def save_pretrained(self, folder: Path) -> None:
        """Write what is known of the images into processor_config.json."""
        write_json(folder / "processor_config.json", {"image_processor": self.image_processor.to_dict()})
