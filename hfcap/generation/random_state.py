"""Random states of the CPU and of the device in use, which `torch.manual_seed` seeds together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

_CPU, _CUDA, _MPS = "torch", "cuda", "mps"


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of what draws on the CPU and on `device`, for `restore_random_states`; no device is waited for.

    Returns:
        "torch", and "cuda" or "mps" -> the state in bytes, on the CPU.
    """
    states = {_CPU: torch.get_rng_state()}
    if device.type == _CUDA:
        states[_CUDA] = torch.cuda.get_rng_state(device)
    elif device.type == _MPS:
        states[_MPS] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on drawing from these states; one that is not among them stays as it is.

    Raises:
        KeyError: that of the CPU is missing. RuntimeError, TypeError: one is no random state.
    """
    torch.set_rng_state(states[_CPU])
    if device.type == _CUDA and _CUDA in states:
        torch.cuda.set_rng_state(states[_CUDA], device)
    elif device.type == _MPS and _MPS in states:
        torch.mps.set_rng_state(states[_MPS])


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Let what is drawn inside the block, on the CPU and on `device`, change nothing that is drawn after it."""
    states = random_states(device)
    try:
        yield
    finally:
        restore_random_states(states, device)
