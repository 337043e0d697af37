"""What an image processor does to an image, done in less time: straight to the target size, in bytes until the device.

transformers' processors rescale and normalise every image in several passes over floats. A `PixelPlan` says the same
with one resize of the part that is kept, and one multiplication and addition per batch on the device. It is read from
the processor's configuration, for both of transformers' backends (Pillow and torchvision round differently), and tried
out against the processor itself on generated images when it is first asked for; a processor that no plan matches within
MOST_LEVELS and MEAN_LEVELS keeps doing its work itself.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import Image

from hfcap.schema import sent

MOST_LEVELS, MEAN_LEVELS = 3.0, 0.05
"""How far a plan may be from its processor, in levels of 255: at any pixel of a probe, and on average over one. Probes
are noise, the worst case. torch's kernels for bytes have weights of 16 bits where Pillow has 22, so single pixels are
one or two levels off; another filter, or a crop that lies one pixel off, differs by several levels on average."""

Resizer = Literal["pillow", "torchvision"]
"""Whose resizing: torchvision works row by row first and rounds to bytes in between (or not, without vector kernels);
Pillow takes the order that leaves less to do."""

_MOST_CROPPED: dict[Resizer, int] = {"pillow": 4, "torchvision": 64}
"""Of long images, whose crop keeps less than a quarter (a 64th), only that part is computed: 1 x 2000 pixels would
otherwise become half a gigabyte. By Pillow, since torch's kernels know no part; what torchvision computes in floats is
then rounded once more."""

_KERNELS = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}
_WITH_KERNELS = ("AVX2", "AVX512")
_MAY_GO_DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
"""Since then Pillow resizes heights before widths where that leaves less to do."""

_PROBES = ((97, 61), (300, 420), (640, 250), (40, 33), (60, 700), (1100, 90))
_CONVNEXT_WARPS_FROM = 384


@dataclass(frozen=True, slots=True)
class PixelPlan:
    """Resize, crop and normalisation of one image processor.

    Attributes:
        height, width: of the result.
        shortest_edge: resize the shorter side to this and crop the middle; None = resize both sides, shape lost.
        resample: Pillow's number of the filter.
        scale, offset: of each channel: value = level x scale + offset, level in 0..255.
        resizer: whose resizing.
    """

    height: int
    width: int
    shortest_edge: int | None
    resample: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    resizer: Resizer = "pillow"

    def levels(self, image: Image.Image) -> torch.Tensor:
        """Return the resized and cropped RGB image, (3, height, width) uint8."""
        if self.shortest_edge is None:
            return self._resized(image, (self.width, self.height)).contiguous()
        return self._middle(image, self.shortest_edge).contiguous()

    def _middle(self, image: Image.Image, shortest_edge: int) -> torch.Tensor:
        """Resize the shorter side to `shortest_edge` and crop the middle."""
        width, height = image.size
        longest_edge = int(shortest_edge * max(width, height) / min(width, height))
        full = (shortest_edge, longest_edge) if width <= height else (longest_edge, shortest_edge)
        left, top = (full[0] - self.width) // 2, (full[1] - self.height) // 2
        most = _MOST_CROPPED[self.resizer] * self.width * self.height
        if self.resample == Image.Resampling.NEAREST or full[0] * full[1] <= most:
            whole = self._resized(image, full)
            return whole[:, top : top + self.height, left : left + self.width]
        # One direction after the other, as the whole would be: what is rounded in between stays the same.
        columns = (left * width / full[0], min((left + self.width) * width / full[0], width))
        rows = (top * height / full[1], min((top + self.height) * height / full[1], height))
        box: tuple[float, float, float, float]
        if self._goes_down_first(image.size, full):
            image = image.resize((width, self.height), self.resample, (0, rows[0], width, rows[1]))
            box = (columns[0], 0, columns[1], self.height)
        else:
            image = image.resize((self.width, height), self.resample, (columns[0], 0, columns[1], height))
            box = (0, rows[0], self.width, rows[1])
        return _levels(image.resize((self.width, self.height), self.resample, box))

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        """Resize to (width, height): as Pillow does, by torch's three times faster kernel for bytes where there is one.

        torchvision uses that kernel, or floats, by its own rules.
        """
        width, (new_width, new_height) = image.width, size
        if self.resizer == "torchvision":
            functional = importlib.import_module("torchvision.transforms.v2.functional")
            name = Image.Resampling(self.resample).name
            mode = functional.InterpolationMode["NEAREST_EXACT" if name == "NEAREST" else name]
            return functional.resize(_levels(image), [new_height, new_width], interpolation=mode, antialias=True)
        kernel = _KERNELS.get(self.resample)
        if kernel is None or torch.backends.cpu.get_cpu_capability() not in _WITH_KERNELS:
            return _levels(image.resize(size, self.resample))
        levels = _levels(image).unsqueeze(0)
        if self._goes_down_first(image.size, size):
            levels = torch.nn.functional.interpolate(levels, size=(new_height, width), mode=kernel, antialias=True)
        return torch.nn.functional.interpolate(levels, size=(new_height, new_width), mode=kernel, antialias=True)[0]

    def _goes_down_first(self, size: tuple[int, int], new_size: tuple[int, int]) -> bool:
        """Whether heights are resized before widths; both round to bytes in between, so that the order shows."""
        lower, narrower = (size[axis] - new_size[axis] for axis in (1, 0))
        return self.resizer == "pillow" and _MAY_GO_DOWN_FIRST and lower > 0 and lower > 2 * narrower

    def normalised(self, levels: torch.Tensor) -> torch.Tensor:
        """Return pixel values (..., 3, height, width) float32 of uint8 levels, on their device."""
        both = torch.tensor([self.scale, self.offset], dtype=torch.float32)
        scale, offset = sent(both, levels.device).view(2, 3, 1, 1)
        values = torch.empty(levels.shape, dtype=torch.float32, device=levels.device)
        # On a CPU image by image: one stays in the cache for all steps, a batch does not (five times faster).
        parts = (
            zip(values, levels, strict=True) if levels.device.type == "cpu" and levels.ndim == 4 else [(values, levels)]
        )
        for value, level in parts:
            value.copy_(level).mul_(scale).add_(offset)
        return values


def _levels(image: Image.Image) -> torch.Tensor:
    """(3, height, width) uint8, a view."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def identity_of(image_processor: Any) -> str:
    """Return a text that changes with what an image processor does: class, and with it backend, and configuration.

    Raises:
        ValueError: it cannot say its configuration.
    """
    try:
        return (
            f"{type(image_processor).__qualname__} {json.dumps(image_processor.to_dict(), sort_keys=True, default=str)}"
        )
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{type(image_processor).__name__} cannot say its configuration ({error}); use another image processor"
        ) from error


def plan_of(image_processor: Any) -> PixelPlan | None:
    """Return what the processor does, or None where it does something that no plan matches."""
    try:
        key = (type(image_processor), identity_of(image_processor))
    except ValueError:
        return None
    if key not in _PLANS:
        try:
            plans = _candidates(image_processor)
        except (ValueError, TypeError, OverflowError):
            plans = []  # its configuration holds what is no number
        _PLANS[key] = next((plan for plan in plans if _agrees(plan, image_processor)), None)
    return _PLANS[key]


_PLANS: dict[tuple[type, str], PixelPlan | None] = {}


def _candidates(image_processor: Any) -> list[PixelPlan]:
    """Return the plans that its configuration allows; first that of the backend which the processor says it has."""
    plan = _read(image_processor)
    if plan is None:
        return []
    if importlib.util.find_spec("torchvision") is None:
        return [plan]
    plans = [plan, replace(plan, resizer="torchvision")]
    return plans[::-1] if getattr(image_processor, "backend", None) == "torchvision" else plans


def _read(image_processor: Any) -> PixelPlan | None:
    def value(name: str) -> Any:
        return getattr(image_processor, name, None)

    target = _target(value("size"), value("crop_size") if value("do_center_crop") else None, value("crop_pct"))
    if not value("do_resize") or target is None or value("do_pad") or value("resample") is None:
        return None
    scale = float(value("rescale_factor") or 1) if value("do_rescale") else 1.0
    normalises = bool(value("do_normalize"))
    mean = _three(value("image_mean")) if normalises else (0.0, 0.0, 0.0)
    deviation = _three(value("image_std")) if normalises else (1.0, 1.0, 1.0)
    if mean is None or deviation is None or 0.0 in deviation:
        return None
    height, width, shortest_edge = target
    # torchvision's processors take its modes, too, which have the names of Pillow's filters.
    resample = Image.Resampling.__members__.get(getattr(value("resample"), "name", ""), value("resample"))
    if resample not in list(Image.Resampling):
        return None
    return PixelPlan(
        height,
        width,
        shortest_edge,
        int(resample),
        tuple(scale / d for d in deviation),
        tuple(-m / d for m, d in zip(mean, deviation, strict=True)),
    )


def _target(size: Any, crop_size: Any, crop_pct: Any) -> tuple[int, int, int | None] | None:
    """Return height, width, and the shorter side before a crop."""
    sides = _sides(size)
    crop = _sides(crop_size)
    if crop_size is not None and set(crop) != {"height", "width"}:
        return None
    if set(sides) == {"shortest_edge"}:
        edge = sides["shortest_edge"]
        if crop:
            inside = max(crop.values()) <= edge
            return (crop["height"], crop["width"], edge) if inside else None
        if crop_pct is None:
            return None  # results of any shape, which no batch could hold
        # ConvNext: small models crop the middle, large ones see the whole image, squeezed.
        return (edge, edge, int(edge / crop_pct) if edge < _CONVNEXT_WARPS_FROM else None)
    if set(sides) != {"height", "width"} or (crop and crop != sides):
        return None
    return sides["height"], sides["width"], None


def _sides(size: Any) -> dict[str, int]:
    if size is None:
        return {}
    items = size.items() if isinstance(size, Mapping) else vars(size).items() if hasattr(size, "__dict__") else ()
    return {name: int(length) for name, length in items if length}


def _three(values: Any) -> tuple[float, ...] | None:
    numbers = [values] * 3 if isinstance(values, int | float) else values
    if not isinstance(numbers, Sequence) or len(numbers) != 3:
        return None
    return tuple(float(number) for number in numbers)


def _agrees(plan: PixelPlan, image_processor: Any) -> bool:
    """Whether plan and processor say the same about generated images, and neither refuses one."""
    if not all(math.isfinite(scale) and scale for scale in plan.scale):
        return False  # every image would be the same
    step = 1 / max(abs(scale) for scale in plan.scale)
    for image in _probes():
        try:
            expected = image_processor(images=image, return_tensors="pt")
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError):
            return False  # it refuses some shapes, or its configuration is damaged
        if set(expected) != {"pixel_values"}:
            return False
        values = expected["pixel_values"]
        if values.shape != (1, 3, plan.height, plan.width):
            return False
        apart = (plan.normalised(plan.levels(image)) - values[0].float()).abs() * step
        if not (float(apart.mean()) <= MEAN_LEVELS and float(apart.max()) <= MOST_LEVELS):
            return False
    return True


@lru_cache(maxsize=1)
def _probes() -> list[Image.Image]:
    """Noise on slopes: every filter and every shift shows."""
    generator = np.random.default_rng(0)
    images = []
    for width, height in _PROBES:
        slope = np.linspace(0, 155, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
        noise = generator.integers(0, 100, (height, width, 3))
        images.append(Image.fromarray((slope + noise).astype(np.uint8)))
    return images
