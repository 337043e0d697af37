"""How near training and captioning come to their floor with each of torch's kernels, and what the kernels change.

    python scripts/bench_kernels.py [--capabilities default avx2] [--onednn on off] [--threads 1 2] [--cases blip-lora]

Runs hfcap's side of bench_training.py and bench_captioning.py, in a new process for each setting: torch's own kernels
of this capability (ATEN_CPU_CAPABILITY; those beyond the machine's are left out), oneDNN's on or off. The settings take
turns, and the best of `--rounds` counts. The two floors are those of these benchmarks, with the same kernels
(bench_floor.py): the products of the work at the speed of a large square one, and each of them by itself.
"""

from __future__ import annotations

import argparse
import os
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from bench_floor import matrix_speed  # type: ignore[import-not-found]  # next to this script, which runs as a file
from bench_sides import machine, machine_text, run_child  # type: ignore[import-not-found]
from rich.console import Console
from rich.table import Table

from hfcap.files import write_json

_CAPABILITIES = ("default", "avx2", "avx512")
"""From the plainest on; a machine has the kernels of its own and of all before it."""
CASES: dict[str, tuple[str, list[str]]] = {
    "blip-full": ("bench_training.py", ["--family", "blip", "--case", "full", "--images", "2"]),
    "blip-lora": ("bench_training.py", ["--family", "blip", "--case", "lora", "--images", "2"]),
    "vit_gpt2-lora": ("bench_training.py", ["--family", "vit_gpt2", "--case", "lora", "--images", "4"]),
    "clip_prefix-lora": ("bench_training.py", ["--family", "clip_prefix", "--case", "lora", "--images", "4"]),
    "blip-captioning": ("bench_captioning.py", ["--family", "blip", "--batch-size", "4"]),
}


def capabilities_here() -> list[str]:
    """Return the names of torch's kernels that run on this processor."""
    own = torch.backends.cpu.get_cpu_capability().lower()
    return list(_CAPABILITIES[: _CAPABILITIES.index(own) + 1]) if own in _CAPABILITIES else ["default"]


def run_without_onednn(script: str, arguments: list[str]) -> None:
    """Run a benchmark's side in this process, without oneDNN's kernels."""
    torch.backends.mkldnn.set_flags(False)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def measure(case: str, capability: str, onednn: str, threads: int, size: str) -> dict[str, Any]:
    """Return seconds of one update or batch, and its floor's share of them, in a new process."""
    name, arguments = CASES[case]
    script = str(Path(__file__).with_name(name))
    command = [*arguments, "--side", "hfcap", "--size", size, "--threads", str(threads)]
    before = os.environ.get("ATEN_CPU_CAPABILITY")
    os.environ["ATEN_CPU_CAPABILITY"] = capability
    try:
        found = run_child(__file__, ["--plain", script, *command]) if onednn == "off" else run_child(script, command)
    finally:
        os.environ.pop("ATEN_CPU_CAPABILITY")
        if before is not None:
            os.environ["ATEN_CPU_CAPABILITY"] = before
    return {
        "seconds": statistics.median(found["seconds"]),
        "processor_seconds": statistics.median(found["processor_seconds"]),
        "floor_seconds": found["floor_seconds"],
        "own_floor_seconds": found["own_floor_seconds"],
    }


def main() -> None:
    """Measure all settings."""
    if sys.argv[1:2] == ["--plain"]:
        run_without_onednn(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", nargs="+", choices=_CAPABILITIES, default=list(_CAPABILITIES))
    parser.add_argument("--onednn", nargs="+", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--size", choices=["true", "small"], default="true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    here = [name for name in options.capabilities if name in capabilities_here()]
    settings = [(name, onednn, count) for name in here for onednn in options.onednn for count in options.threads]
    result: dict[str, Any] = {"machine": machine(), "size": options.size, "rows": []}
    best: dict[tuple[str, tuple[str, str, int]], dict[str, Any]] = {}
    speeds = [matrix_speed()]
    for _ in range(options.rounds):
        for case in options.cases:
            for setting in settings:
                found = measure(case, *setting, options.size)
                speeds.append(matrix_speed())
                known = best.setdefault((case, setting), found)
                if found["seconds"] < known["seconds"]:
                    best[case, setting] = found
    table = Table("case", "kernels", "oneDNN", "threads", "seconds", "processor seconds", "of the floors' speed")
    table.title = machine_text(result["machine"])
    for (case, (name, onednn, count)), found in best.items():
        shares = (found[floor] / found["seconds"] for floor in ("floor_seconds", "own_floor_seconds"))
        result["rows"].append({"case": case, "kernels": name, "onednn": onednn, "threads": count, **found})
        times = (f"{found['seconds']:.2f}", f"{found['processor_seconds']:.2f}")
        table.add_row(case, name, onednn, str(count), *times, ", ".join(f"{share:.0%}" for share in shares))
    result["product_gflops"] = [min(speeds), max(speeds)]
    console = Console()
    console.print(table)
    console.print(f"a product between them: {min(speeds):.0f} to {max(speeds):.0f} GFLOP/s")
    if options.output:
        write_json(options.output, result)


if __name__ == "__main__":
    main()
