"""Prefix models that pack: what each of them does differently with image, positions and mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from hfcap.captioners.shared.masks import prefix_attention_mask
from hfcap.captioners.vlm.adapter import PromptInputs
from hfcap.captioners.vlm.prefix import Prefix


class PaliGemma(Prefix):
    """PaliGemma (Beyer et al. 2024, arXiv:2407.07726): prompt and image see one another, captions look back."""

    model_types = ("paligemma",)
    speaks_chat = False
    usual_prompt = "caption en"  # google/paligemma-3b-mix-224
    styles: ClassVar[Mapping[str, str]] = {"short": "caption en", "detailed": "describe en"}
    shares_prefix = False
    caption_extras: ClassVar[Mapping[str, int]] = {"token_type_ids": 1}  # words that look back only

    def processor_text(self, prompt: str) -> str:
        """Return the placeholder and the task, such as 'caption en'; the processor adds start and new line."""
        return f"{self.processor.image_token}{prompt}"

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """SigLIP, the linear projection, and Gemma."""
        inner = self.model.model
        return {
            "vision": [inner.vision_tower],
            "connector": [inner.multi_modal_projector],
            "text": [inner.language_model, self.model.lm_head],
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return SigLIP's last hidden state."""
        return self.model.model.vision_tower(pixel_values).last_hidden_state

    def project(self, image_states: torch.Tensor) -> torch.Tensor:
        """Project to Gemma's width."""
        return self.model.model.multi_modal_projector(image_states)

    def positions(self, prompt: PromptInputs, device: torch.device) -> torch.Tensor:
        """PaliGemma counts from 1."""
        return super().positions(prompt, device) + 1

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Cap the logits as Gemma 2 does, in PaliGemma 2."""
        logits = super().packed_head(states)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def mask(self, caption_index: torch.Tensor, n_prefix: int, dtype: torch.dtype) -> torch.Tensor:
        """Let the prefix see all of itself, and the prompt's last token, which stands at the head of each caption.

        Any copy of that token would do, as all see the same and are alike; the first one is always there.
        """
        mask = prefix_attention_mask(caption_index, n_prefix, dtype, bidirectional=True)
        mask[:, :, :n_prefix, n_prefix] = 0
        return mask


class Idefics3(Prefix):
    """Idefics3 and SmolVLM (Laurencon et al. 2024, arXiv:2408.12637; Marafioti et al. 2025, arXiv:2504.05299)."""

    model_types = ("idefics3", "smolvlm")

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """SigLIP, pixel shuffle with projection, and the language model."""
        inner = self.model.model
        return {
            "vision": [inner.vision_model],
            "connector": [inner.connector],
            "text": [inner.text_model, self.model.lm_head],
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the vision model's last hidden states of all tiles; every patch counts, a black image is one too."""
        side = self.model.config.vision_config.patch_size
        tiles = pixel_values.flatten(0, -4) if pixel_values.ndim > 4 else pixel_values
        count, _, height, width = tiles.shape
        patches = torch.ones(count, height // side, width // side, dtype=torch.bool, device=tiles.device)
        states = self.model.model.vision_model(pixel_values=tiles, patch_attention_mask=patches).last_hidden_state
        return states.reshape(len(pixel_values), -1, states.shape[-1])

    def project(self, image_states: torch.Tensor) -> torch.Tensor:
        """Shuffle neighbouring patches of each tile together and project them."""
        batch, _, width = image_states.shape
        shape = self.prompt_inputs(self.captioner.prompt).pixel_shape
        tiles = shape[1] if len(shape) > 4 else 1
        found = self.model.model.connector(image_states.reshape(batch * tiles, -1, width))
        return found.reshape(batch, -1, found.shape[-1])

    def prepare(self) -> None:
        """Switch splitting off where all images become one square: it is a tile as it is."""
        if getattr(self.captioner, "image_size", None) is not None:
            self.processor.image_processor.do_image_splitting = False


class Llava(Prefix):
    """LLaVA 1.5 (Liu et al. 2023, arXiv:2310.03744): CLIP patches, an MLP, Llama."""

    model_types = ("llava", "vipllava")
