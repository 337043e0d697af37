"""Two sides of a comparison in turns, each in its own process: machine, clock, medians, spread.

A process of its own makes the peak memory of a side its own too. Between the sides a matrix product is timed: where its
speed varies, something else ran, and a ratio of two times says little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_floor import matrix_speed  # type: ignore[import-not-found]  # next to this script, which runs as a file
from bench_models import FAMILIES  # type: ignore[import-not-found]

from hfcap.training.records.log import peak_memory_bytes

BUSY = 0.1
"""The machine is busy where the speed of one product varies by more than this share in the course of a comparison."""


def machine() -> dict[str, Any]:
    """Hardware and versions, for the JSON file."""
    import transformers

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine_text(found: dict[str, Any]) -> str:
    """Return the heading of a table: the machine of `machine`, and how busy it was at the start."""
    return f"{found['processor']}, {found['kernels']}, {found['cores']} cores, load {found['load_average']}"


class Clock:
    """Wall and processor seconds of each piece of work; the first one warms up."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was measured and start now."""
        self.marks = [(time.perf_counter(), time.process_time())]

    def tick(self) -> None:
        """A piece of work has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, Any]:
        """Seconds of each piece without the first, and the peak memory of this process."""
        pairs = list(zip(self.marks[1:-1], self.marks[2:], strict=True))
        return {
            "seconds": [after[0] - before[0] for before, after in pairs],
            "processor_seconds": [after[1] - before[1] for before, after in pairs],
            "peak_memory_bytes": peak_memory_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }


def in_turns(script: str, arguments: Sequence[str], sides: Sequence[str], rounds: int) -> dict[str, list[Any]]:
    """Run the sides of a comparison one after the other, `rounds` times, so that all meet the same machine.

    Each run gets `matrix_gflops`: the speed of a product before and after it.
    """
    runs: dict[str, list[Any]] = {side: [] for side in sides}
    speed = matrix_speed()
    for _ in range(rounds):
        for side, found in runs.items():
            run, before = run_child(script, [*arguments, "--side", side]), speed
            speed = matrix_speed()
            found.append({**run, "matrix_gflops": [before, speed]})
    return runs


def summaries(runs: dict[str, list[Any]], what: str, count: int) -> dict[str, Any]:
    """Return for each side its medians over all runs, and hfcap's ratios to the other side.

    Beside them: `ratio_spread`, least and greatest ratio of wall time among the rounds; `quiet`, whether the speed of
    products stayed the same all the time; and where the sides counted their work, `ratio_gflop` of the other side's to
    hfcap's, `share_of_floor` and `share_of_own_floor`.

    Args:
        what: what is counted ("captions"). count: how many of it one measured piece of work has.
    """
    found: dict[str, Any] = {}
    for side, of_side in runs.items():
        seconds, processor = ([s for run in of_side for s in run[key]] for key in ("seconds", "processor_seconds"))
        found[side] = {
            f"{what}_per_second": count / statistics.median(seconds),
            f"{what}_per_processor_second": count / statistics.median(processor),
            "peak_memory_bytes": max(run["peak_memory_bytes"] for run in of_side),
            "runs": of_side,
        }
    [other] = set(runs) - {"hfcap"}
    ratios = [
        statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"])
        for ours, theirs in zip(runs["hfcap"], runs[other], strict=True)
    ]
    counts = {side: of_side[0]["gflop"] for side, of_side in runs.items() if "gflop" in of_side[0]}
    if len(counts) == 2:
        found["ratio_gflop"] = counts[other] / counts["hfcap"]
    speeds = [speed for of_side in runs.values() for run in of_side for speed in run["matrix_gflops"]]
    found["ratio_spread"] = [min(ratios), max(ratios)]
    found["quiet"] = max(speeds) <= (1 + BUSY) * min(speeds)
    for floor in ("floor", "own_floor"):
        shares = [
            run[f"{floor}_seconds"] / statistics.median(run["seconds"])
            for run in runs["hfcap"]
            if f"{floor}_seconds" in run
        ]
        if shares:
            found[f"share_of_{floor}"] = statistics.median(shares)
    return found | {
        f"ratio_{name}": value / found[other][name] for name, value in found["hfcap"].items() if name != "runs"
    }


def ratio_text(row: dict[str, Any], name: str, even_if_busy: bool) -> str:
    """Return a ratio of `summaries` for the table; none where something else ran."""
    if not row["quiet"] and not even_if_busy:
        return "machine busy"
    least, greatest = row["ratio_spread"]
    spread = f" ({least:.2f} to {greatest:.2f})" if name.endswith("_per_second") and least < greatest else ""
    return f"{row[name]:.2f}{spread}"


def speed_texts(row: dict[str, Any], even_if_busy: bool) -> list[str]:
    """Return both sides' images per second, and the ratios by the clock and by processor time, for the table."""
    speeds = [f"{row[side]['images_per_second']:.2f}" for side in ("generate", "hfcap")]
    ratios = ("ratio_images_per_second", "ratio_images_per_processor_second")
    return [*speeds, *(ratio_text(row, name, even_if_busy) for name in ratios)]


def arithmetic_text(row: dict[str, Any]) -> str:
    """Return the ratio of both sides' products and attention, counted: what decides where nothing else takes time."""
    return f"{row['ratio_gflop']:.2f}" if "ratio_gflop" in row else ""


def floor_text(row: dict[str, Any]) -> str:
    """Return how near hfcap came to its two floors (bench_floor.py)."""
    known = "share_of_floor" in row and row["quiet"]
    return f"{row['share_of_floor']:.0%}, {row['share_of_own_floor']:.0%}" if known else ""


def benchmark_parser(
    description: str | None, sides: Sequence[str], sizes: Sequence[str] = ("true", "small")
) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have; `--side` and `--family` are for child processes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes, default="true")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=3, help="how often the two sides take turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--even-if-busy",
        action="store_true",
        help=f"show ratios although the speed of a product varied by more than {BUSY:.0%}% meanwhile",
    )
    parser.add_argument("--side", choices=sides, help=argparse.SUPPRESS)
    parser.add_argument("--family", help=argparse.SUPPRESS)
    return parser


def options_for_child(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Spell these options as arguments of a child process."""
    return [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]


def run_child(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run one side in a fresh process and return the JSON object on its last line."""
    command = [sys.executable, script, *arguments]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed ({result.returncode}):\n{result.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found
