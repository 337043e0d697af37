"""The captioner that training started from, which objectives on captions compare with."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.schema import PackedCaptions


def frozen_copy(captioner: Captioner) -> Captioner:
    """Return the captioner as it is now, without dropout and gradients."""
    kept = copy.copy(captioner)
    kept.model = copy.deepcopy(captioner.model).eval().requires_grad_(False)
    return kept


class Start(nn.Module):
    """A frozen copy of a captioner, as a module: so its weights can be cut into pieces as those in training are."""

    def __init__(self, captioner: Captioner) -> None:
        super().__init__()
        self.captioner = frozen_copy(captioner)
        self.model = self.captioner.model

    def forward(self, batch: CaptionBatch, packed: PackedCaptions) -> torch.Tensor:
        """Return the logits (B, P, V) of captions of the images of a batch."""
        states = batch.images if batch.encoded else self.captioner.encode(batch.images)
        return self.captioner.logits(states, packed)
