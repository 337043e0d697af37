"""Llama 3.2 Vision (Meta 2024, arXiv:2407.21783): cross-attention in some layers of the language model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import GenerationConfig

from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.captioners.vlm.adapter import CHAT_PROMPT, expand
from hfcap.captioners.vlm.rows import Rows, accepted
from hfcap.generation.shared_attention import cache_argument


class Mllama(Rows):
    """MllamaForConditionalGeneration; all images become one square and so are cut into equally many tiles."""

    model_types = ("mllama",)
    speaks_chat = True
    usual_prompt = CHAT_PROMPT
    styles: ClassVar[Mapping[str, str]] = CHAT_STYLES

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """The vision model, its projection, and the language model with its head."""
        inner = self.model.model
        return {
            "vision": [inner.vision_model],
            "connector": [inner.multi_modal_projector],
            "text": [inner.language_model, self.model.lm_head],
        }

    def image_extras(self) -> tuple[str, ...]:
        """Which tiles there are, only the vision model asks."""
        return ("aspect_ratio_ids", "aspect_ratio_mask")

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the vision model's states of all tiles, before the projection."""
        vision, prompt = self.model.model.vision_model, self.prompt_inputs(self.captioner.prompt)
        extras = accepted(vision.forward, prompt.extras)
        states = vision(
            pixel_values=self.plain_pixels(pixel_values),
            **{name: expand(value, len(pixel_values), pixel_values.device) for name, value in extras.items()},
        ).last_hidden_state
        return states.reshape(len(pixel_values), -1, states.shape[-1])

    def image_arguments(self, image_states: torch.Tensor) -> dict[str, Any]:
        """Return projected states, which cross-attention reads."""
        return {"cross_attention_states": self.model.model.multi_modal_projector(image_states)}

    def _generate(
        self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig, faster: dict[str, Any]
    ) -> Any:
        # After the first step the image is in the cache.
        with _read_once(self.model.model):
            return super()._generate(image_states, input_ids, config, faster)


@contextmanager
def _read_once(model: Any) -> Iterator[None]:
    """Withhold the image's states once the cache holds tokens: `generate` goes on giving them."""
    name = cache_argument(model)

    def withhold(_module: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = named.get(name)
        if cache is not None and cache.get_seq_length() > 0:
            named = {**named, "cross_attention_states": None}
        return arguments, named

    hook = model.register_forward_pre_hook(withhold, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
