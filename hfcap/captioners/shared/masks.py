"""Attention masks of packed rows and of a prefix before them."""

from __future__ import annotations

import torch


def packed_attention_mask(caption_index: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask (B, 1, P, P) of a packed row: a position sees itself and earlier ones of its own caption.

    `caption_index` (B, P) as in PackedCaptions. Padding positions see one another, so that no row is fully masked
    (a fully masked row gives NaN in some attention kernels); nothing reads their output.
    """
    same_caption = caption_index[:, :, None] == caption_index[:, None, :]
    length = caption_index.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=caption_index.device).tril()
    return additive_mask(same_caption & causal, dtype)


def prefix_attention_mask(
    caption_index: torch.Tensor, n_prefix: int, dtype: torch.dtype, bidirectional: bool = False
) -> torch.Tensor:
    """Additive mask (B, 1, N + P, N + P): a prefix that every caption sees, captions apart from one another.

    `caption_index` (B, P) as in PackedCaptions. The prefix is causal, or with `bidirectional` sees all of itself: as
    generation computes it.
    """
    batch = caption_index.shape[0]
    prefix_index = caption_index.new_full((batch, n_prefix), -2)
    index = torch.cat([prefix_index, caption_index], dim=1)
    visible = (index[:, :, None] == index[:, None, :]) | (index == -2)[:, None, :]
    length = index.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=index.device).tril()
    if bidirectional:
        earlier[:n_prefix, :n_prefix] = True
    return additive_mask(visible & earlier, dtype)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a boolean mask (B, Q, K), True = visible, into the additive form (B, 1, Q, K) that every attention takes."""
    blocked = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, blocked)[:, None]
