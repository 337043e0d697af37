"""Where a captioner looked while it spoke: one heat map per generated word, as a PNG.

Attention shows what the decoder read, not why it chose a word (Jain and Wallace 2019, arXiv:1902.10186).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from hfcap.captioners.asking.asked import has_fields, prompt_of
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import generation_defaults, local_folder
from hfcap.captioners.shared.room import require_room
from hfcap.captioning import decoding_options, one_image
from hfcap.captioning.captioner import ready_captioner
from hfcap.captioning.columns import with_columns
from hfcap.data.loading import PixelInputs
from hfcap.errors import UserError
from hfcap.files import write_bytes
from hfcap.recipe.blocks import GenerateOptions

_COLUMNS = 5
_PANEL_INCHES = 2.1
_BRIGHT_FROM_MEANS = 3
"""A place is shown in its full colours from this many times the mean attention of the word's places."""


@dataclass(frozen=True, slots=True)
class WordMap:
    """One generated word and where the captioner looked.

    Attributes:
        heat: (height, width) share of the attention on each place of the image; the mean over the word's tokens.
    """

    word: str
    heat: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A caption, its words' maps and the image as the captioner saw it, (height, width, 3) from 0 to 1."""

    caption: str
    words: list[WordMap]
    image: np.ndarray[Any, Any]


def explain_image(
    model: str,
    image: str,
    output: Path,
    *,
    overrides: dict[str, Any] | None = None,
    prompt: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Explanation:
    """Caption one image with a run directory, a model folder or a Hub model, and draw the maps into `output`.

    Args:
        overrides: decoding options that replace the ones saved with the model.

    Raises:
        UserError: not one readable image, not a PNG, or a captioner without attention to places in the image.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"{output}: give a name that ends in .png")
    record = one_image(image)
    defaults = generation_defaults(local_folder(model, revision))
    options = decoding_options({**defaults, **(overrides or {}), "num_return_sequences": 1})
    captioner = ready_captioner(model, revision, trust_remote_code)
    if has_fields(captioner, prompt):
        record = next(with_columns([record]))
    prompt = prompt_of(captioner, prompt, record)
    require_room(captioner, options, prompt)
    inputs = PixelInputs([record], captioner.image_processor)
    explanation = explain(captioner, inputs.pixel_values([0]), options, prompt)
    write_bytes(output, draw(explanation))
    return explanation


@torch.no_grad()
def explain(
    captioner: Captioner, pixel_values: torch.Tensor, options: GenerateOptions, prompt: str | None = None
) -> Explanation:
    """Caption pixels (1, 3, height, width) and find where the captioner looked for each word.

    Raises:
        UserError: the family has no attention from words to places in the image, or it said nothing.
    """
    captioner.model.eval()
    states = captioner.encode(pixel_values.to(captioner.device))
    start = captioner.start_token_ids(prompt)
    # Asked before anything is generated: families without attention refuse.
    captioner.word_attention(states, torch.tensor([[*start, captioner.end_token_id]], device=captioner.device))
    torch.manual_seed(options.seed)
    first = torch.tensor([start], device=captioner.device)
    sequence = captioner.generate(states, first, captioner.generation_config(options))[0].tolist()
    spoken = sequence[len(start) :]
    if captioner.end_token_id in spoken:
        spoken = spoken[: spoken.index(captioner.end_token_id)]
    words = words_of_tokens(captioner.tokenizer, spoken)
    if not words:
        raise UserError(
            "explain: the generated caption is empty, so there is nothing to explain; choose another image or model"
        )
    ids = torch.tensor([[*start, *spoken]], device=captioner.device)
    maps = captioner.word_attention(states, ids)[len(start) - 1 :].float().cpu().numpy()
    found = [WordMap(word, maps[numbers].mean(axis=0)) for word, numbers in words]
    caption = " ".join(word for word, _ in words)
    return Explanation(caption, found, _seen(pixel_values[0], captioner.image_processor))


def words_of_tokens(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """Group tokens into the words of the text they spell: (word, numbers of its tokens), in order.

    A token belongs to the word that the text ends with once the token is there.
    """
    owners: list[int] = []
    words: list[str] = []
    for count in range(1, len(ids) + 1):
        words = tokenizer.decode(ids[:count], skip_special_tokens=True).split()
        owners.append(len(words) - 1)
    # A sign that stood alone may close up to the word before once the next token is there ("dog '", "dog's").
    owners = list(accumulate(reversed(owners), min))[::-1]
    return [(word, [n for n, owner in enumerate(owners) if owner == number]) for number, word in enumerate(words)]


def _seen(pixel_values: torch.Tensor, image_processor: Any) -> np.ndarray[Any, Any]:
    """Undo the normalisation: the image as the captioner saw it, resized and cropped."""
    pixels = pixel_values.permute(1, 2, 0).float().cpu().numpy()
    if getattr(image_processor, "do_normalize", False):
        pixels = pixels * np.asarray(image_processor.image_std) + np.asarray(image_processor.image_mean)
    if not getattr(image_processor, "do_rescale", True):
        pixels = pixels / 255
    return pixels.clip(0, 1)


def draw(explanation: Explanation) -> bytes:
    """Return a PNG: the image, then one panel per word, brightest where the captioner looked most."""
    panels = len(explanation.words) + 1
    columns = min(_COLUMNS, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(columns * _PANEL_INCHES, rows * (_PANEL_INCHES + 0.35)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(explanation.image)
    _title(axes[0], "what the captioner saw", "")
    for axis, word in zip(axes[1:], explanation.words, strict=False):
        _draw_word(axis, word, explanation.image)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks is an empty box on the image, which shows it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def lit_image(word: WordMap, image: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the image as the word's map lights it, and the light: (height, width, 3) and (height, width), 0 to 1.

    Unseen places are dark and grey; seen ones in their own colours, so that one sees what was looked at.
    """
    height, width = image.shape[:2]
    # Attention that is almost the same everywhere stays dim: against its own peak it would look like a finding.
    brightest = max(float(word.heat.max()), _BRIGHT_FROM_MEANS * float(word.heat.mean()), 1e-12)
    heat = Image.fromarray((word.heat / brightest).astype(np.float32))
    smooth = np.asarray(heat.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    grey = image.mean(axis=2, keepdims=True)
    shown = smooth[..., None]
    return (shown * image + (1 - shown) * (0.25 * grey)).clip(0, 1), smooth


def _draw_word(axis: Axes, word: WordMap, image: np.ndarray[Any, Any]) -> None:
    lit, smooth = lit_image(word, image)
    axis.imshow(lit)
    if smooth.max() > 0.5 > smooth.min():
        axis.contour(smooth, levels=[0.5], colors="#ffb000", linewidths=1.2)
    _title(axis, word.word, f"peak {word.heat.max():.1%}, mean {word.heat.mean():.1%}")


def _title(axis: Axes, text: str, note: str) -> None:
    # Words come from a model: '$' must not start a formula, control characters must not reach the font.
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    axis.set_title(printable[:28], fontsize=11, parse_math=False)
    axis.text(0.5, -0.02, note, transform=axis.transAxes, ha="center", va="top", fontsize=7, color="#555555")
