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
