"""Pixel plans say what transformers' image processors do, level for level; what they cannot say is left alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    BeitImageProcessor,
    BitImageProcessor,
    BlipImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    Idefics3ImageProcessor,
    LevitImageProcessor,
    MobileNetV2ImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from hfcap.data.images import FileImage
from hfcap.data.loading import PixelInputs
from hfcap.data.pixels import PixelPlan, plan_of
from hfcap.schema import CaptionedImage
from tests.shared_data import SHARED, requires_shared

PROCESSORS: dict[str, Any] = {
    "vit": ViTImageProcessor(),
    "blip": BlipImageProcessor(),
    "clip": CLIPImageProcessor(),
    "clip, odd crop": CLIPImageProcessor(size={"shortest_edge": 67}, crop_size={"height": 51, "width": 40}),
    "siglip": SiglipImageProcessor(),
    "beit": BeitImageProcessor(),
    "bit": BitImageProcessor(),
    "mobilenet": MobileNetV2ImageProcessor(),
    "convnext 384": ConvNextImageProcessor(),
    "convnext 224": ConvNextImageProcessor(size={"shortest_edge": 224}),
    "lanczos": ViTImageProcessor(size={"height": 60, "width": 90}, resample=Image.Resampling.LANCZOS),
    "nearest, cropped": CLIPImageProcessor(size={"shortest_edge": 60}, crop_size=50, resample=Image.Resampling.NEAREST),
    "not normalised": ViTImageProcessor(size={"height": 30, "width": 30}, do_normalize=False),
    "not rescaled": ViTImageProcessor(
        size={"height": 30, "width": 30}, do_rescale=False, image_mean=[90.0, 100.0, 110.0]
    ),
    "other means": ViTImageProcessor(image_mean=[0.498] * 3, image_std=[0.502] * 3, resample=3),
}
NOT_SAID: dict[str, Any] = {
    "pads and splits": Idefics3ImageProcessor(),
    "shape kept": CLIPImageProcessor(do_center_crop=False),
    "crop larger than picture": CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 40, "width": 40}),
    "resized otherwise": LevitImageProcessor(),
    "rescaled otherwise": EfficientNetImageProcessor(),
    "not resized": ViTImageProcessor(do_resize=False),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def levels_apart(plan: PixelPlan, processor: Any, picture: Image.Image) -> torch.Tensor:
    """Absolute difference of each pixel, in levels of 255."""
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    scale = torch.tensor(plan.scale).view(3, 1, 1)
    return (plan.normalised(plan.levels(picture)) - expected).abs() / scale


@pytest.mark.parametrize("name", PROCESSORS)
def test_plans_are_found(name: str) -> None:
    assert plan_of(PROCESSORS[name]) is not None


@pytest.mark.parametrize("name", NOT_SAID)
def test_what_cannot_be_said_is_not_guessed(name: str) -> None:
    assert plan_of(NOT_SAID[name]) is None


@given(
    name=st.sampled_from(sorted(PROCESSORS)),
    short=st.integers(1, 400),
    aspect=st.floats(1, 6),
    upright=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_same_pixels_as_the_processor(name: str, short: int, aspect: float, upright: bool, seed: int) -> None:
    """White noise is the worst case: every source pixel that counts a little more or less shows."""
    plan = plan_of(PROCESSORS[name])
    assert plan is not None
    size = (short, round(short * aspect))
    apart = levels_apart(plan, PROCESSORS[name], noise(*(size if upright else size[::-1]), seed))
    whole = plan.shortest_edge is None or plan.shortest_edge**2 * aspect <= 3.9 * plan.width * plan.height
    assert float(apart.max()) < (3.1 if whole else 40)
    assert float(apart.mean()) < (0.05 if whole else 0.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 900), (3000, 20)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    for name in ("vit", "clip, odd crop", "convnext 224"):
        plan = plan_of(PROCESSORS[name])
        assert plan is not None
        apart = levels_apart(plan, PROCESSORS[name], noise(*size))
        assert float(apart.max()) < 40 and float(apart.mean()) < 0.5


def test_a_thread_of_a_picture_costs_little_memory() -> None:
    """transformers resizes 1 x 20,000 pixels to 224 x 4,480,000 before it crops."""
    plan = plan_of(PROCESSORS["clip"])
    assert plan is not None
    assert plan.levels(noise(20_000, 1)).shape == (3, 224, 224)


def encoded(kind: str) -> bytes:
    picture = noise(120, 80, seed=5)
    options: dict[str, Any] = {"format": "PNG"}
    if kind == "grey":
        picture = picture.convert("L")
    elif kind == "palette":
        picture = picture.convert("P")
    elif kind == "alpha":
        picture.putalpha(noise(120, 80, seed=6).convert("L"))
    elif kind == "cmyk":
        picture, options = picture.convert("CMYK"), {"format": "JPEG"}
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"format": "JPEG", "exif": exif}
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["rgb", "grey", "palette", "alpha", "cmyk", "turned"])
@pytest.mark.parametrize("name", ["vit", "clip"])
def test_kinds_of_pictures(kind: str, name: str, tmp_path: Path) -> None:
    """As a person would see them: upright, on white, in colour; then as the processor would have it."""
    path = tmp_path / "picture"
    path.write_bytes(encoded(kind))
    record = CaptionedImage("1", "picture", (), FileImage(path))
    values = PixelInputs([record], PROCESSORS[name]).pixel_values([0])
    with Image.open(path) as opened:
        if kind == "turned":
            seen = opened.convert("RGB").transpose(Image.Transpose.ROTATE_270)
        elif kind == "alpha":
            seen = Image.new("RGB", opened.size, (255, 255, 255))
            seen.paste(opened, mask=opened.getchannel("A"))
        else:
            seen = opened.convert("RGB")
    expected = PROCESSORS[name](seen, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(values, expected, atol=3.1 / 255 / 0.26, rtol=0)
    assert float((values - expected).abs().mean()) < (0.5 if kind == "alpha" else 0.05) / 255 / 0.26


def test_processors_without_a_plan_do_their_work_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(90, 70).save(path)
    processor = NOT_SAID["rescaled otherwise"]
    inputs = PixelInputs([CaptionedImage("1", "a.png", (), FileImage(path))], processor)
    expected: Any = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    assert inputs.draft_size is None
    assert torch.equal(inputs[0], expected[0])
    assert torch.equal(inputs.pixel_values([0]), expected)


def test_a_processor_that_lies_about_itself_is_found_out() -> None:
    class Mirrored(type(PROCESSORS["vit"])):  # type: ignore[misc]
        """Says what ViT's says and does something else."""

        def __call__(self, images: Any, **options: Any) -> Any:
            return super().__call__(images.transpose(Image.Transpose.FLIP_LEFT_RIGHT), **options)

    assert plan_of(Mirrored()) is None


@requires_shared
@pytest.mark.parametrize("name", ["vit", "clip", "blip"])
def test_real_photos(name: str) -> None:
    paths = sorted((SHARED / "data/coco/images").rglob("*.jpg"))[:12]
    records = [CaptionedImage(str(path), path.name, (), FileImage(path)) for path in paths]
    pictures: list[Any] = [Image.open(path).convert("RGB") for path in paths]
    expected = PROCESSORS[name](pictures, return_tensors="pt")["pixel_values"]
    found = PixelInputs(records, PROCESSORS[name]).pixel_values(range(len(records)))
    torch.testing.assert_close(found, expected, atol=3.1 / 255 / 0.26, rtol=0)
    assert float((found - expected).abs().mean()) < 0.02 / 255 / 0.26
