"""Models that caption after their prompt in one language model: each caption in a row of the model's own forward.

The forward knows its masks and positions best, so this serves any such model. The image is still encoded once.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import GenerationConfig

from hfcap.captioners.vlm.adapter import PLAIN, PromptInputs, VlmAdapter, expand
from hfcap.errors import UserError
from hfcap.generation.early_exit import leaving
from hfcap.generation.padded_prompts import padded
from hfcap.generation.step_scores import drop_step_scores
from hfcap.schema import SizedImages

_SHAPES = ((64, 64), (160, 64), (1400, 600), (500, 900))
"""(width, height): small and large, wide and high; some processors cut only large ones into tiles."""


class Rows(VlmAdapter):
    """A decoder that is given prompt and caption in one row, and the image's states next to it."""

    caption_extras: ClassVar[Mapping[str, int]] = {}
    """What the processor's outputs say of a caption's words, where that is not what they say of the prompt's end."""

    @abstractmethod
    def image_arguments(self, image_states: Any) -> dict[str, Any]:
        """Return what the model's forward takes in place of pixels: states of one image per row.

        They are (B, S, D), or `SizedImages` where prompts are padded (`pads_prompts`).
        """

    def image_extras(self) -> tuple[str, ...]:
        """Return which of the processor's outputs say how pixels are read: needed for no forward behind `encode`."""
        return ()

    def shape_matters(self) -> bool:
        """Ask the processor for images of four shapes: does it give other tokens, tiles or patches?"""
        of_each = [_comparable(self.inputs_for("", Image.new("RGB", size, PLAIN))) for size in _SHAPES]
        return any(found != of_each[0] for found in of_each)

    def check(self) -> None:
        """Raise a UserError where the processor tells more of an image than its pixel values: it would be lost."""
        prompt, other = (self.inputs_for("", self.blank(colour=colour)) for colour in ((90, 130, 170), (170, 90, 60)))
        names = sorted(
            name for name, value in prompt.extras.items() if not torch.equal(value, other.extras.get(name, value[:0]))
        )
        if names or not prompt.pixel_shape:
            raise UserError(
                f"model.pretrained: hfcap cannot keep what the processor of {type(self.model).__name__} makes of an "
                f"image together ({', '.join(names) or 'no pixel_values'}); docs/image_text_to_text.md lists the "
                "models that work"
            )

    def positions_before_text(self) -> int:
        """Return the length of prompt and image, whose last token begins each text."""
        return len(self.prompt_inputs(self.captioner.prompt).input_ids) - 1

    def sees_one_image(self) -> bool:
        """Whether the processor gives (1, 3, height, width), or the like with more ones in front, for an image."""
        shape = self.prompt_inputs(self.captioner.prompt).pixel_shape
        return len(shape) > 3 and set(shape[:-3]) == {1} and self.pixel_axis() == 0

    def pixel_axis(self) -> int:
        """Return the axis along which the processor puts the pixels of several images."""
        return 0

    def plain_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Give pixels (B, ...) the shape that the processor gives those of B images."""
        shape = self.prompt_inputs(self.captioner.prompt).pixel_shape
        return torch.cat(list(pixel_values.reshape(len(pixel_values), *shape)), dim=self.pixel_axis())

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the logits at the captions: prompt and caption in one row."""
        self.check_prompt()
        prompt, count = self.prompt_inputs(self.captioner.prompt), len(input_ids)
        before = expand(prompt.input_ids[None, :-1], count, input_ids.device)
        ids = torch.cat([before, input_ids], dim=1)
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            logits_to_keep=input_ids.shape[1],
            use_cache=False,
            **self.image_arguments(image_states),
            **{
                name: _for_rows(value, before.shape[1] + 1, ids, self.caption_extras.get(name))
                for name, value in self._word_extras().items()
            },
        ).logits
        # Some (MiniCPM's) take logits_to_keep among their other arguments and keep all.
        return logits[:, -input_ids.shape[1] :]

    def plain_generate(self, image_states: Any, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as the model does from the processor's inputs, with the image's states given."""
        return self._generate(image_states, input_ids, config, {})

    def fast_generate(self, image_states: Any, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with a batch that finished images leave, unless the model keeps positions of its rows to itself."""
        keeps_positions = hasattr(self.model.base_model, "rope_deltas")  # Qwen-VL's do
        faster = drop_step_scores(config) if keeps_positions else leaving(config)
        return self._generate(image_states, input_ids, config, faster)

    def started_with(self, input_ids: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Put the words in place of the prompt's last token: the processor's outputs are for a prompt of its length."""
        return torch.cat([input_ids[:, :-1], words[:, None]], dim=1)

    def _generate(
        self, image_states: Any, input_ids: torch.Tensor, config: GenerationConfig, faster: dict[str, Any]
    ) -> Any:
        if isinstance(image_states, SizedImages):
            before, mask, extras = self._padded_prompts(image_states)
        else:
            self.check_prompt()
            batch, device = image_states.shape[0], image_states.device
            prompt = self.prompt_inputs(self.captioner.prompt).input_ids[None, :-1]
            before, extras = expand(prompt, batch, device), self._word_extras()
            mask, extras = torch.ones_like(before), {name: expand(extras[name], batch, device) for name in extras}
        input_ids = input_ids.to(before.device)
        output = self.model.generate(
            input_ids=torch.cat([before, input_ids], dim=1),
            attention_mask=torch.cat([mask, torch.ones_like(input_ids)], dim=1),
            generation_config=config,
            **self.image_arguments(image_states),
            **faster,
            **extras,
        )
        return without_prefix(output, before.shape[1])

    def _padded_prompts(self, images: SizedImages) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Return prompts without their last tokens (B, L), the mask over them, and the processor's other outputs."""
        prompts, extras = [], []
        for size in images.sizes:
            with self.images_of(size):
                self.check_prompt()
                prompts.append(self.prompt_inputs(self.captioner.prompt).input_ids)
                extras.append(self._word_extras())
        ids, mask, joined = padded(prompts, extras, self.captioner.pad_token_id)
        device = images.device
        return ids[:, :-1].to(device), mask[:, :-1].to(device), {name: joined[name].to(device) for name in joined}

    def _word_extras(self) -> dict[str, torch.Tensor]:
        """Return the processor's other outputs, those that only tell how pixels are read left out."""
        extras = self.prompt_inputs(self.captioner.prompt).extras
        return {name: value for name, value in extras.items() if name not in self.image_extras()}


def _comparable(prompt: PromptInputs) -> tuple[Any, ...]:
    extras = sorted((name, value.tolist()) for name, value in prompt.extras.items() if not name.startswith("pixel_"))
    return prompt.input_ids.tolist(), prompt.pixel_shape, extras


def accepted(function: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return those of the values that the function has a parameter for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}


def without_prefix(output: Any, n_prefix: int) -> Any:
    """Cut the first `n_prefix` tokens off the sequences of a generate output."""
    if isinstance(output, torch.Tensor):
        return output[:, n_prefix:]
    output.sequences = output.sequences[:, n_prefix:]
    return output


def _for_rows(value: torch.Tensor, n_prompt: int, ids: torch.Tensor, of_caption: int | None) -> torch.Tensor:
    """Repeat a processor's output for every row; what it says of each token, it says of captions as of the last one."""
    rows = expand(value, len(ids), ids.device)
    if value.shape[:2] != (1, n_prompt):
        return rows
    last = rows[:, -1:] if of_caption is None else torch.full_like(rows[:, -1:], of_caption)
    return torch.cat([rows, last.expand(-1, ids.shape[1] - n_prompt, *rows.shape[2:])], dim=1)
