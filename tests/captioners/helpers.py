"""Tiny captioners of every family, backbones and images that the tests of this folder share."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from hfcap import registry
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.nonparametric import FittingData, NonparametricCaptioner
from hfcap.data.packing import pack_captions
from hfcap.schema import CaptionedImage, PackedCaptions
from hfcap.training.objectives.token_loss import supervised_loss

ALL_FAMILIES = [name for name in registry.names("captioners") if name != "openai_endpoint"]
"""Families whose model is in this process; a served one has tests of its own (test_openai_endpoint*.py)."""


def family_class(name: str) -> type[Captioner]:
    """Return the family's captioner class."""
    family: type[Captioner] = registry.load("captioners", name).REGISTERED
    return family


FAMILIES = [name for name in ALL_FAMILIES if family_class(name).trains_by_gradients]
"""Families with a loss, logits and tokens that a prompt can start; the others are fitted in one pass."""

CORPUS = (
    "a red cat sits on a mat",
    "two dogs run over the green grass",
    "A man's hat, seen from behind.",
    "a picture of three people in a boat",
    "ein Café: 12 Gäste & 3 Hunde!",
) * 8

PROMPT = "a picture of"

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3},
    "n-best": {"num_beams": 4, "num_return_sequences": 4},
    "short preferred": {"num_beams": 3, "length_penalty": -1.0},
    "long preferred": {"num_beams": 3, "length_penalty": 2.0},
}
"""Decoding that gives the same captions however it is computed; keys are names of tests."""


def build(name: str, seed: int = 0, **changes: Any) -> Captioner:
    """Build a captioner from the family's tiny `model` block with `changes`: evaluation mode, lively weights."""
    family = family_class(name)
    torch.manual_seed(seed)
    captioner = family.build(family.options_class(**{**family.tiny(), **changes}), CORPUS)
    make_lively(captioner.model, seed)
    captioner.model.eval()
    if isinstance(captioner, NonparametricCaptioner):
        fit(captioner)
    return captioner


def fit(captioner: NonparametricCaptioner, captions: Sequence[Sequence[str]] | None = None) -> None:
    """Fit to random images (the ones of `pixel_values`) with these captions, one group an image."""
    groups = captions or [CORPUS[number : number + 2] for number in range(12)]
    records = [
        CaptionedImage(str(number), f"{number}.png", tuple(group), MemoryImage(number))
        for number, group in enumerate(groups)
    ]
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        states = captioner.encode(pixel_values(captioner, len(records)))
        captioner.fit(FittingData(records, iter(states.split(5)), 4, Path(folder)))


@dataclass(frozen=True)
class MemoryImage:
    """A random image as PNG bytes."""

    seed: int

    def read(self) -> bytes:
        buffer = io.BytesIO()
        random_image(self.seed).save(buffer, "PNG")
        return buffer.getvalue()

    def describe(self) -> str:
        return f"random image {self.seed}"


def plain_processor(folder: Path | str, **arguments: Any) -> Any:
    """Load a saved processor with plain transformers, as the code of the card does."""
    processor: Any = AutoProcessor.from_pretrained(folder, **arguments)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **arguments)
    return processor


def make_lively(model: Any, seed: int) -> None:
    """Give matrices weights so large that logits differ clearly; fresh weights make every caption alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                scale = 0.6 * parameter[0].numel() ** -0.5 if parameter.ndim > 2 else 0.2
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def random_image(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Return an RGB image of smooth random colours."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def pixel_values(captioner: Captioner, count: int, seed: int = 0) -> torch.Tensor:
    """Process `count` random images with the captioner's own processor."""
    images = [random_image(seed + number) for number in range(count)]
    values: torch.Tensor = captioner.image_processor(images=images, return_tensors="pt")["pixel_values"]
    return values


def random_captions(captioner: Captioner, counts: Sequence[int], seed: int = 0) -> list[list[list[int]]]:
    """Draw ragged captions of 1 to 7 ordinary tokens: `counts[b]` of them for image b."""
    generator = np.random.default_rng(seed)
    special = {captioner.start_token_id, captioner.end_token_id, captioner.pad_token_id}
    ordinary = [token for token in range(len(captioner.tokenizer)) if token not in special]
    return [
        [generator.choice(ordinary, size=generator.integers(1, 8)).tolist() for _ in range(count)] for count in counts
    ]


def packed(captioner: Captioner, captions: Sequence[Sequence[Sequence[int]]]) -> PackedCaptions:
    """Pack as training does."""
    return pack_captions(captions, captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id)


def packed_loss(
    captioner: Captioner, pixels: torch.Tensor, captions: Sequence[Sequence[Sequence[int]]]
) -> torch.Tensor:
    """Summed cross-entropy of packed captions as training computes it, in parts of four positions."""
    rows = packed(captioner, captions)
    states = captioner.decoder_states(captioner.encode(pixels), rows)
    return supervised_loss(captioner.head, states, rows.labels, positions_at_once=4)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Take the gradients out of a model, zeros where a parameter received none."""
    found = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return found


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """Write a random image as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random_image(seed, size).save(path, "PNG")
    return path
