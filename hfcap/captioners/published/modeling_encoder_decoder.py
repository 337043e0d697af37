"""Image encoder -> decoder that reads its states through cross-attention: CNN-transformer and image transformer.

Unlike transformers' VisionEncoderDecoderModel this takes feature maps, pooled vectors and backbones that bring their
own code. This file is published beside the weights and runs without hfcap: it imports only torch and transformers.
Shapes: B images, S image states, D encoder width, H decoder width, T text positions, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .modeling_image_encoder import (
    ImageCaptioner,
    ImageCaptionerConfig,
    LinearMapper,
    as_config,
    cache_argument,
    new_vision_model,
    next_token_loss,
    position_offset,
    refuse_unknown,
)


class EncoderDecoderConfig(ImageCaptionerConfig):
    """Configuration of an encoder-decoder captioner; what it shares with others is in ImageCaptionerConfig.

    Args:
        text_config: config of the decoder, a causal language model with cross-attention.
        bridge_dropout: on the image states that the decoder reads.
    """

    def __init__(self, text_config: Any = None, bridge_dropout: float = 0.0, **kwargs: Any) -> None:
        self.text_config = as_config(text_config)
        self.bridge_dropout = bridge_dropout
        super().__init__(**kwargs)


class EncoderDecoderModel(ImageCaptioner):
    """Encoder, bridge (projection, learned positions, norm) and decoder; `generate(pixel_values=...)` captions."""

    config_class: Any = EncoderDecoderConfig
    base_model_prefix = "encoder_decoder"

    def __init__(self, config: EncoderDecoderConfig, vision_model: Any = None, decoder: Any = None) -> None:
        super().__init__(config)
        self.vision_model = new_vision_model(config) if vision_model is None else vision_model
        self.decoder: Any = AutoModelForCausalLM.from_config(config.text_config) if decoder is None else decoder
        width = self.decoder.get_input_embeddings().embedding_dim
        self.bridge = LinearMapper(config.vision_width, config.vision_tokens, width, config.bridge_dropout)
        self._tied_weights_keys = self.tied_text_weights()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LinearMapper):
            nn.init.normal_(module.position, std=0.02)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V), and the loss when `labels` (B, T) are given; `attention_mask` is (B, T)."""
        refuse_unknown(self, kwargs)
        image_states, input_ids = self.states_and_text(pixel_values, image_states, input_ids)
        outputs = self.decoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=self.bridge(image_states),
            use_cache=False,
        )
        return CausalLMOutputWithPast(loss=next_token_loss(outputs.logits, labels), logits=outputs.logits)

    def continue_text(self, image_states: torch.Tensor, input_ids: torch.Tensor, **options: Any) -> Any:
        """As in ImageCaptioner."""
        options.pop("token_type_ids", None)
        text_config = self.config.text_config
        # A BERT-like decoder on its own would be given a cache without a place for cross-attention.
        cache = EncoderDecoderCache(DynamicCache(config=text_config), DynamicCache(config=text_config))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + position_offset(self.decoder)
        return self.decoder.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            position_ids=positions.expand_as(input_ids),
            encoder_hidden_states=self.bridge(image_states),
            **{cache_argument(self.decoder): cache},
            **options,
        )


class CnnTransformerConfig(EncoderDecoderConfig):
    """A convolutional encoder; see EncoderDecoderConfig."""

    model_type = "cnn_transformer"

    # Written out: transformers gives a config class without its own __init__ a generated one.
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class CnnTransformerForConditionalGeneration(EncoderDecoderModel):
    """A CNN-transformer captioner for `AutoModelForImageTextToText`."""

    config_class = CnnTransformerConfig


class ImageTransformerConfig(EncoderDecoderConfig):
    """An encoder of image patches; see EncoderDecoderConfig."""

    model_type = "image_transformer"

    # Written out: transformers gives a config class without its own __init__ a generated one.
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class ImageTransformerForConditionalGeneration(EncoderDecoderModel):
    """An image-transformer captioner for `AutoModelForImageTextToText`."""

    config_class = ImageTransformerConfig
