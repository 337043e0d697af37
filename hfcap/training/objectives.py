"""What training minimises, as a module whose forward does everything (so that Accelerate can wrap it)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.schema import IGNORED_LABEL
from hfcap.training.token_loss import supervised_loss


class CrossEntropy(nn.Module):
    """Sum of token cross-entropies over a batch, with label smoothing (Szegedy et al. 2016, arXiv:1512.00567).

    A sum, not a mean: the loop divides by the number of supervised tokens of all micro-batches and processes, so that
    the update does not depend on how a batch was split. In training the family's penalty is added, if it has one.
    """

    captioner: Captioner

    def __init__(self, captioner: Captioner, label_smoothing_factor: float) -> None:
        super().__init__()
        self.model: Any = captioner.model
        self.label_smoothing_factor = label_smoothing_factor
        # Not a submodule: the model above is registered once.
        object.__setattr__(self, "captioner", captioner)

    def forward(self, batch: CaptionBatch) -> torch.Tensor:
        """Return the summed loss, a float32 scalar."""
        states = batch.images if batch.encoded else self.captioner.encode(batch.images)
        if self.training:
            decoded, penalty = self.captioner.states_and_penalty(states, batch.packed)
        else:
            decoded, penalty = self.captioner.decoder_states(states, batch.packed), None
        loss = supervised_loss(
            self.captioner.head,
            decoded,
            batch.packed.labels,
            label_smoothing=self.label_smoothing_factor if self.training else 0.0,
        )
        return loss if penalty is None else loss + penalty.float()


def supervised_tokens(batch: CaptionBatch) -> int:
    """Number of positions that carry a label."""
    return int((batch.packed.labels != IGNORED_LABEL).sum())
