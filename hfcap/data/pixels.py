"""What an image processor does to a picture, done in less time: straight to the target size, in bytes until the device.

transformers' processors rescale and normalise every picture in NumPy, in several passes over floats. A `PixelPlan` says
the same with one resize of the part that is kept, and one multiplication and addition per batch on the device. It is
read from the processor's configuration and tried out against the processor itself on generated pictures; a processor
that does anything else keeps doing its work alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

_MOST_CROPPED = 4
"""Of long pictures, whose crop keeps less than a quarter, only that part is computed: 1 x 2000 pixels would otherwise
become half a gigabyte. It may be a few levels off in places, because Pillow rounds between its two passes and chooses
their order by what there is to compute."""

_KERNELS = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}
_WITH_KERNELS = ("AVX2", "AVX512")
_MAY_GO_DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
"""Since then Pillow resizes heights before widths where that leaves less to do."""
_MEAN_LEVELS, _MOST_LEVELS = 0.6, 12.0
"""How far plan and processor may be apart on a probe, in levels of 255. Pillow's processors are met but for single
pixels that are one or two levels off (weights of 16 bits instead of 22). Another filter or a crop that lies one pixel
off differ by several levels on average."""

_PROBES = ((97, 61), (300, 420), (640, 250))
_CONVNEXT_WARPS_FROM = 384


@dataclass(frozen=True, slots=True)
class PixelPlan:
    """Resize, crop and normalisation of one image processor.

    Attributes:
        height, width: of the result.
        shortest_edge: resize the shorter side to this and crop the middle; None = resize both sides, shape lost.
        resample: Pillow's number of the filter.
        scale, offset: of each channel: value = level x scale + offset, level in 0..255.
    """

    height: int
    width: int
    shortest_edge: int | None
    resample: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @property
    def draft_size(self) -> int:
        """Shorter side that a picture needs at least so that nothing is enlarged."""
        return max(self.height, self.width) if self.shortest_edge is None else self.shortest_edge

    def levels(self, picture: Image.Image) -> torch.Tensor:
        """Return the resized and cropped RGB picture, (3, height, width) uint8."""
        if self.shortest_edge is None:
            return _resized(picture, (self.width, self.height), self.resample).contiguous()
        return self._middle(picture, self.shortest_edge).contiguous()

    def _middle(self, picture: Image.Image, shortest_edge: int) -> torch.Tensor:
        """Resize the shorter side to `shortest_edge` and crop the middle."""
        width, height = picture.size
        longest_edge = int(shortest_edge * max(width, height) / min(width, height))
        full = (shortest_edge, longest_edge) if width <= height else (longest_edge, shortest_edge)
        left, top = (full[0] - self.width) // 2, (full[1] - self.height) // 2
        if self.resample == Image.Resampling.NEAREST or full[0] * full[1] <= _MOST_CROPPED * self.width * self.height:
            whole = _resized(picture, full, self.resample)
            return whole[:, top : top + self.height, left : left + self.width]
        x, y = width / full[0], height / full[1]
        box = (left * x, top * y, min((left + self.width) * x, width), min((top + self.height) * y, height))
        return _levels(picture.resize((self.width, self.height), self.resample, box))

    def normalised(self, levels: torch.Tensor) -> torch.Tensor:
        """Return pixel values (..., 3, height, width) float32 of uint8 levels, on their device."""
        scale, offset = (
            torch.tensor(values, dtype=torch.float32).view(3, 1, 1).to(levels.device)
            for values in (self.scale, self.offset)
        )
        values = torch.empty(levels.shape, dtype=torch.float32, device=levels.device)
        # On a CPU picture by picture: one stays in the cache for all steps, a batch does not (five times faster).
        parts = (
            zip(values, levels, strict=True) if levels.device.type == "cpu" and levels.ndim == 4 else [(values, levels)]
        )
        for value, level in parts:
            value.copy_(level).mul_(scale).add_(offset)
        return values


def _levels(picture: Image.Image) -> torch.Tensor:
    """(3, height, width) uint8, a view."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _resized(picture: Image.Image, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Resize to (width, height): as Pillow does, by torch's three times faster kernel for bytes where there is one."""
    mode = _KERNELS.get(resample)
    if mode is None or torch.backends.cpu.get_cpu_capability() not in _WITH_KERNELS:
        return _levels(picture.resize(size, resample))
    levels = _levels(picture).unsqueeze(0)
    (width, height), (new_width, new_height) = picture.size, size
    # Both round to bytes between the passes, so that their order shows.
    if _MAY_GO_DOWN_FIRST and height > new_height and height - new_height > 2 * (width - new_width):
        levels = torch.nn.functional.interpolate(levels, size=(new_height, width), mode=mode, antialias=True)
    return torch.nn.functional.interpolate(levels, size=(new_height, new_width), mode=mode, antialias=True)[0]


def plan_of(image_processor: Any) -> PixelPlan | None:
    """Return what the processor does, or None where it does something that a plan cannot say."""
    try:
        configuration = json.dumps(image_processor.to_dict(), sort_keys=True, default=str)
    except (AttributeError, TypeError, ValueError):
        return None
    key = (type(image_processor), configuration)
    if key not in _PLANS:
        plan = _read(image_processor)
        _PLANS[key] = plan if plan is not None and _agrees(plan, image_processor) else None
    return _PLANS[key]


_PLANS: dict[tuple[type, str], PixelPlan | None] = {}


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
    return PixelPlan(
        height,
        width,
        shortest_edge,
        int(value("resample")),
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
        # ConvNext: small models crop the middle, large ones see the whole picture, squeezed.
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
    """Whether plan and processor say the same about generated pictures (and neither fails)."""
    step = 1 / max(abs(scale) for scale in plan.scale)
    for picture in _probes():
        expected = image_processor(images=picture, return_tensors="pt")
        if set(expected) != {"pixel_values"}:
            return False
        values = expected["pixel_values"]
        if values.shape != (1, 3, plan.height, plan.width):
            return False
        apart = (plan.normalised(plan.levels(picture)) - values[0].float()).abs() * step
        if not (float(apart.mean()) <= _MEAN_LEVELS and float(apart.max()) <= _MOST_LEVELS):
            return False
    return True


@lru_cache(maxsize=1)
def _probes() -> list[Image.Image]:
    """Noise on slopes: every filter and every shift shows."""
    generator = np.random.default_rng(0)
    pictures = []
    for width, height in _PROBES:
        slope = np.linspace(0, 155, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
        noise = generator.integers(0, 100, (height, width, 3))
        pictures.append(Image.fromarray((slope + noise).astype(np.uint8)))
    return pictures
