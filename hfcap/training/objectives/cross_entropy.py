"""What training minimises, as a module whose forward does everything (so that Accelerate can wrap it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.training.objectives.frozen import Start
from hfcap.training.objectives.token_loss import supervised_loss


class CrossEntropy(nn.Module):
    """Sum of token cross-entropies over a batch, with label smoothing (Szegedy et al. 2016, arXiv:1512.00567).

    A sum, not a mean: the loop divides by the number of supervised tokens of all micro-batches and processes, so that
    the update does not depend on how a batch was split. In training the family's penalty is added, if it has one.
    """

    captioner: Captioner
    start: Start | None = None
    """What an objective on captions compares with; outside the module tree, since it is neither trained nor saved."""

    def __init__(self, captioner: Captioner, label_smoothing_factor: float) -> None:
        super().__init__()
        self.model: Any = captioner.model
        self.label_smoothing_factor = label_smoothing_factor
        # Not a submodule: the model above is registered once.
        object.__setattr__(self, "captioner", captioner)
        self._sums: dict[str, float] = {}

    def units(self, batch: CaptionBatch) -> int:
        """How many terms the sum of this batch has; the loop divides by those of all micro-batches and processes."""
        return batch.packed.n_labels

    def longest_row(self) -> int:
        """Return how long rows of its own captions get; 0: it takes those of the batch."""
        return 0

    def before_update(self) -> None:
        """Get ready for the batches of an update; every process calls this."""

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
            label_places=batch.packed.label_places,
        )
        return loss if penalty is None else loss + penalty.float()

    # ---- what an objective tells the log next to its loss -------------------------------------------------------

    @property
    def sums(self) -> dict[str, float]:
        """Sums of this process since the last row of the log; always the same names in the same order."""
        return self._sums

    def restart_sums(self, values: Mapping[str, float]) -> None:
        """Continue from these sums; empty = a new row of the log begins."""
        self._sums = dict(values)

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def report(self, sums: Mapping[str, float], processes: int) -> dict[str, float]:
        """Return entries of the log for sums over all processes."""
        return {}

    def check(self, row: Mapping[str, Any]) -> None:
        """Look at a row of the log (training or validation) and raise WorkError if training must not go on."""
