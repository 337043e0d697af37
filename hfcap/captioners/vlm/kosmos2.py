"""Kosmos-2 (Peng et al. 2023, arXiv:2306.14824): a resampler's 64 states of the image stand before the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfcap.captioners.vlm.rows import Rows


class Kosmos2(Rows):
    """Kosmos2ForConditionalGeneration; the prompt is the beginning of the caption, such as 'An image of'."""

    model_types = ("kosmos-2",)
    usual_prompt = "An image of"  # microsoft/kosmos-2-patch14-224

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """CLIP, the resampler, and the language model."""
        model = self.model
        return {
            "vision": [model.vision_model],
            "connector": [model.image_to_text_projection],
            "text": [model.text_model],
        }

    def generating_models(self) -> list[Any]:
        """Also the language model, whose `generate` Kosmos-2's own calls."""
        return [self.model, self.model.text_model]

    def prompt_separator(self, prompt: str) -> str:
        """A space, where there is a prompt to continue."""
        return " " if prompt.strip() else ""

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return CLIP's normalised states, before the resampler."""
        vision = self.model.vision_model
        return nn.functional.normalize(vision.model.post_layernorm(vision(pixel_values)[0]), dim=-1)

    def image_arguments(self, image_states: torch.Tensor) -> dict[str, Any]:
        """Return the resampler's states; where they stand, the processor has said."""
        return {"image_embeds": self.model.image_to_text_projection(image_states)[0]}
