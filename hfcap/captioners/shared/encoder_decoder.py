"""What the families share whose decoder reads an encoder's states through cross-attention.

`ReadsByCrossAttention` is what others need to run the two parts alone; `EncoderDecoderCaptioner` all but the options of
families with hfcap's own model class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import nn
from transformers import CLIPProcessor, GenerationConfig

from hfcap.captioners.base import BaseModel
from hfcap.captioners.published.modeling_image_encoder import position_offset
from hfcap.captioners.shared.custom_model import CustomModelCaptioner, VisionOptions, build_vision, vision_settings
from hfcap.captioners.shared.masks import packed_attention_mask
from hfcap.captioners.shared.tokenizers import special_token_ids
from hfcap.generation.attention_maps import grid_maps, last_layers_attention
from hfcap.generation.early_exit import leaving
from hfcap.generation.language_head import body_states, head_logits
from hfcap.generation.shared_attention import can_share, image_cache, shared_attention
from hfcap.generation.step_scores import drop_step_scores
from hfcap.schema import PackedCaptions


class ReadsByCrossAttention(ABC):
    """A captioner made of an encoder and a decoder, with nothing between them but states."""

    @property
    @abstractmethod
    def reader(self) -> Any:
        """The decoder with its head: input_ids, encoder_hidden_states and a cache -> logits and the cache."""

    def read_states(self, image_states: torch.Tensor) -> torch.Tensor:
        """Return the encoder's states (B, S, D) in the width (B, S, H) that `reader` reads."""
        return image_states


class EncoderDecoderCaptioner(CustomModelCaptioner, ReadsByCrossAttention):
    """An EncoderDecoderModel. Parts: vision (encoder) and text (bridge and decoder)."""

    parts = ("vision", "text")
    lora_target_modules = r"decoder\..*\.(c_attn|q_attn|c_proj|c_fc|query|key|value|dense)"

    @classmethod
    def join(
        cls,
        vision: VisionOptions,
        decoder: Any,
        tokenizer: Any,
        base_models: list[BaseModel],
        vision_feature: str = "patches",
        bridge_dropout: float = 0.0,
    ) -> Self:
        """Put an encoder in front of a decoder; the bridge between them starts from random weights."""
        vision_model, image_processor = build_vision(vision, base_models)
        config = cls.model_class.config_class(
            **vision_settings(vision_model, image_processor, vision_feature),
            text_config=decoder.config,
            bridge_dropout=bridge_dropout,
            **special_token_ids(tokenizer),
        )
        model = cls.model_class(config, vision_model, decoder)
        return cls(model, CLIPProcessor(image_processor, tokenizer), vision.prompt, base_models, assembled=True)

    @property
    def lora_modules_to_save(self) -> list[str]:
        """Bridge and cross-attention are random where encoder and decoder were joined here: trained in full."""
        if not self.assembled:
            return []
        names = {name.rsplit(".", 1)[-1] for name, _ in self.model.named_modules()}
        return sorted(names & {"bridge", "crossattention", "ln_cross_attn"})

    @property
    def positions_before_text(self) -> int:
        """RoBERTa-like decoders leave their first positions unused."""
        return position_offset(self.model.decoder)

    @property
    def reader(self) -> Any:
        """The decoder."""
        return self.model.decoder

    def read_states(self, image_states: torch.Tensor) -> torch.Tensor:
        """Image states as the bridge hands them to the decoder."""
        return self.model.bridge(image_states)

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Encoder; bridge and decoder."""
        return {"vision": [self.model.vision_model], "text": [self.model.bridge, self.model.decoder]}

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the published model's own forward."""
        return self.model(image_states=image_states, input_ids=input_ids).logits

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run bridge and decoder up to its head; cross-attention keys and values are computed once per image."""
        decoder = self.model.decoder
        return body_states(
            decoder,
            input_ids=packed.input_ids,
            attention_mask=packed_attention_mask(packed.caption_index, image_states.dtype),
            position_ids=packed.position_ids + position_offset(decoder),
            encoder_hidden_states=self.read_states(image_states),
        )

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the decoder's head."""
        return head_logits(self.model.decoder, states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate by the published model's own `generate`."""
        return self.model.generate(image_states=image_states, input_ids=input_ids, generation_config=config)

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with one copy of the keys and values of an image for all its beams."""
        decoder = self.model.decoder
        if not can_share(decoder):
            return self.model.generate(
                image_states=image_states, input_ids=input_ids, generation_config=config, **drop_step_scores(config)
            )
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + position_offset(decoder)
        read = self.read_states(image_states)
        with shared_attention(decoder):
            return decoder.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                position_ids=positions.expand_as(input_ids),
                # Only asked whether they are there: keys and values come from the cache.
                encoder_hidden_states=read[:, :1],
                generation_config=config,
                **image_cache(decoder, read),
                **leaving(config),
            )

    def word_attention(self, image_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the cross-attention of the last layers before each token."""
        with torch.no_grad():
            weights = last_layers_attention(self.model.decoder, token_ids, self.read_states(image_states))
        return grid_maps(weights, self.model.config.vision_grid, self.card_facts.title)
