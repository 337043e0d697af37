"""log.jsonl, what an update leaves for it, trackers and the machine's peak memory."""

from __future__ import annotations

import contextlib
import json
import math
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hfcap.environment import give_freed_memory_back
from hfcap.errors import UserError, WorkError
from hfcap.progress import error_console
from hfcap.training.records.log_file import cut_end

_STATUS = Path("/proc/self/status")
_CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Linux: writing 5 sets VmHWM, the peak in _STATUS, back to what is resident now."""


class LogWindow:
    """Sums since the last row of the log: the loss of this process, counts of all processes.

    Reading a number waits for everything the device still has to do, so the loss and the norm of the gradient stay
    there; `read` fetches them, and with them the first update whose numbers were none.

    Attributes:
        overflow_is_handled: the scaler of fp16 skips updates whose gradients overflow and tries a smaller scale.
    """

    def __init__(self, device: torch.device, loss: float = 0.0, overflow_is_handled: bool = False) -> None:
        self.units = 0.0
        self.images = 0.0
        self.captions = 0.0
        self.waited = 0.0
        self.started = time.perf_counter()
        self.overflow_is_handled = overflow_is_handled
        # Apple's devices know no float64.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.tensor(loss, dtype=dtype, device=device)
        self._grad_norm = torch.zeros_like(self._loss)
        # Step (0: none so far), loss and norm of the first bad update.
        self._bad = torch.zeros(3, dtype=dtype, device=device)

    def add_loss(self, step: int, loss: torch.Tensor, grad_norm: torch.Tensor | float | None) -> None:
        """Take in the summed loss of an update and the norm of its gradient, without waiting for either."""
        loss = loss.detach().to(self._loss)
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm).detach()
        # A number of the host becomes an argument of the device's work, which waits for nothing.
        norm = norm.to(self._loss) if norm.device == loss.device else torch.full_like(loss, float(norm))
        good = loss.isfinite() if self.overflow_is_handled else loss.isfinite() & norm.isfinite()
        now = torch.stack([torch.full_like(loss, step), loss, norm])
        self._bad = torch.where(good | (self._bad[0] > 0), self._bad, now)
        self._loss = self._loss + loss
        self._grad_norm = norm

    def count(self, units: float, images: float, captions: float, waited: float) -> None:
        """Take in what an update had over all processes, and the seconds this one waited for it."""
        self.units += units
        self.images += images
        self.captions += captions
        self.waited += waited

    def read(self) -> tuple[float, float]:
        """Return the summed loss and the last norm of the gradient.

        Raises:
            WorkError: an update since the last reading had numbers that are none.
        """
        loss, norm, step, *values = torch.stack([self._loss, self._grad_norm, *self._bad]).tolist()
        if step:
            raise WorkError(
                f"step {step:.0f}: the summed loss is {values[0]} and the gradient norm {values[1]}; lower "
                "train.learning_rate, or use mixed_precision: bf16 instead of fp16"
            )
        return loss, norm if math.isfinite(norm) else math.inf


class TrainingLog:
    """Appends rows to log.jsonl and hands their numbers to Accelerate's trackers; only the main process writes."""

    def __init__(self, path: Path, accelerator: Any) -> None:
        self.path = path
        self.accelerator = accelerator

    def truncate_after(self, step: int) -> None:
        """Drop rows of updates that a resumed run will do again, and damaged lines at the end; only the end is read.

        Raises:
            UserError: the log is a link: a run directory of somebody else's could let it lead anywhere.
        """
        if self.path.is_symlink():
            raise UserError(f"{self.path}: is a link; put the file itself there, or delete it")
        if self.accelerator.is_main_process and self.path.is_file():
            damaged = cut_end(self.path, step)
            if damaged:
                said = f"warning: {self.path}: {damaged:,} damaged lines at its end were removed"
                error_console.print(said, markup=False, soft_wrap=True)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; trackers get its numbers, and its sample captions as texts."""
        if not self.accelerator.is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
        values = {name: value for name, value in row.items() if name not in ("step", "samples") and value is not None}
        texts = {f"sample/{sample['image_id']}": sample["caption"] for sample in row.get("samples", [])}
        self.accelerator.log({**values, **texts}, step=row["step"])


def restart_peak_memory(device: torch.device) -> None:
    """Count peak memory from now on: earlier work of this process, or of the one that started it, is not training's.

    Only CUDA and Linux can; elsewhere the peak stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.init()  # before it there are no statistics, which is an error
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_PEAK.exists():
        give_freed_memory_back()
        # A container may forbid it: then the peak is that of the whole process, too.
        with contextlib.suppress(OSError):
            _CLEAR_PEAK.write_text("5", encoding="ascii")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since `restart_peak_memory`: of the GPU's allocator, or resident memory of this process on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux starts getrusage's peak at that of the process that started this one; VmHWM (in kB) is our own.
    own = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8")) if _STATUS.exists() else None
    if own is not None:
        return int(own[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
