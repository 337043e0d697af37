"""Images as Python programs hold them: each form is seen as the file is, and what is no image is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hfcap
from hfcap.captioners.base import Captioner
from hfcap.data.images import BytesImage, OpenedImage, decode_image
from tests.captioners.helpers import random_image, write_image


@pytest.fixture(scope="module")
def captioner(model: tuple[Captioner, str]) -> hfcap.ImageCaptioner:
    return hfcap.load_captioner(model[1], device="cpu")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{number}.png", seed=number) for number in range(2)]


def test_an_image_may_be_held_in_any_way(captioner: hfcap.ImageCaptioner, images: list[Path]) -> None:
    image = Image.open(images[0]).convert("RGB")
    array = np.asarray(image)
    channels_first = torch.from_numpy(array.copy()).permute(2, 0, 1)
    text = captioner.caption(images[0]).text
    forms: list[Any] = [str(images[0]), images[0], images[0].read_bytes(), image, Image.open(images[0]), array]
    forms += [array / 255, channels_first, (channels_first / 255).float(), image.convert("RGBA")]
    assert [captioner.caption(form).text for form in forms] == [text] * len(forms)
    assert [caption.text for caption in captioner.caption(forms)] == [text] * len(forms)
    assert [caption.text for caption in captioner.caption(np.stack([array, array]))] == [text] * 2
    mixed: list[Any] = [array, images[1], image]
    names = [caption.image for caption in captioner.caption(mixed)]
    assert names == ["image 0", str(images[1]), "image 2"]
    grey = np.asarray(image.convert("L"))
    assert captioner.caption(grey).text == captioner.caption(grey[..., None]).text
    assert np.array_equal(np.asarray(image), array)  # nobody's image was changed


def test_images_that_were_opened_are_seen_as_in_files(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(0, (6, 4)).save(path, exif=exif)
    opened = Image.open(path)
    seen = decode_image(OpenedImage(opened, "it"))
    assert seen.size == (4, 6) and opened.size == (6, 4)
    plain = random_image(0)
    decode_image(OpenedImage(plain, "it")).thumbnail((2, 2))
    assert plain.size == (40, 32)  # what is decoded is a copy
    transparent = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode_image(OpenedImage(transparent, "it")).getpixel((0, 0)) == (255, 255, 255)
    encoded = BytesImage(OpenedImage(transparent, "it").read(), "it")
    assert decode_image(encoded).getpixel((0, 0)) == (255, 255, 255)
    cut = tmp_path / "cut.png"
    whole = write_image(tmp_path / "whole.png").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(hfcap.UnreadableImageError, match=r"cut: cannot be decoded"):
        decode_image(OpenedImage(Image.open(cut), "cut"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "give one image or an iterable of images, not int"),
        ({"a": 1}, "not dict"),
        ([3], "image 0: is int; give a path"),
        (np.zeros((3, 8, 8), np.uint8), r"image 0: an array of shape \(3, 8, 8\) is no image"),
        (np.zeros((8, 8, 3), np.int64), "levels of an image must be uint8"),
        (np.full((8, 8, 3), 200.0), "floats of an image lie from 0 to 1"),
        (np.full((8, 8), np.nan), "floats of an image lie from 0 to 1"),
        (np.zeros((0, 8, 3), np.uint8), "is no image"),
        ("ftp://a.b/c.png", "fetched by http and https only"),
        ("https://me:secret@a.b/c.png", "holds a user name or password"),
        (".", "is a folder; give the image files in it"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused(captioner: hfcap.ImageCaptioner, given: Any, message: str) -> None:
    with pytest.raises(hfcap.UserError, match=message):
        captioner.caption(given)
