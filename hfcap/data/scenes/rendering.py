"""Drawing generated scenes: smooth edges, a soft shadow and a quiet background, in about a millisecond."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

from hfcap.data.scenes.layout import Placed, Scene

Point = tuple[float, float]
Rgb = tuple[int, int, int]

_OVERSAMPLING = 3
"""Drawn so many times larger and averaged down: Pillow draws without antialiasing."""

_SHADES: dict[str, Rgb] = {
    "red": (214, 45, 48),
    "orange": (243, 138, 32),
    "yellow": (247, 211, 46),
    "green": (52, 158, 74),
    "blue": (44, 98, 208),
    "purple": (126, 64, 178),
    "pink": (243, 128, 182),
    "black": (38, 38, 44),
}
_TINTS: dict[str, Rgb] = {
    "grey": (214, 216, 220),
    "beige": (240, 226, 204),
    "mint": (208, 238, 220),
    "sky blue": (200, 226, 246),
}


@dataclass(frozen=True, slots=True)
class SceneImage:
    """A scene that is drawn when somebody reads it."""

    scene: Scene
    image_size: int
    name: str

    def read(self) -> bytes:
        """Return the image as PNG."""
        buffer = io.BytesIO()
        # The lowest compression: these images live for milliseconds.
        render(self.scene, self.image_size).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def describe(self) -> str:
        """Return the scene's name."""
        return f"generated scene {self.name}"


def render(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene as an RGB image of image_size x image_size pixels."""
    side = image_size * _OVERSAMPLING
    source = random.Random(scene.variation)
    tint = _scaled(_TINTS[scene.tint], source.uniform(0.97, 1.03))
    image = _background(scene.pattern, tint, side, source)
    draw = ImageDraw.Draw(image)
    outlines = [_outline(placed, scene.groups[placed.group].shape, side) for placed in scene.objects]
    offset = side * 0.012
    for outline in outlines:
        draw.polygon([(x + offset, y + offset * 1.5) for x, y in outline], fill=_scaled(tint, 0.82))
    for placed, outline in zip(scene.objects, outlines, strict=True):
        shade = _shifted(_SHADES[scene.groups[placed.group].colour], source, 10)
        draw.polygon(outline, fill=shade, outline=_scaled(shade, 0.72), width=max(1, side // 90))
    return image.reduce(_OVERSAMPLING)


def _outline(placed: Placed, shape: str, side: int) -> list[Point]:
    angle = math.radians(placed.rotation)
    sine, cosine = math.sin(angle) * placed.radius * side, math.cos(angle) * placed.radius * side
    centre_x, centre_y = placed.x * side, placed.y * side
    return [(centre_x + x * cosine - y * sine, centre_y + x * sine + y * cosine) for x, y in _unit_outline(shape)]


@cache
def _unit_outline(shape: str) -> tuple[Point, ...]:
    """Corners of a shape within the unit circle, y downwards."""
    match shape:
        case "square":
            return ((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82))
        case "triangle":
            return ((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75))
        case "cross":
            thick = 0.32
            quarter = ((-thick, -1.0), (thick, -1.0), (thick, -thick))
            return tuple(_turned(point, 90 * turn) for turn in range(4) for point in quarter)
        case "star":
            return tuple(_polar(36 * i - 90, 1.05 if i % 2 == 0 else 0.45) for i in range(10))
        case "heart":
            return tuple(_heart(2 * math.pi * i / 40) for i in range(40))
        case "moon":
            outer = [_polar(angle, 1.0) for angle in range(45, 316, 10)]
            # The inner edge: part of a circle around a point to the right, back from the upper tip to the lower.
            tip_x, tip_y = outer[0]
            centre, radius = 0.45, math.hypot(tip_x - 0.45, tip_y)
            reach = math.degrees(math.atan2(tip_y, tip_x - centre))
            inner = [_polar(360 - reach - i * (360 - 2 * reach) / 24, radius) for i in range(25)]
            return tuple(outer + [(x + centre, y) for x, y in inner])
        case "flower":
            petals = (abs(math.cos(math.radians(3 * 6 * i))) ** 0.7 for i in range(60))
            return tuple(_polar(6 * i, 0.58 + 0.42 * petal) for i, petal in enumerate(petals))
        case _:
            assert shape == "circle", shape
            return tuple(_polar(8 * i, 0.95) for i in range(45))


def _polar(degrees: float, radius: float) -> Point:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _turned(point: Point, degrees: int) -> Point:
    x, y = point
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return x * cosine - y * sine, x * sine + y * cosine


def _heart(t: float) -> Point:
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 16, -(y + 2) / 15


def _background(pattern: str, tint: Rgb, side: int, source: random.Random) -> Image.Image:
    other = _scaled(tint, 0.93)
    if pattern == "shaded":
        mask = Image.linear_gradient("L").resize((side, side))
        return Image.composite(Image.new("RGB", mask.size, _scaled(tint, 0.8)), Image.new("RGB", mask.size, tint), mask)
    image = Image.new("RGB", (side, side), tint)
    if pattern == "plain":
        return image
    draw = ImageDraw.Draw(image)
    step = side / 8
    phase = source.random() * step
    positions = [phase + step * index for index in range(-2, 9)]
    if pattern == "striped":
        for x in positions:
            draw.polygon([(x, 0), (x + step / 2, 0), (x + step, side), (x + step / 2, side)], fill=other)
    elif pattern == "dotted":
        radius = step * 0.22
        for x in positions:
            for y in positions:
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=other)
    else:
        assert pattern == "checked", pattern
        for row, y in enumerate(positions):
            for x in positions[row % 2 :: 2]:
                draw.rectangle((x, y, x + step, y + step), fill=other)
    return image


def _scaled(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = colour
    return int(red * factor), int(green * factor), int(blue * factor)


def _shifted(colour: Rgb, source: random.Random, most: int) -> Rgb:
    red, green, blue = (min(255, max(0, value + source.randint(-most, most))) for value in colour)
    return red, green, blue
