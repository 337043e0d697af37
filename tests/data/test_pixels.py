"""Pixel plans say what transformers' image processors do, level for level; what they cannot say is left alone."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hfcap.captioners.shared.pretrained import load_image_processor
from hfcap.data.images import FileImage
from hfcap.data.loading import PixelInputs
from hfcap.data.pixels import PixelPlan, identity_of, plan_of
from hfcap.schema import CaptionedImage
from tests.shared_data import SHARED, requires_shared

pytestmark = pytest.mark.contract

MOST, MEAN = 3.1, 0.06
"""Levels of 255 between plan and processor, at any pixel and on average: torch's kernels for bytes have weights of 16
bits, Pillow has 22, and both passes of a resize round."""

BACKENDS = ["pil", *(["torchvision"] if importlib.util.find_spec("torchvision") else [])]
"""Those that transformers can use here; with torchvision it takes that one unless it is told otherwise."""

SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", {}),
    "blip": ("Blip", {}),
    "clip": ("CLIP", {}),
    "clip, odd crop": ("CLIP", {"size": {"shortest_edge": 67}, "crop_size": {"height": 51, "width": 40}}),
    "siglip": ("Siglip", {}),
    "beit": ("Beit", {}),
    "bit": ("Bit", {}),
    "mobilenet": ("MobileNetV2", {}),
    "convnext 384": ("ConvNext", {}),
    "convnext 224": ("ConvNext", {"size": {"shortest_edge": 224}}),
    "lanczos": ("ViT", {"size": {"height": 60, "width": 90}, "resample": Image.Resampling.LANCZOS}),
    "nearest, cropped": (
        "CLIP",
        {"size": {"shortest_edge": 60}, "crop_size": 50, "resample": Image.Resampling.NEAREST},
    ),
    "not normalised": ("ViT", {"size": {"height": 30, "width": 30}, "do_normalize": False}),
    "not rescaled": (
        "ViT",
        {"size": {"height": 30, "width": 30}, "do_rescale": False, "image_mean": [90.0, 100.0, 110.0]},
    ),
    "other means": ("ViT", {"image_mean": [0.498] * 3, "image_std": [0.502] * 3, "resample": 3}),
}
NOT_SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "pads and splits": ("Idefics3", {}),
    "shape kept": ("CLIP", {"do_center_crop": False}),
    "crop larger than image": ("CLIP", {"size": {"shortest_edge": 30}, "crop_size": {"height": 40, "width": 40}}),
    "resized otherwise": ("Levit", {}),
    "rescaled otherwise": ("EfficientNet", {}),
    "not resized": ("ViT", {"do_resize": False}),
    "divided by infinity": ("ViT", {"image_std": [float("inf")] * 3}),
    "multiplied by nothing": ("ViT", {"rescale_factor": 0.0}),
}


def made(of: tuple[str, dict[str, Any]], backend: str) -> Any:
    """A processor of one backend; transformers marks the classes of Pillow by an ending."""
    name, options = of
    return getattr(transformers, f"{name}ImageProcessor{'Pil' if backend == 'pil' else ''}")(**options)


PROCESSORS = {f"{name}/{backend}": made(of, backend) for backend in BACKENDS for name, of in SAID.items()}


def families() -> list[str]:
    """Every class of image processors that transformers has, for both backends, which can be made without a word."""
    names = [name for name in dir(transformers) if name.endswith(("ImageProcessor", "ImageProcessorPil"))]
    # timm's is tested in tests/captioners/test_timm.py.
    names = [name for name in names if name not in ("BaseImageProcessor", "AutoImageProcessor")]
    classes = {name: getattr(transformers, name) for name in names}
    # Without torchvision the other class stands under the name, or one that says what is missing.
    return [name for name, found in classes.items() if found.__name__ == name and not hasattr(found, "is_dummy")]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def levels_apart(plan: PixelPlan, processor: Any, image: Image.Image) -> torch.Tensor:
    """Absolute difference of each pixel, in levels of 255."""
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    scale = torch.tensor(plan.scale).view(3, 1, 1)
    return (plan.normalised(plan.levels(image)) - expected).abs() / scale


def assert_near(apart: torch.Tensor) -> None:
    """Near on average; or one level at most: of small images, enlarged, whole areas lie between two levels."""
    assert float(apart.max()) < MOST
    assert float(apart.mean()) < MEAN or float(apart.max()) < 1.01


def photos() -> list[Image.Image]:
    """Photos of several aspects where the research data is, else noise with the spectrum of photos."""
    paths = sorted((SHARED / "data/coco/images").rglob("*.jpg"))[:20:10]
    found: list[Image.Image] = [Image.open(path).convert("RGB") for path in paths]
    if not found:
        smooth = noise(12, 9).resize((341, 256), Image.Resampling.BICUBIC)
        found = [Image.blend(smooth, noise(341, 256), 0.1)]
    first = found[0]
    width, height = first.size
    wide, tall = (0, height // 2, width, height // 2 + 30), (width // 2, 0, width // 2 + 25, height)
    return [*found, first.crop(wide), first.crop(tall), first.resize((50, 41)), first.resize((1300, 970))]


@pytest.mark.parametrize("name", PROCESSORS)
def test_plans_are_found(name: str) -> None:
    assert plan_of(PROCESSORS[name]) is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NOT_SAID)
def test_what_cannot_be_said_is_not_guessed(name: str, backend: str) -> None:
    assert plan_of(made(NOT_SAID[name], backend)) is None


@pytest.mark.parametrize("name", families())
def test_every_family_gets_what_its_processor_gives(name: str) -> None:
    """By a plan within the tolerance, or by the processor itself."""
    try:
        processor = getattr(transformers, name)()
        processor(photos()[0], return_tensors="pt")
    except (TypeError, ValueError, AttributeError, ImportError):
        pytest.skip("needs arguments, another package or more than an image")
    plan = plan_of(processor)
    if plan is None:
        return  # PixelInputs calls the processor: test_processors_without_a_plan_do_their_work_themselves
    for photo in photos():
        apart = levels_apart(plan, processor, photo)
        assert float(apart.max()) < MOST and float(apart.mean()) < MEAN


@given(
    name=st.sampled_from(sorted(PROCESSORS)),
    short=st.integers(1, 400),
    aspect=st.floats(1, 6),
    upright=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_same_pixels_as_the_processor(name: str, short: int, aspect: float, upright: bool, seed: int) -> None:
    """White noise is the worst case: every source pixel that counts a little more or less shows."""
    plan = plan_of(PROCESSORS[name])
    assert plan is not None
    size = (short, round(short * aspect))
    apart = levels_apart(plan, PROCESSORS[name], noise(*(size if upright else size[::-1]), seed))
    assert_near(apart)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 900), (3000, 20)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    for name in ("vit/pil", "clip, odd crop/pil", "convnext 224/pil"):
        plan = plan_of(PROCESSORS[name])
        assert plan is not None
        apart = levels_apart(plan, PROCESSORS[name], noise(*size))
        assert_near(apart)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_of_a_image_costs_little_memory(backend: str) -> None:
    """transformers resizes 1 x 20,000 pixels to 224 x 4,480,000 before it crops."""
    plan = plan_of(PROCESSORS[f"clip/{backend}"])
    assert plan is not None
    assert plan.levels(noise(20_000, 1)).shape == (3, 224, 224)


def test_the_two_backends_are_told_apart() -> None:
    """What is stored by a processor's identity must not be read for the other one, which writes the same file."""
    if "torchvision" not in BACKENDS:
        pytest.skip("torchvision is not installed")
    for name in ("vit", "clip", "convnext 224"):
        pil, torchvision = (PROCESSORS[f"{name}/{backend}"] for backend in BACKENDS)
        assert pil.to_dict() == torchvision.to_dict()
        assert identity_of(pil) != identity_of(torchvision)
        plans = [plan_of(pil), plan_of(torchvision)]
        assert [plan.resizer for plan in plans if plan is not None] == ["pillow", "torchvision"]


@pytest.mark.parametrize("name", ["vit", "clip", "convnext 224", "siglip"])
@pytest.mark.parametrize("saved_by", BACKENDS)
def test_loaded_processors_give_pillows_pixels_wherever_they_were_saved(
    name: str, saved_by: str, tmp_path: Path
) -> None:
    """A model sees the same pixels with and without torchvision, whichever backend wrote the folder."""
    made(SAID[name], saved_by).save_pretrained(tmp_path)
    loaded = load_image_processor(str(tmp_path), "model.vision", None, False)
    for photo in photos():
        expected = PROCESSORS[f"{name}/pil"](photo, return_tensors="pt")["pixel_values"]
        assert torch.equal(loaded(photo, return_tensors="pt")["pixel_values"], expected)


def encoded(kind: str) -> bytes:
    image = noise(120, 80, seed=5)
    options: dict[str, Any] = {"format": "PNG"}
    if kind == "grey":
        image = image.convert("L")
    elif kind == "palette":
        image = image.convert("P")
    elif kind == "alpha":
        image.putalpha(noise(120, 80, seed=6).convert("L"))
    elif kind == "cmyk":
        image, options = image.convert("CMYK"), {"format": "JPEG"}
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"format": "JPEG", "exif": exif}
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["rgb", "grey", "palette", "alpha", "cmyk", "turned"])
@pytest.mark.parametrize("name", [f"{name}/{backend}" for name in ("vit", "clip") for backend in BACKENDS])
def test_kinds_of_images(kind: str, name: str, tmp_path: Path) -> None:
    """As a person would see them: upright, on white, in colour; then as the processor would have it."""
    path = tmp_path / "image"
    path.write_bytes(encoded(kind))
    record = CaptionedImage("1", "image", (), FileImage(path))
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
    processor = made(NOT_SAID["rescaled otherwise"], BACKENDS[-1])
    inputs = PixelInputs([CaptionedImage("1", "a.png", (), FileImage(path))], processor)
    expected: Any = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs[0], expected[0])
    assert torch.equal(inputs.pixel_values([0]), expected)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def brighter_by_one_level(image: Image.Image) -> Image.Image:
    return image.point(lambda level: min(level + 1, 255))


def with_one_spot(image: Image.Image) -> Image.Image:
    changed = image.copy()
    changed.paste((255, 255, 255), (0, 0, 3, 3))
    return changed


@pytest.mark.parametrize("change", [mirrored, brighter_by_one_level, with_one_spot])
def test_a_processor_that_lies_about_itself_is_found_out(change: Any) -> None:
    class Liar(type(PROCESSORS["vit/pil"])):  # type: ignore[misc]
        """Says what ViT's says and does something else, at all pixels or at a few."""

        def __call__(self, images: Any, **options: Any) -> Any:
            return super().__call__(change(images), **options)

    assert plan_of(Liar()) is None


def test_a_processor_that_refuses_some_shapes_keeps_its_work() -> None:
    class Choosy(type(PROCESSORS["vit/pil"])):  # type: ignore[misc]
        """Refuses long images, as Qwen's does."""

        def __call__(self, images: Any, **options: Any) -> Any:
            if max(images.size) > 4 * min(images.size):
                raise ValueError("too long")
            return super().__call__(images, **options)

    assert plan_of(Choosy()) is None


@requires_shared
@pytest.mark.parametrize("name", [f"{name}/{backend}" for name in ("vit", "clip", "blip") for backend in BACKENDS])
def test_real_photos(name: str) -> None:
    paths = sorted((SHARED / "data/coco/images").rglob("*.jpg"))[:12]
    records = [CaptionedImage(str(path), path.name, (), FileImage(path)) for path in paths]
    images: list[Any] = [Image.open(path).convert("RGB") for path in paths]
    expected = PROCESSORS[name](images, return_tensors="pt")["pixel_values"]
    found = PixelInputs(records, PROCESSORS[name]).pixel_values(range(len(records)))
    torch.testing.assert_close(found, expected, atol=3.1 / 255 / 0.26, rtol=0)
    assert float((found - expected).abs().mean()) < 0.02 / 255 / 0.26
