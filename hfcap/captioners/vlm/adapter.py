"""What the kinds of image-text-to-text models differ in: how images and prompt get in, and how rows are laid out.

A kind is a file `vlm/<name>.py` with a subclass of `VlmAdapter`; `image_text_to_text.py` chooses it by the model type.
Shape letters as in `base.py`, and N positions of the prefix (prompt and image) that stands before every caption.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn
from transformers import GenerationConfig

from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.captioners.asking.thinking import thinks_at_end
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.tokenizers import token_number
from hfcap.captioners.vlm.one_size_images import ImagesOfOneSize, ImagesOfOwnShape
from hfcap.errors import UserError
from hfcap.schema import PackedCaptions

_MARK = "hfcapmark"
_BLANK_SIDE = 64
_MOST_PROMPTS = 10_000
PLAIN = (90, 130, 170)
"""No level that normalisation turns to zero, which some models take for padding."""


CHAT_PROMPT = CHAT_STYLES["short"]
"""Chat models answer nothing in particular to an image alone, or in paragraphs."""


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """What the model's own processor makes of the prompt and one image.

    Attributes:
        input_ids: (N + 1,) int64; the last one is the token that captions start behind.
        extras: the processor's other outputs for one image (grids, token types, masks), pixels left out.
        pixel_shape: shape of the pixel values of one image, as the model's own forward takes them.
    """

    input_ids: torch.Tensor
    extras: dict[str, torch.Tensor]
    pixel_shape: tuple[int, ...] = ()


class VlmAdapter(ABC):
    """How one kind of model takes images and words; reads model and processor from the captioner it belongs to."""

    model_types: ClassVar[tuple[str, ...]] = ()
    speaks_chat: ClassVar[bool] = False
    """Whether the prompt goes through the processor's chat template, where it has one."""
    prompt_in_rows: ClassVar[bool] = False
    """Whether the prompt's tokens begin each caption's row, and stand nowhere else."""
    pads_prompts: ClassVar[bool] = False
    """Whether images whose prompts differ in length can be in one batch of `generate`, each with its own size."""
    styles: ClassVar[Mapping[str, str]] = {}
    """Style of captions (captioners/asking/prompts.py) -> prompt that asks for it."""
    usual_prompt: ClassVar[str] = ""
    """Prompt of a model that nobody saved one with: what its authors ask for captions with."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.size: tuple[int, int] | None = None
        """(width, height) of the images that are being computed, where images keep their shape."""
        self._prompts: dict[tuple[str, tuple[int, int] | None], PromptInputs] = {}
        self._layouts: dict[tuple[str, tuple[int, int]], str] = {}
        self._of_layout: dict[str, PromptInputs] = {}

    @property
    def model(self) -> Any:
        """The captioner's model, also after LoRA layers were put in or folded in."""
        return self.captioner.model

    @property
    def processor(self) -> Any:
        """The captioner's processor."""
        return self.captioner.processor

    # ---- what a kind must say ----------------------------------------------------------------------------------

    @abstractmethod
    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Return modules of vision (what `encode` runs), connector and text; together they cover all parameters."""

    @abstractmethod
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return what the frozen part of the image's path gives: pixels of B images -> (B, S, D)."""

    @abstractmethod
    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (B, T, V) of one caption per row (B, T) after the captioner's own prompt, from the model's forward."""

    @abstractmethod
    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate after the captioner's own prompt by the model's `generate`; sequences begin with `input_ids`."""

    # ---- what a kind may do faster -----------------------------------------------------------------------------

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Return (B, P, H) for packed captions after the captioner's own prompt, before the head."""
        raise NotImplementedError

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits of `packed_states`: (..., H) -> (..., V)."""
        return states

    @property
    def packs(self) -> bool:
        """Whether the captions of an image can stand in one row."""
        return type(self).packed_states is not VlmAdapter.packed_states

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate what `plain_generate` does in less time."""
        raise NotImplementedError

    def started_with(self, input_ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Return start tokens that go on with another word for each image, for the check of generation."""
        return torch.cat([input_ids, words[:, None]], dim=1)

    # ---- prompt, start and end ---------------------------------------------------------------------------------

    def image_processor(self) -> Any:
        """Return an image processor that gives one (3, height, width) per image, as those of other families do."""
        inner = self.processor.image_processor
        if not self.speaks_chat:
            return inner
        settings = self.image_settings()
        if getattr(self.captioner, "own_shapes", False):
            return ImagesOfOwnShape(inner, settings)
        return ImagesOfOneSize(inner, getattr(self.captioner, "image_size", None), settings)

    def image_settings(self) -> dict[str, Any]:
        """Return what the processor calls its image processor with, besides images."""
        settings = dict(getattr(type(self.processor), "images_kwargs", None) or {})
        settings.pop("return_tensors", None)
        return settings

    def sees_one_image(self) -> bool:
        """Whether an image's pixels are (3, height, width), neither tiles nor patches."""
        return True

    def plain_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return pixels (B, 3, height, width) in the shape that the model's own forward takes."""
        return pixel_values

    def prepare(self) -> None:  # noqa: B027  # most kinds have nothing to set up
        """Set the processor up for images of one size and texts without an end, once after loading."""

    def check_model(self) -> None:  # noqa: B027  # most kinds take every model of their types
        """Raise a UserError for a model that cannot be served, before its processor is asked for anything."""

    def check(self) -> None:  # noqa: B027  # most kinds refuse nothing
        """Raise a UserError where this very model cannot be trained or run with its processor."""

    def check_prompt(self) -> None:  # noqa: B027  # most kinds take any prompt
        """Raise a UserError where captions cannot follow the captioner's prompt."""

    def shape_matters(self) -> bool:
        """Whether images of other shapes give other prompts or pixels, so that each keeps its own by default."""
        return False

    @contextmanager
    def images_of(self, size: tuple[int, int]) -> Iterator[None]:
        """Compute images of this (width, height) inside the block: prompt and places are those of such images.

        Raises:
            UserError: their tokens are more than the model has positions.
        """
        before, self.size = self.size, size
        try:
            self._require_room(size)
            yield
        finally:
            self.size = before

    def n_prompt_tokens(self, size: tuple[int, int]) -> int:
        """Return the tokens of the prompt with an image of this size."""
        before, self.size = self.size, size
        try:
            return len(self.prompt_inputs(self.captioner.prompt).input_ids)
        finally:
            self.size = before

    def _require_room(self, size: tuple[int, int]) -> None:
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        n_tokens = self.n_prompt_tokens(size)
        if limit is not None and n_tokens >= limit:
            raise UserError(
                f"an image of {size[0]} x {size[1]} pixels becomes {n_tokens:,} tokens with its prompt, and the model "
                f"has {limit:,} positions; set model.max_pixels, or model.image_size"
            )

    def layout(self, size: tuple[int, int]) -> str:
        """Return a name of what images computed together have in common: all that the processor says besides pixels."""
        key = (self.captioner.prompt.strip(), size)
        if key not in self._layouts:
            before, self.size = self.size, size
            try:
                prompt = self.prompt_inputs(self.captioner.prompt)
            finally:
                self.size = before
            digest = hashlib.sha256(repr((key[0], prompt.pixel_shape)).encode())
            for name, value in sorted({**prompt.extras, "": prompt.input_ids}.items()):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
            self._layouts[key] = digest.hexdigest()
            # Masks over pixels are large, and a dataset has images of thousands of sizes.
            self._prompts[key] = self._of_layout.setdefault(self._layouts[key], prompt)
        return self._layouts[key]

    def of_one_layout(self, sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Return the numbers of images of these sizes, those of one layout together."""
        groups: dict[str, list[int]] = {}
        for number, size in enumerate(sizes):
            groups.setdefault(self.layout(size), []).append(number)
        return list(groups.values())

    def positions_before_text(self) -> int:
        """Return how many positions of the text model stand before every text."""
        return 0

    def processor_notes(self) -> dict[str, str]:
        """Return what the card's code must know.

        `call`: "chat" (through the chat template) or "text" (with `text` for the processor). `returns`: whether
        `generate` gives "prompt and caption" or "caption" alone.
        """
        returns = "caption" if self.model.config.is_encoder_decoder else "prompt and caption"
        if self.chats():
            return {"call": "chat", "returns": returns}
        return {"call": "text", "text": self.processor_text(self.captioner.template.strip()), "returns": returns}

    def start_token_ids(self, prompt: str) -> list[int]:
        """Return the tokens that every caption's row begins with: the last of the prompt."""
        return [int(self.prompt_inputs(prompt).input_ids[-1])]

    def prompt_separator(self, prompt: str) -> str:
        """Return the text between prompt and caption."""
        chat = self._chat_ends()
        return "" if chat is None else chat[0]

    def end_token_id(self) -> int:
        """Return the token that ends a reply: that of the chat template, else the model's own end token."""
        tokenizer = self.processor.tokenizer
        chat = self._chat_ends()
        if chat is not None and chat[1]:
            first = int(tokenizer(chat[1], add_special_tokens=False)["input_ids"][0])
            if first in tokenizer.all_special_ids or first in tokenizer.added_tokens_decoder:
                return first
        model = self.model
        for holder in (model.generation_config, model.config.get_text_config(decoder=True), tokenizer):
            end = getattr(holder, "eos_token_id", None)
            end = end[0] if isinstance(end, (list, tuple)) and end else end
            if end is not None:
                return token_number(end, "eos_token_id")
        raise UserError(
            "model.pretrained: neither model nor tokenizer names an end token, so that captions could never "
            "stop; choose another model"
        )

    def generating_models(self) -> list[Any]:
        """Return the models whose generation_config counts when plain transformers generates."""
        return [self.model]

    def adjust_generation(self, config: GenerationConfig) -> None:
        """Set the start tokens that plain transformers needs in generation_config.json."""
        config.bos_token_id = self.processor.tokenizer.bos_token_id
        config.decoder_start_token_id = None

    def processor_text(self, prompt: str) -> str:
        """Return the text that the processor takes next to an image, for kinds that do not chat."""
        return prompt

    def chats(self) -> bool:
        """Whether prompts go through a chat template."""
        return self.speaks_chat and bool(getattr(self.processor, "chat_template", None))

    def prompt_inputs(self, prompt: str) -> PromptInputs:
        """Return the processor's tokens for the prompt and one image; every image of its size gives the same ones."""
        key = (prompt.strip(), self.size)
        if key not in self._prompts:
            if len(self._prompts) >= _MOST_PROMPTS:
                # Prompts with fields: each image its own, and masks over pixels may come with each.
                for kept in (self._prompts, self._layouts, self._of_layout):
                    kept.clear()
            self._prompts[key] = self.inputs_for(prompt.strip(), self.blank())
        return self._prompts[key]

    def blank(self, width: int = _BLANK_SIDE, colour: tuple[int, int, int] = PLAIN) -> Image.Image:
        """Return a plain image, of the size that images have where they are resized."""
        side = getattr(self.captioner, "image_size", None)
        usual = (width, _BLANK_SIDE) if side is None else (side, side)
        return Image.new("RGB", self.size or usual, colour)

    def inputs_for(self, prompt: str, image: Image.Image) -> PromptInputs:
        """Return what the processor makes of prompt and image.

        Raises:
            UserError: the processor refuses them, as it does where a prompt holds the image's placeholder.
        """
        values = self.processed(prompt, [image])
        extras = {
            name: value
            for name, value in values.items()
            if isinstance(value, torch.Tensor) and name not in ("input_ids", "attention_mask", "labels")
        }
        pixels = extras.pop("pixel_values", torch.empty(0))
        return PromptInputs(values["input_ids"][0], extras, tuple(pixels.shape))

    def processed(self, prompt: str, images: Sequence[Image.Image]) -> Any:
        """Return the processor's outputs for the prompt with each of the images.

        Raises:
            UserError: the processor refuses them.
        """
        try:
            return self._processed(prompt, images)
        except (ValueError, TypeError, KeyError) as error:
            name = type(self.model).__name__
            raise UserError(
                f"model.prompt: the processor of {name} cannot join an image and the prompt {prompt!r}: "
                f"{' '.join(str(error).split())[:160]} (leave placeholders of images out of the prompt; "
                "docs/image_text_to_text.md lists the models that work)"
            ) from error

    def _processed(self, prompt: str, images: Sequence[Image.Image]) -> Any:
        if not self.chats():
            text = self.processor_text(prompt)
            if len(images) == 1:
                return self.processor(images=images[0], text=text, return_tensors="pt")
            # One list per text: some take a plain list for the images of a single text.
            return self.processor(images=[[image] for image in images], text=[text] * len(images), return_tensors="pt")
        messages = [[_user_message(prompt, image=image)] for image in images]
        return self.processor.apply_chat_template(
            messages[0] if len(messages) == 1 else messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def thinks_first(self) -> bool:
        """Whether what the chat template writes before a reply begins the model's thinking."""
        if not self.chats():
            return False
        question = [_user_message(self.captioner.prompt)]
        return thinks_at_end(self.processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False))

    def _chat_ends(self) -> tuple[str, str] | None:
        """Text that the chat template writes before and after a reply; None without a template."""
        if not self.chats():
            return None
        question = _user_message(self.captioner.prompt)
        reply = {"role": "assistant", "content": [{"type": "text", "text": _MARK}]}
        asked = self.processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
        answered = self.processor.apply_chat_template([question, reply], tokenize=False)
        if not answered.startswith(asked) or _MARK not in answered:
            return "", ""
        before, _, after = answered[len(asked) :].partition(_MARK)
        return before, after


def _user_message(prompt: str, **image: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image", **image}]
    if prompt.strip():
        content.append({"type": "text", "text": prompt.strip()})
    return {"role": "user", "content": content}


def expand(value: torch.Tensor, count: int, device: torch.device) -> torch.Tensor:
    """Repeat a tensor of one image (1, ...), or of its n parts (n, ...), for `count` images."""
    return value.to(device).repeat(count, *[1] * (value.ndim - 1))
