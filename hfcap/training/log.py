"""log.jsonl, trackers and the machine's peak memory."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from hfcap.errors import UserError
from hfcap.progress import error_console
from hfcap.training.log_file import cut_end

_STATUS = Path("/proc/self/status")
_CLEAR_PEAK = Path("/proc/self/clear_refs")
"""Linux: writing 5 sets VmHWM, the peak in _STATUS, back to what is resident now."""


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
        """Append one row."""
        if not self.accelerator.is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
        numbers = {name: value for name, value in row.items() if name != "step" and value is not None}
        self.accelerator.log(numbers, step=row["step"])


def restart_peak_memory(device: torch.device) -> None:
    """Count peak memory from now on: earlier work of this process, or of the one that started it, is not training's.

    Only CUDA and Linux can; elsewhere the peak stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.init()  # before it there are no statistics, which is an error
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_PEAK.exists():
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
