"""What the captioner sees: the range of the pixel values, and a contact sheet of the processed images."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hfcap.data.augmentation import AugmentedDataset
from hfcap.data.images import decode_image
from hfcap.data.loading import PixelInputs, prepared, stacked
from hfcap.doctor.findings import Findings
from hfcap.files import write_bytes
from hfcap.schema import CaptionedImage

N_MEASURED = 32
N_ON_SHEET = 12
COLUMNS, CELL, CAPTION_HEIGHT, GAP, FONT_SIZE, CAPTION_LINES = 4, 224, 52, 12, 13, 3


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """Values of one channel."""

    lowest: float
    mean: float
    deviation: float
    highest: float


@dataclass(frozen=True, slots=True)
class PixelFacts:
    """Processed images.

    Attributes:
        size: height and width in pixels. original_sizes: smallest and largest (width, height) before processing.
        channels: values as the captioner gets them. restored: lowest and highest value after undoing the
            normalisation with the image processor's mean and deviation; right ones lie in 0..1.
    """

    n_images: int
    size: tuple[int, int]
    original_sizes: tuple[tuple[int, int], tuple[int, int]]
    channels: list[ChannelRange]
    restored: tuple[float, float]


def examine_pixels(
    records: Sequence[CaptionedImage], image_processor: Any, sheet: Path, findings: Findings
) -> PixelFacts:
    """Process up to N_MEASURED evenly chosen images, measure them, and write the contact sheet (PNG) to `sheet`."""
    step = max(1, len(records) // N_MEASURED)
    chosen = list(records[::step][:N_MEASURED])
    inputs = PixelInputs(chosen, image_processor)
    pixels = inputs.pixel_values(range(len(chosen)))
    originals = [decode_image(record.image) for record in chosen]
    restored = restore(pixels, image_processor)
    channels = [ChannelRange(float(c.min()), float(c.mean()), float(c.std()), float(c.max())) for c in pixels.unbind(1)]
    sizes = sorted(image.size for image in originals)
    facts = PixelFacts(
        len(chosen),
        (pixels.shape[2], pixels.shape[3]),
        (sizes[0], sizes[-1]),
        channels,
        (float(restored.min()), float(restored.max())),
    )
    brightest = max(int(np.asarray(image).max()) for image in originals) / 255
    _report(facts, brightest, findings)
    captions = [record.captions[0] if record.captions else "" for record in chosen]
    write_bytes(sheet, contact_sheet(restored[:N_ON_SHEET], captions[:N_ON_SHEET]))
    return facts


def show_augmented(dataset: AugmentedDataset, image_processor: Any, sheet: Path) -> None:
    """Write the contact sheet again: images as they are, and next to each what the first epoch makes of it."""
    step = max(1, 2 * len(dataset) // N_ON_SHEET)
    pixels, captions = [], []
    for index in range(0, len(dataset), step)[: N_ON_SHEET // 2]:
        drawn = dataset.drawn(0, index)
        changed, mirrored = dataset.changed_captions(0, index, drawn)
        pixels += [dataset.inputs[index], dataset[(0, index)].image]
        captions += [
            f"as it is: {dataset.captions[index][drawn[0]]}",
            f"{'mirrored' if mirrored else 'changed'}: {changed[0]}",
        ]
    seen = prepared(stacked(pixels), dataset.inputs.plan, torch.device("cpu"))
    write_bytes(sheet, contact_sheet(restore(seen, image_processor), captions))


def restore(pixels: torch.Tensor, image_processor: Any) -> torch.Tensor:
    """Undo the normalisation of (B, 3, height, width); what comes out lies in 0..1 if the processing is right."""
    if not getattr(image_processor, "do_normalize", False):
        return pixels
    mean, deviation = (
        torch.tensor(getattr(image_processor, name), dtype=torch.float32).view(1, -1, 1, 1)
        for name in ("image_mean", "image_std")
    )
    return pixels * deviation + mean


def contact_sheet(restored: torch.Tensor, captions: Sequence[str]) -> bytes:
    """Return a PNG of images (B, 3, height, width) with values 0..1, each above the beginning of its caption."""
    columns = min(COLUMNS, len(captions))
    rows = -(-len(captions) // columns)
    cell_height = CELL + CAPTION_HEIGHT
    sheet = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + rows * (cell_height + GAP)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = _font()
    for number, (values, caption) in enumerate(zip(restored, captions, strict=True)):
        left = GAP + (number % columns) * (CELL + GAP)
        top = GAP + (number // columns) * (cell_height + GAP)
        image = _as_image(values)
        sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=(200, 200, 200))
        width = int(CELL / draw.textlength("abcdefghij", font) * 10)
        lines = textwrap.wrap(caption, width, max_lines=CAPTION_LINES, placeholder=" ...")
        draw.multiline_text((left, top + CELL + 4), "\n".join(lines), fill=(30, 30, 30), font=font, spacing=2)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _font() -> Any:
    from matplotlib import get_data_path

    # matplotlib's own font: Latin, Greek, Cyrillic and more, on every machine.
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)


def _as_image(values: torch.Tensor) -> Image.Image:
    array = (values.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged images keep their pixels visible: that is all the captioner gets.
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _report(facts: PixelFacts, brightest: float, findings: Findings) -> None:
    low, high = facts.restored
    values = f"undoing the normalisation gives {low:.3f} to {high:.3f} instead of 0 to 1"
    key = "model (its image processor)"
    if not all(torch.isfinite(torch.tensor([c.lowest, c.mean, c.highest])).all() for c in facts.channels):
        findings.error(
            key, "pixel values are not numbers", "check image_mean and image_std of preprocessor_config.json"
        )
    elif high < 0.1 * brightest:
        findings.error(
            key,
            f"the images are nearly black ({values}): they are rescaled twice",
            "set do_rescale: false, or rescale_factor: 0.00392156862745098, in preprocessor_config.json",
        )
    elif high > 2:
        findings.error(
            key,
            f"the pixels are not rescaled from 0..255 ({values})",
            "set do_rescale: true in preprocessor_config.json",
        )
    elif low < -0.2 or high > 1.2:
        findings.warning(key, f"unusual pixel values ({values})", "check image_mean and image_std")
    if max(channel.deviation for channel in facts.channels) < 0.02:
        findings.warning(
            key, "the pixel values are nearly constant: there is nothing to see", "look at the contact sheet"
        )
