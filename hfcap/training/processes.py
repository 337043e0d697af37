"""What the processes of one run tell each other."""

from __future__ import annotations

from typing import Any

import torch


def summed(accelerator: Any, *values: float) -> list[float]:
    """Return each value summed over all processes; every process must call this."""
    if accelerator.num_processes == 1:
        return list(values)
    sums: list[float] = accelerator.reduce(
        torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    ).tolist()
    return sums
