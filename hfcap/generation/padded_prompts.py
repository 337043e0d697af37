"""Prompts of different lengths in one batch: padded in front, as the processors of vision-language models do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import pad

_MOST = 1.5
"""Tokens of a batch with its padding, for each token without: a longer prompt begins another batch."""


def of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return the places of prompts, batch by batch, so that padding stays less than what it is put before.

    Args:
        lengths: tokens of each prompt. Those of one length are never parted.
    """
    batches: list[list[int]] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        tokens += lengths[place]
        if batches and lengths[place] * (len(batches[-1]) + 1) <= _MOST * tokens:
            batches[-1].append(place)
        else:
            batches.append([place])
            tokens = lengths[place]
    return batches


def padded(
    prompts: Sequence[torch.Tensor], extras: Sequence[Mapping[str, torch.Tensor]], token: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Put prompts together, one a row, each ending in the last column.

    Args:
        prompts: (N,) int64 each.
        extras: the processor's other outputs for each prompt, equally named: (1, N, ...) of its tokens, or (n, ...) of
            the parts of its image.
        token: stands in front of shorter prompts.

    Returns:
        Tokens (B, L), the mask over them, and the other outputs: (B, L, ...) with zeros in front, or one after another.
    """
    longest = max(map(len, prompts))
    missing = [longest - len(prompt) for prompt in prompts]
    ids = torch.stack([pad(row, (count, 0), value=token) for row, count in zip(prompts, missing, strict=True)])
    mask = torch.stack([pad(torch.ones_like(row), (count, 0)) for row, count in zip(prompts, missing, strict=True)])
    joined = {
        name: torch.cat(
            [
                pad(of_one[name], (*[0, 0] * (of_one[name].ndim - 2), longest - len(prompt), 0))
                if of_one[name].shape[:2] == (1, len(prompt))
                else of_one[name]
                for prompt, of_one in zip(prompts, extras, strict=True)
            ]
        )
        for name in extras[0]
    }
    return ids, mask, joined
