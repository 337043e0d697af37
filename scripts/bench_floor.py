"""What a piece of work must take at least on this machine: its products and attention, and the memory it must move.

Two floors. One takes each product at the speed of a large square one. The other runs each product of the work by
itself, with its own shapes, over and over: narrow products never reach the speed of a square one, and their operands
lie in the cache then, so this is still less than they can take within the work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def matrix_speed(size: int = 1536, repeats: int = 8) -> float:
    """GFLOP/s of a float32 matrix product on this machine now: best of `repeats`."""
    left, right = (torch.randn(size, size, device=_DEVICE) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: left @ right, repeats) / 1e9


def copy_speed(megabytes: int = 256, repeats: int = 5) -> float:
    """GB/s at which this machine reads memory now: a sum over a large tensor, best of `repeats`."""
    values = torch.ones(megabytes * 250_000, device=_DEVICE)
    return megabytes / 1000 / _best_seconds(values.sum, repeats)


def _best_seconds(work: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        if _DEVICE == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def _attention(query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    batch, heads, length, width = query
    return int(4 * batch * heads * length * key[-2] * width)


def _attention_backward(gradient: Any, query: Any, key: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _attention(query, key) * 5 // 2  # five products of that size, where forward has two


_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of the floating-point operations of products; it lacks attention on a CPU."""
    return FlopCounterMode(display=False, custom_mapping=_ATTENTION)


class _Like(NamedTuple):
    """A tensor but for its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> torch.Tensor:
        """Another one with the same place in memory for each value."""
        size = 1 + sum((count - 1) * step for count, step in zip(self.shape, self.stride, strict=True))
        memory = torch.empty(size, dtype=self.dtype, device=_DEVICE)
        filled = memory.normal_() if self.dtype.is_floating_point else memory.zero_()
        return filled.as_strided(self.shape, self.stride)


class _Products(TorchDispatchMode):
    """Counts the products and attentions of what runs, by operation and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, tuple[Any, ...], Any]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet in flop_registry or packet in _ATTENTION:
            leaves, structure = tree_flatten((args, kwargs))
            self.counts[func, tuple(map(_kept, leaves)), structure] += 1
        elif func is not torch.ops.prim.device.default:
            with self:  # a linear layer in inference mode is a product only after this
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return func(*args, **kwargs)


def _kept(leaf: Any) -> Any:
    return _Like(tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


def _alone(operation: Any, leaves: Iterable[Any], structure: Any) -> float:
    """Seconds of one such product by itself, best of 5."""
    made = [leaf.tensor() if isinstance(leaf, _Like) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(made, structure)
    return _best_seconds(lambda: operation(*args, **kwargs), 5)


def floors(work: Callable[[], object], own_bytes: int, weight_bytes: int = 0) -> dict[str, float]:
    """Run the work once more and return `floor_seconds`, `own_floor_seconds` and its `gflop`.

    Args:
        own_bytes: memory that must be moved and that no product moves. weight_bytes: what products must read from
            memory; it counts for the first floor only, as a product by itself reads its operands.
    """
    with flop_counter() as counted:
        work()
    with _Products() as products:
        work()
    gflop, bandwidth = counted.get_total_flops() / 1e9, copy_speed() * 1e9
    with torch.inference_mode():
        own = sum(times * _alone(*product) for product, times in products.counts.items())
    return {
        "gflop": gflop,
        "floor_seconds": gflop / matrix_speed() + (own_bytes + weight_bytes) / bandwidth,
        "own_floor_seconds": own + own_bytes / bandwidth,
    }
