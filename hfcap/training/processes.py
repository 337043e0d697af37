"""What the processes of one run tell each other, and what others tell them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
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


class Hosts:
    """Sums of numbers that the hosts of all processes know, for which no accelerator is waited.

    Where processes compute on accelerators, their own connection (NCCL) would do the sum after all work that is queued;
    the hosts then agree over gloo. Every process makes one, at the same time.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        apart = accelerator.num_processes > 1 and accelerator.device.type != "cpu"
        apart = apart and torch.distributed.is_initialized() and torch.distributed.is_gloo_available()
        self._group = torch.distributed.new_group(backend="gloo") if apart else None

    def summed(self, *values: float) -> list[float]:
        """Return each value summed over all processes; every process must call this."""
        if self._group is None:
            return summed(self._accelerator, *values)
        sums = torch.tensor(values, dtype=torch.float64, device="cpu")
        torch.distributed.all_reduce(sums, group=self._group)
        return list(sums.tolist())


@contextlib.contextmanager
def stop_on_signal(request: Callable[[int], None]) -> Iterator[None]:
    """Call `request` with its number when SIGINT (Ctrl-C) or SIGTERM arrives, instead of what these do otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        name: signal.signal(name, lambda number, _: request(number)) for name in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
