"""What training minimises, as a module whose forward does everything (so that Accelerate can wrap it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.training.objectives.frozen import Start
from hfcap.training.objectives.token_loss import supervised_loss

Sums: TypeAlias = "dict[str, float | torch.Tensor]"
"""Sums for the log: numbers of the host, and tensors of one number, float64, on a device."""


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
        self._sums: Sums = {}

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
        """Sums of this process since the last row of the log; always the same names in the same order.

        Waits once for the device on which some of them are.
        """
        there = {name: value for name, value in self._sums.items() if isinstance(value, torch.Tensor)}
        read = torch.stack([*there.values()]).tolist() if there else []
        known = dict(zip(there, read, strict=True))
        return {name: known[name] if name in known else float(value) for name, value in self._sums.items()}

    def unread_sums(self) -> Sums:
        """Return what `restart_sums` takes to continue from here, without waiting for a device."""
        return dict(self._sums)

    def restart_sums(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Continue from these sums; empty = a new row of the log begins."""
        self._sums = dict(values)

    def _add(self, **values: float | torch.Tensor) -> None:
        """Add to the sums; tensors of one number stay on their device until the sums are read."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + (_exact(value) if isinstance(value, torch.Tensor) else value)

    def report(self, sums: Mapping[str, float], processes: int) -> dict[str, float]:
        """Return entries of the log for sums over all processes."""
        return {}

    def check(self, row: Mapping[str, Any]) -> None:
        """Look at a row of the log (training or validation) and raise WorkError if training must not go on."""


def _exact(value: torch.Tensor) -> torch.Tensor:
    # As numbers of the host are added up; Apple's devices know no float64.
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
