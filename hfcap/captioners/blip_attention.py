"""BLIP's attention through transformers' attention interface, which BLIP itself does not use (transformers 5.23).

The library's eager code keeps the probabilities of 577 x 577 places per head and layer for the backward pass; SDPA
keeps none and is faster. The replaced modules keep their class as base, their parameters and their names: saved
weights, LoRA targets and recorded attention stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, BlipForConditionalGeneration, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from hfcap.captioners.shared_attention import SHARED_SDPA


class InterfaceVisionAttention(BlipAttention):
    """BLIP's self-attention over patches by SDPA."""

    wants_probabilities = False

    def forward(  # type: ignore[override]  # without probabilities where nobody wants them
        self, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) -> (B, S, D), and probabilities where they are wanted."""
        if self.wants_probabilities:
            return super().forward(hidden_states, **kwargs)
        mixed = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        context, _ = AttentionInterface()[SHARED_SDPA](
            self,
            query,
            key,
            value,
            None,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scale,
            is_causal=False,
        )
        return self.projection(context.flatten(2)), None


class InterfaceTextAttention(BlipTextSelfAttention):
    """BLIP's self- and cross-attention of words by SDPA; rows may share an image's keys and values."""

    wants_probabilities = False

    def forward(  # type: ignore[override]  # any cache, as the library calls it
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D), and probabilities where they are wanted."""
        if self.wants_probabilities:
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values, **kwargs
            )
        is_cross = encoder_hidden_states is not None
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key, value = self._keys_and_values(source, is_cross, past_key_values)
        context, _ = AttentionInterface()[SHARED_SDPA](
            self,
            self._by_head(self.query(hidden_states)),
            key,
            value,
            encoder_attention_mask if is_cross else attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.attention_head_size**-0.5,
            is_causal=self.config.is_decoder and not is_cross,
        )
        return context.flatten(2), None

    def _by_head(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)

    def _keys_and_values(self, source: torch.Tensor, is_cross: bool, past: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, S, D) of `source`, from the cache where an image's are there already."""
        cache = past
        if isinstance(past, EncoderDecoderCache):
            if is_cross and past.is_updated.get(self.layer_idx):
                layer = past.cross_attention_cache.layers[self.layer_idx]
                return layer.keys, layer.values
            cache = past.cross_attention_cache if is_cross else past.self_attention_cache
        key, value = self._by_head(self.key(source)), self._by_head(self.value(source))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            if is_cross and isinstance(past, EncoderDecoderCache):
                past.is_updated[self.layer_idx] = True
        return key, value


_REPLACEMENTS: dict[type, type] = {
    BlipAttention: InterfaceVisionAttention,
    BlipTextSelfAttention: InterfaceTextAttention,
}


def use_sdpa(model: BlipForConditionalGeneration) -> None:
    """Switch a BLIP model to SDPA, in place; does nothing once transformers' own BLIP can do it."""
    if getattr(type(model), "_supports_sdpa", False):
        return
    for module in model.modules():
        module.__class__ = _REPLACEMENTS.get(type(module), type(module))


def is_replaced(model: nn.Module) -> bool:
    """Whether `use_sdpa` has changed this model (or part of one)."""
    return any(isinstance(module, tuple(_REPLACEMENTS.values())) for module in model.modules())


@contextmanager
def attention_probabilities(model: nn.Module) -> Iterator[None]:
    """Compute attention by transformers' own code, which `output_attentions` needs, for the length of the block."""
    replaced: list[Any] = [module for module in model.modules() if isinstance(module, tuple(_REPLACEMENTS.values()))]
    for module in replaced:
        module.wants_probabilities = True
    try:
        yield
    finally:
        for module in replaced:
            module.wants_probabilities = False
