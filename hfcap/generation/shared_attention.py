"""Beam search over an image that is kept once: its cross-attention keys and values serve all of its beams.

transformers copies the image states for every beam, projects each copy to keys and values, and copies those again
whenever beams are reordered. Here the cache holds one copy per image, which reordering leaves alone, and attention
folds the beams of an image into its query positions; cross-attention has no mask, so each query gets what it would
have got with a copy of its own. The loop, the scores and the choice of beams stay those of transformers' `generate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, EncoderDecoderCache, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_SDPA = "hfcap_shared_sdpa"
"""Name under which the library's attention interface knows `shared_sdpa`."""


def shared_sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention, for queries (B * n, heads, T, D) also with keys and values (B, heads, S, D).

    Rows of an image stand one after the other, as `generate` expands them. Returns (B * n, T, heads, D).
    """
    rows, images = query.shape[0], key.shape[0]
    if rows == images:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    assert attention_mask is None, "keys that beams share have no mask"
    folded = query.unflatten(0, (images, rows // images)).transpose(1, 2)
    arguments["is_causal"] = False
    output, _ = sdpa_attention_forward(module, folded.flatten(2, 3), key, value, None, **arguments)
    return output.unflatten(1, folded.shape[2:4]).flatten(0, 1), None


AttentionInterface.register(SHARED_SDPA, shared_sdpa)
AttentionMaskInterface.register(SHARED_SDPA, sdpa_mask)


class ImageCache(EncoderDecoderCache):
    """Cache of a decoder whose cross-attention half holds each image once, whatever the number of its rows."""

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder what was generated; beams change places within their image, whose keys stay."""
        self.self_attention_cache.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Go on with these rows, which are all rows of some images."""
        generated: Any = self.self_attention_cache.layers[0]
        of_images: Any = self.cross_attention_cache.layers[0]
        n_rows = len(generated.keys) // len(of_images.keys)
        self.self_attention_cache.batch_select_indices(indices)
        self.cross_attention_cache.batch_select_indices(indices[::n_rows] // n_rows)


def image_cache(decoder: Any, image_states: torch.Tensor) -> dict[str, ImageCache]:
    """Project image states (B, S, D) to the keys and values of every layer of a decoder, once.

    Args:
        decoder: a model with cross-attention that takes `input_ids`, `encoder_hidden_states` and a cache.

    Returns:
        The cache under the name of the decoder's argument, for its `generate`.
    """
    name = cache_argument(decoder)
    filled = EncoderDecoderCache(DynamicCache(), DynamicCache())
    # The decoder's own code projects; the token it sees meanwhile is forgotten.
    token = torch.zeros(image_states.shape[0], 1, dtype=torch.long, device=image_states.device)
    decoder(input_ids=token, encoder_hidden_states=image_states, use_cache=True, **{name: filled})
    assert filled.cross_attention_cache.get_seq_length() == image_states.shape[1], "the cache was not filled"
    return {name: ImageCache(DynamicCache(), filled.cross_attention_cache)}


def cache_argument(model: Any) -> str:
    """Return what a model's forward calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    parameters = inspect.signature(model.forward).parameters
    return next(name for name in ("cache", "past_key_values") if name in parameters)


def can_share(decoder: Any) -> bool:
    """Whether a decoder's attention goes through the library's interface with its SDPA kernel."""
    return all(config._attn_implementation == "sdpa" for config in _configs(decoder))


def shared_attention(decoder: Any) -> AbstractContextManager[None]:
    """Let a decoder read keys that the rows of an image share, for the length of the block."""
    return attention_by(decoder, SHARED_SDPA)


@contextmanager
def attention_by(decoder: Any, implementation: str) -> Iterator[None]:
    """Let a model attend by another of the library's implementations, for the length of the block."""
    previous = [(config, config._attn_implementation) for config in _configs(decoder)]
    for config, _ in previous:
        config._attn_implementation = implementation
    try:
        yield
    finally:
        for config, implementation_before in previous:
            config._attn_implementation = implementation_before


def _configs(decoder: Any) -> list[Any]:
    # A decoder inside a VisionEncoderDecoderModel and its attention modules may hold different copies.
    holders = (getattr(module, "config", None) for module in decoder.modules())
    return list({id(config): config for config in holders if isinstance(config, PreTrainedConfig)}.values())
