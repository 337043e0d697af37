"""Prefix captioner (ClipCap, Mokady et al. 2021, arXiv:2111.09734): image encoder -> mapper -> causal language model.

This file is published beside the weights and runs without hfcap: it imports only torch and transformers. Shapes:
B images, S image states, D encoder width, N prefix positions, T text positions, H width of the language model.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from .modeling_image_encoder import (
    ImageCaptioner,
    ImageCaptionerConfig,
    LinearMapper,
    as_config,
    new_vision_model,
    next_token_loss,
    refuse_unknown,
)


class ClipPrefixConfig(ImageCaptionerConfig):
    """Configuration of a prefix captioner; what it shares with others is in ImageCaptionerConfig.

    Args:
        text_config: config of the causal language model.
        mapper: "mlp", "transformer" or "linear" (one prefix position per patch).
        prefix_length: N for mlp and transformer; linear takes N = vision_tokens.
    """

    model_type = "clip_prefix"

    def __init__(
        self,
        text_config: Any = None,
        vision_feature: str = "pooled",
        mapper: str = "mlp",
        prefix_length: int = 10,
        mapper_layers: int = 8,
        mapper_heads: int = 8,
        mapper_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.text_config = as_config(text_config)
        self.mapper = mapper
        self.prefix_length = prefix_length
        self.mapper_layers = mapper_layers
        self.mapper_heads = mapper_heads
        self.mapper_dropout = mapper_dropout
        super().__init__(vision_feature=vision_feature, **kwargs)


class MlpMapper(nn.Module):
    """ClipCap's MLP: one image vector -> N prefix vectors through one hidden layer with tanh."""

    def __init__(self, vision_width: int, text_width: int, prefix_length: int, dropout: float) -> None:
        super().__init__()
        hidden = text_width * prefix_length // 2
        self.prefix_length = prefix_length
        self.layers = nn.Sequential(
            nn.Linear(vision_width, hidden),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(hidden, text_width * prefix_length),
        )

    def forward(self, image_states: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, N, H); several states are averaged first."""
        return self.layers(image_states.mean(1)).unflatten(1, (self.prefix_length, -1))


class TransformerMapper(nn.Module):
    """ClipCap's transformer: learned constants attend to the image states and become the prefix."""

    def __init__(self, config: ClipPrefixConfig, text_width: int) -> None:
        super().__init__()
        # ClipCap spreads a single image vector over as many input positions as there are prefix positions.
        self.spread = config.prefix_length if config.vision_tokens == 1 else 1
        n_inputs = config.prefix_length if config.vision_tokens == 1 else config.vision_tokens
        self.project = nn.Linear(config.vision_width, text_width * self.spread)
        self.position = nn.Parameter(torch.randn(n_inputs, text_width) * 0.02)
        self.constants = nn.Parameter(torch.randn(config.prefix_length, text_width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            text_width,
            config.mapper_heads,
            dim_feedforward=text_width * 2,
            dropout=config.mapper_dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, config.mapper_layers, enable_nested_tensor=False)

    def forward(self, image_states: torch.Tensor) -> torch.Tensor:
        """(B, S, D) -> (B, N, H)."""
        inputs = self.project(image_states)
        if self.spread > 1:
            inputs = inputs.unflatten(2, (self.spread, -1)).flatten(1, 2)
        constants = self.constants.expand(inputs.shape[0], -1, -1)
        hidden = self.encoder(torch.cat([inputs + self.position, constants], dim=1))
        return hidden[:, -constants.shape[1] :]


def build_mapper(config: ClipPrefixConfig, text_width: int) -> nn.Module:
    """Return the mapper that the configuration names."""
    if config.mapper == "mlp":
        return MlpMapper(config.vision_width, text_width, config.prefix_length, config.mapper_dropout)
    if config.mapper == "transformer":
        return TransformerMapper(config, text_width)
    return LinearMapper(config.vision_width, config.vision_tokens, text_width, config.mapper_dropout)


class ClipPrefixForConditionalGeneration(ImageCaptioner):
    """A prefix captioner for `AutoModelForImageTextToText`; `generate(pixel_values=...)` captions."""

    config_class = ClipPrefixConfig
    base_model_prefix = "clip_prefix"
    text_model_name = "language_model"

    def __init__(self, config: ClipPrefixConfig, vision_model: Any = None, language_model: Any = None) -> None:
        super().__init__(config)
        self.vision_model = new_vision_model(config) if vision_model is None else vision_model
        self.language_model = (
            AutoModelForCausalLM.from_config(config.text_config) if language_model is None else language_model
        )
        self.mapper = build_mapper(config, self.language_model.get_input_embeddings().embedding_dim)
        self._tied_weights_keys = self.tied_text_weights()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TransformerMapper):
            nn.init.normal_(module.position, std=0.02)
            nn.init.normal_(module.constants, std=0.02)
        elif isinstance(module, LinearMapper):
            nn.init.normal_(module.position, std=0.02)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V) of the text positions, and the loss when `labels` (B, T) are given.

        `attention_mask` is (B, T) over the text, or already additive (B, 1, N + T, N + T) over prefix and text; then
        `position_ids` (B, T) count from 0 per caption.
        """
        refuse_unknown(self, kwargs)
        image_states, input_ids = self.states_and_text(pixel_values, image_states, input_ids)
        outputs = self.language_model(
            **self.language_inputs(image_states, input_ids, attention_mask, position_ids),
            use_cache=False,
            logits_to_keep=input_ids.shape[1],
        )
        return CausalLMOutputWithPast(loss=next_token_loss(outputs.logits, labels), logits=outputs.logits)

    def language_inputs(
        self,
        image_states: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Return what the language model is called with: prefix and text embeddings (B, N + T, H), mask, positions."""
        prefix = self.mapper(image_states)
        embeddings = self.get_input_embeddings()(input_ids)
        batch, n_prefix = prefix.shape[:2]
        if attention_mask is not None and attention_mask.ndim == 2:
            attention_mask = torch.cat([attention_mask.new_ones(batch, n_prefix), attention_mask], dim=1)
        if position_ids is not None:
            prefix_positions = torch.arange(n_prefix, device=input_ids.device).expand(batch, -1)
            position_ids = torch.cat([prefix_positions, position_ids + n_prefix], dim=1)
        return {
            "inputs_embeds": torch.cat([prefix.to(embeddings.dtype), embeddings], dim=1),
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }

    def continue_text(self, image_states: torch.Tensor, input_ids: torch.Tensor, **options: Any) -> Any:
        """As in ImageCaptioner."""
        prefix = self.mapper(image_states)
        embeddings = self.get_input_embeddings()(input_ids)
        output = self.language_model.generate(
            inputs_embeds=torch.cat([prefix.to(embeddings.dtype), embeddings], dim=1),
            attention_mask=torch.ones(
                input_ids.shape[0], prefix.shape[1] + input_ids.shape[1], device=input_ids.device
            ).long(),
            **options,
        )
        # From embeddings, `generate` returns only what is new; other captioners return the prompt too.
        new = output if isinstance(output, torch.Tensor) else output.sequences
        repeats = new.shape[0] // input_ids.shape[0]
        sequences = torch.cat([input_ids.repeat_interleave(repeats, dim=0), new], dim=1)
        if isinstance(output, torch.Tensor):
            return sequences
        output.sequences = sequences
        return output
