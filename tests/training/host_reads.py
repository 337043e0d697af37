"""Counting what makes the host wait for a device: it shows on a CPU, where nothing waits."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten._unique",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "aten.bincount",
)
"""`item`, `tolist` of one number, a tensor as a condition, comparisons as a whole, and results whose size depends on
the numbers."""
INDEXED = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index")
"""With a mask they call `nonzero` inside, where nothing sees it."""
COPIES = ("aten._to_copy", "aten.copy_")
UPLOAD = "copy to the device"
"""Of memory that is not pinned: the host waits until the device has done all before it."""
FROM_LISTS = ("tensor", "as_tensor")
MASKS = (torch.bool, torch.uint8)


class CountedReads(TorchDispatchMode):
    """Counts operations that read a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = _read(str(func).rsplit(".", 1)[0], args, kwargs or {})
        if read is not None and not self.paused:
            self.counts[read] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def everywhere(self) -> Iterator[None]:
        """Count inside the block, also what copies a tensor to the host without an operation."""
        with _CountedCopies(self), self:
            yield

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what runs inside."""
        before, self.paused = self.paused, True
        yield
        self.paused = before


def _read(name: str, args: Any, kwargs: Any) -> str | None:
    """Return what an operation counts as; None: nothing waits for it."""
    if name in INDEXED:
        waits = any(index is not None and index.dtype in MASKS for index in args[1])
    elif name == "aten.repeat_interleave":
        waits = kwargs.get("output_size") is None  # of a tensor of counts: how many there are in all
    elif name in COPIES:
        to, source = (kwargs.get("device"), args[0]) if name == "aten._to_copy" else (args[0].device, args[1])
        waits = to is not None and torch.device(to).type != source.device.type
        return UPLOAD if waits and source.device.type == "cpu" else name if waits else None
    else:
        waits = name in READS
    return name if waits else None


class _CountedCopies(TorchFunctionMode):
    def __init__(self, reads: CountedReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "cpu") and not self.reads.paused:
            self.reads.counts[name] += 1
        elif name in FROM_LISTS and not self.reads.paused:
            device = (kwargs or {}).get("device")
            if device is not None and torch.device(device).type != "cpu" and not isinstance(args[0], torch.Tensor):
                self.reads.counts[UPLOAD] += 1
        return func(*args, **(kwargs or {}))
