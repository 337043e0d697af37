"""BLIP's attention through transformers' attention interface, which BLIP itself does not use (transformers 5.24).

The library's eager code keeps the probabilities of 577 x 577 places per head and layer for the backward pass; SDPA
keeps none and is faster. The replaced modules keep their class as base, their parameters and their names: saved
weights, LoRA targets and recorded attention stay what they were. What this relies on (the modules' parameters, how
they are called, the layers of a cache) is checked on a tiny BLIP before any module is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, BlipConfig, BlipForConditionalGeneration, EncoderDecoderCache
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from hfcap.generation.random_state import own_randomness
from hfcap.generation.shared_attention import SHARED_SDPA, cache_argument
from hfcap.generation.verdicts import holds


class InterfaceVisionAttention(BlipAttention):
    """BLIP's self-attention over patches by SDPA."""

    wants_probabilities = False

    def forward(  # type: ignore[override]  # without probabilities where nobody wants them
        self, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) -> (B, S, D), and probabilities where they are wanted."""
        if self.wants_probabilities:
            return super().forward(hidden_states, **kwargs)
        _require_nothing_more(kwargs)
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

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) -> (B, T, D), and probabilities where they are wanted; the cache comes by either name."""
        cache = past_key_values if cache is None else cache
        if self.wants_probabilities:
            kwargs[cache_argument(BlipTextSelfAttention)] = cache
            return super().forward(
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, **kwargs
            )
        _require_nothing_more(kwargs)
        is_cross = encoder_hidden_states is not None
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key, value = self._keys_and_values(source, is_cross, cache)
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


def _require_nothing_more(arguments: dict[str, Any]) -> None:
    """Refuse arguments that the replaced attention would ignore."""
    unknown = sorted(name for name, value in arguments.items() if value is not None and value is not False)
    if unknown:
        raise TypeError(f"BLIP's attention is given {', '.join(unknown)}, which its replacement does not know")


def use_sdpa(model: BlipForConditionalGeneration) -> None:
    """Switch a BLIP model to SDPA, in place; does nothing once transformers' own BLIP can do it."""
    if getattr(type(model), "_supports_sdpa", False):
        return
    if holds("SDPA in BLIP", {}, _replacements_agree, "transformers' own attention"):
        _replace(model)


def _replace(model: nn.Module) -> None:
    for module in model.modules():
        module.__class__ = _REPLACEMENTS.get(type(module), type(module))


def _replacements_agree() -> bool:
    """Compare a tiny BLIP before and after: image states, logits under a mask, and what the cache makes of beams."""
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens: dict[str, Any] = {"vocab_size": 20, "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": 0}
    with own_randomness(torch.device("cpu")), torch.no_grad(), torch.device("cpu"):
        torch.default_generator.manual_seed(0)  # the CPU's alone: no other device's state is touched
        config: Any = BlipConfig(
            vision_config={**shape, "image_size": 4, "patch_size": 2},
            text_config={**shape, **tokens, "encoder_hidden_size": 8},
        )
        model: Any = BlipForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        pixels, ids = torch.randn(2, 3, 4, 4), torch.randint(3, 20, (2, 5))
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

        def results() -> list[torch.Tensor]:
            states = model.vision_model(pixel_values=pixels).last_hidden_state
            logits = model.text_decoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=states).logits
            found = model.text_decoder.generate(
                input_ids=ids[:, :1],
                attention_mask=mask[:, :1],
                encoder_hidden_states=states,
                num_beams=2,
                max_new_tokens=4,
                eos_token_id=2,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
            return [states, logits[mask.bool()], found.sequences_scores, found.sequences.float()]

        expected = results()
        _replace(model)
        ours = results()
    return all(
        mine.shape == theirs.shape and torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
        for mine, theirs in zip(ours, expected, strict=True)
    )


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
