"""A training of a small module, for tests of its checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from hfcap.training.checkpoint import Progress, checkpoint_path, load_checkpoint, save_checkpoint
from hfcap.training.optimization import MovingAverage, trained_parameters


class Small(nn.Module):
    """Trained and frozen weights, buffers that are kept (batch norm's) and one that is not."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 2)
        self.register_buffer("computed", torch.rand(2), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.frozen(inputs)))


class Training:
    """A model, its optimiser and average, as the loop hands them to the checkpoint."""

    def __init__(self, seed: int = 0, updates: int = 0) -> None:
        self.model = Small(seed)
        self.parameters = trained_parameters(self.model)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.1)
        self.average = MovingAverage(self.parameters, 0.9)
        for _ in range(updates):
            self.model(torch.rand(5, 3)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.update()

    def save(self, folder: Path, progress: Progress, rank: int = 0, world: int = 1, device: str = "cpu") -> Path:
        progress.average_updates = self.average.updates
        progress.scheduler = progress.scheduler or {"last_epoch": progress.step, "_step_count": progress.step + 1}
        save_checkpoint(folder, self.model, self.optimizer, progress, self.average, process(rank, world, device))
        return checkpoint_path(folder, progress.step)

    def load(self, path: Path, rank: int = 0, world: int = 1, average: bool = True, device: str = "cpu") -> Progress:
        kept = self.average if average else None
        return load_checkpoint(path, self.model, self.optimizer, kept, process(rank, world, device))


def process(rank: int, world: int, device: str = "cpu") -> Any:
    """What the checkpoint asks of an accelerator."""
    return SimpleNamespace(
        process_index=rank,
        num_processes=world,
        is_main_process=rank == 0,
        is_fsdp2=False,
        device=torch.device(device),
        wait_for_everyone=lambda: None,
    )
