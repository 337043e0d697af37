"""Small images of every format and mode that hfcap reads."""

from __future__ import annotations

from pathlib import Path
from random import Random

from PIL import Image, features

from hfcap.data.heic import heic_formats
from tests.data.sample_images import encoded

_SIZE = (12, 9)


def _noise(mode: str) -> Image.Image:
    draw = Random(mode)
    n_bytes = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 2}[mode]
    return Image.frombytes(mode, _SIZE, bytes(draw.randrange(256) for _ in range(_SIZE[0] * _SIZE[1] * n_bytes)))


def write_images(folder: Path) -> None:
    """Write an image of each kind into `folder`."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames = [_noise("P"), _noise("P").transpose(Image.Transpose.ROTATE_180)]
    images: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "rgb.png": (_noise("RGB"), "PNG", {}),
        "rgba.png": (_noise("RGBA"), "PNG", {"exif": exif}),
        "grey-alpha.png": (_noise("LA"), "PNG", {}),
        "palette.png": (_noise("P"), "PNG", {"transparency": 0}),
        "16-bit.png": (_noise("I;16"), "PNG", {}),
        "rgb.jpg": (_noise("RGB"), "JPEG", {"exif": exif}),
        "progressive.jpg": (_noise("RGB"), "JPEG", {"progressive": True}),
        "grey.jpg": (_noise("L"), "JPEG", {}),
        "cmyk.jpg": (_noise("CMYK"), "JPEG", {}),
        "animated.gif": (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        "rgb.bmp": (_noise("RGB"), "BMP", {}),
        "grey.bmp": (_noise("L"), "BMP", {}),
        "rgb.tiff": (_noise("RGB"), "TIFF", {"exif": exif}),
        "packed.tiff": (_noise("RGB"), "TIFF", {"compression": "tiff_lzw"}),
        "16-bit.tiff": (_noise("I;16"), "TIFF", {}),
        "rgb.webp": (_noise("RGB"), "WEBP", {"exif": exif}),
        "rgba.webp": (_noise("RGBA"), "WEBP", {"lossless": True}),
    }
    if features.check("avif"):
        images["rgb.avif"] = (_noise("RGB"), "AVIF", {})
    if "HEIF" in heic_formats():
        images["rgb.heic"] = (_noise("RGB").resize((64, 64)), "HEIF", {})
    for name, (image, image_format, options) in images.items():
        (folder / name).write_bytes(encoded(image, image_format, **options))
