"""What hfcap gains on a GPU, and whether its results stay the same there: training and captioning of true sizes.

    bash scripts/gpu_check.sh [--size small] [--minutes 8] [--output gpu_check.json]

Random weights; bfloat16 but where a line says otherwise. Each line of the result comes from scripts/bench_training.py,
bench_captioning.py or bench_own_resolution.py, both sides in the same run; the file is written after every line, so
that what was measured stays when time is over. "Same result": training, the loss before and after one step, as far as
bfloat16 allows; captioning in float32, every caption. In bfloat16 near words change places by rounding, so the line
says how many captions are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_sides import machine  # type: ignore[import-not-found]  # next to this script, which runs as a file
from rich.console import Console
from rich.table import Table

from hfcap.files import write_json

FOLDER = Path(__file__).parent
BFLOAT16 = 2**-8
"""Relative spacing of bfloat16 numbers: both sides round states to it, in another order."""


@dataclass(frozen=True)
class Check:
    """One comparison: its name, script and arguments, and those that make it small.

    Attributes:
        needs_gpu: what a CPU cannot do (fp16).
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    needs_gpu: bool = False


def _training(family: str, case: str, images: int, *more: str) -> tuple[str, ...]:
    options = ("--images", str(images), "--steps", "5", "--rounds", "1", "--compare-step")
    return ("--families", family, "--cases", case, *options, *more)


def checks(small: bool) -> list[Check]:
    """Return what is measured, the most telling first."""
    few = 2 if small else 0
    bf16 = ("--precision", "bf16")
    words = ("--batch-size", str(few or 64), "--rounds", "1")
    of_3b = ("--kinds", "qwen2_5_vl", "--images", str(few or 64), "--batch-size", str(few or 32), "--only-batches")
    of_3b += ("--rounds", "1", *(() if small else ("--size", "3b")))
    return [
        Check("BLIP, all weights", "training", _training("blip", "full", few or 16, *bf16)),
        Check("BLIP, LoRA, features kept", "training", _training("blip", "lora", few or 32, *bf16)),
        Check("BLIP, captions", "captioning", ("--families", "blip", *words, *bf16)),
        Check("BLIP, captions, float32", "captioning", ("--families", "blip", *words)),
        Check("Qwen2.5-VL 3B, captions", "own_resolution", of_3b),
        Check("ViT-GPT2, all weights", "training", _training("vit_gpt2", "full", few or 32, *bf16)),
        Check("ViT-GPT2, captions", "captioning", ("--families", "vit_gpt2", *words, *bf16)),
        Check("CLIP + GPT-2, LoRA, features kept", "training", _training("clip_prefix", "lora", few or 32, *bf16)),
        Check("CLIP + GPT-2, captions", "captioning", ("--families", "clip_prefix", *words, *bf16)),
        Check("ViT-GPT2, fp16", "training", _training("vit_gpt2", "full", few or 32, "--precision", "fp16"), True),
        Check("ViT-GPT2, torch.compile", "training", _training("vit_gpt2", "full", few or 32, *bf16, "--compile")),
    ]


def run_check(check: Check, size: str, seconds: float) -> dict[str, Any]:
    """Run one comparison; return its row, or what kept it from one."""
    if check.needs_gpu and not torch.cuda.is_available():
        return {"check": check.name, "not_run": "needs a GPU"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "row.json"
        script = str(FOLDER / f"bench_{check.script}.py")
        command = [sys.executable, script, "--size", size, "--output", str(output), "--even-if-busy", *check.arguments]
        # A group of its own: the benchmark's sides are processes too, and must not go on computing.
        running = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
        )
        try:
            _, errors = running.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            return {"check": check.name, "not_run": f"was not done in {seconds:.0f} seconds"}
        if running.returncode != 0:
            return {"check": check.name, "failed": errors[-1500:]}
        [row] = json.loads(output.read_text(encoding="utf-8"))["rows"]
    found = {"check": check.name, **row}
    of_words = "same_captions" in row and ("bf16" in check.arguments or "3b" in check.arguments)
    return found if of_words else {**found, "same": _is_same(row)}


def _is_same(row: dict[str, Any]) -> bool:
    """Whether losses, before and after a step, agree as far as bfloat16 allows, or captions all do."""
    if "loss" not in row:
        return bool(row["same_captions"] == 1.0)
    pairs = [(row[name]["hfcap"], row[name]["trainer"]) for name in ("loss", "loss_after_step")]
    return all(abs(ours - theirs) <= BFLOAT16 * abs(theirs) for ours, theirs in pairs)


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    head = ("ratio of speed", "hfcap, per second", "peak memory", "GPU busy", "same result")
    table = Table("check", *head, title=str(result["machine"]["gpu"] or result["machine"]["processor"]))
    for row in result["rows"]:
        if "not_run" in row or "failed" in row:
            table.add_row(row["check"], row.get("not_run", "FAILED"))
            continue
        what = "captions" if "loss" in row else "images"
        table.add_row(
            row["check"],
            f"{row[f'ratio_{what}_per_second']:.2f}",
            f"{row['hfcap'][f'{what}_per_second']:,.1f} {what}",
            f"{row['hfcap']['peak_memory_bytes'] / 2**30:.1f} GiB",
            f"{row['gpu_busy_share']:.0%}" if "gpu_busy_share" in row else "",
            _same_text(row),
        )
    Console(width=110).print(table)
    for row in result["rows"]:
        if "failed" in row:
            print(f"{row['check']}:\n{row['failed']}", file=sys.stderr)


def _same_text(row: dict[str, Any]) -> str:
    if "same" not in row:
        return f"{row['same_captions']:.0%} of captions"
    return "yes" if row["same"] else "NO"


def main() -> int:
    """Measure until all is done or time is over; 1 where a comparison failed or gave other results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["true", "small"], default="true")
    parser.add_argument("--minutes", type=float, default=8, help="what is not begun by then is left out")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of checks")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = {"machine": machine(), "size": options.size, "rows": []}
    for check in checks(options.size == "small"):
        if options.only and not any(part in check.name for part in options.only):
            continue
        left = end - time.monotonic()
        late = {"check": check.name, "not_run": "time was over"}
        result["rows"].append(run_check(check, options.size, left) if left > 0 else late)
        write_json(options.output, result)
        print(json.dumps({"check": check.name, "seconds_left": round(end - time.monotonic())}), flush=True)
    show(result)
    return int(any("failed" in row or row.get("same") is False for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
