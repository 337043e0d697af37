"""Cross-entropy over a large vocabulary whose logits never exist all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hfcap.schema import IGNORED_LABEL

Head = Callable[[torch.Tensor], torch.Tensor]

POSITIONS_AT_ONCE = 1024
"""BLIP's vocabulary: 125 MB of float32 logits at a time."""


def supervised_loss(
    head: Head,
    states: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
    label_places: torch.Tensor | None = None,
    positions_at_once: int = POSITIONS_AT_ONCE,
) -> torch.Tensor:
    """Return the sum of token cross-entropies (a float32 scalar) over the positions that carry a label.

    Logits are computed for those positions only, `positions_at_once` at a time, and again in the backward pass
    instead of being kept (Chen et al. 2016, arXiv:1604.06174).

    Args:
        head: states (N, H) -> logits (N, V).
        states: (B, P, H).
        labels: (B, P) int64, IGNORED_LABEL where no label is.
        label_smoothing: share of the target spread evenly over the vocabulary.
        weights: (B, P) factors of the positions' losses (advantages, for example); 1 without.
        label_places: as in PackedCaptions; without it the device is asked, which waits for all it has to do.
    """
    chosen = label_places
    if chosen is None:
        # One look at the device for all three: boolean indexing waits for the count each time.
        chosen = (labels != IGNORED_LABEL).flatten().nonzero().squeeze(1)
    states, labels = states.flatten(0, 1)[chosen], labels.flatten()[chosen]
    chosen_weights = None if weights is None else weights.flatten()[chosen]

    def part_loss(part: torch.Tensor, part_labels: torch.Tensor, part_weights: torch.Tensor | None) -> torch.Tensor:
        losses = nn.functional.cross_entropy(
            head(part).float(),
            part_labels,
            label_smoothing=label_smoothing,
            reduction="sum" if part_weights is None else "none",
        )
        return losses if part_weights is None else (losses * part_weights).sum()

    total = torch.zeros((), dtype=torch.float32, device=states.device)
    for first in range(0, len(chosen), positions_at_once):
        part = slice(first, first + positions_at_once)
        inputs = (states[part], labels[part], None if chosen_weights is None else chosen_weights[part])
        if len(chosen) <= positions_at_once or not torch.is_grad_enabled():
            total = total + part_loss(*inputs)
        else:
            total = total + checkpoint(part_loss, *inputs, use_reentrant=False)
    return total
