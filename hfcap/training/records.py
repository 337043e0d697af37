"""log.jsonl, trackers and the machine's peak memory."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from hfcap.files import write_json_lines


class TrainingLog:
    """Appends rows to log.jsonl and hands their numbers to Accelerate's trackers; only the main process writes."""

    def __init__(self, path: Path, accelerator: Any) -> None:
        self.path = path
        self.accelerator = accelerator

    def cut_behind(self, step: int) -> None:
        """Drop rows of updates that a resumed run will do again, and a last line that a kill cut off."""
        if self.accelerator.is_main_process and self.path.is_file():
            complete_lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
            rows = map(json.loads, complete_lines)
            write_json_lines(self.path, [row for row in rows if row["step"] <= step])

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        if not self.accelerator.is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
        numbers = {name: value for name, value in row.items() if name != "step" and value is not None}
        self.accelerator.log(numbers, step=row["step"])


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the GPU's allocator, or of this process on CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
