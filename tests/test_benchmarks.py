"""The speed benchmarks run with small models, compare like with like, and write their JSON; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def _run(tmp_path: Path, script: str, *arguments: str) -> Any:
    output = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "scripts" / script), "--size", "small", "--threads", "1", *arguments]
    result = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text(encoding="utf-8"))


def test_captioning_says_the_same_on_both_sides(tmp_path: Path) -> None:
    found = _run(
        tmp_path, "bench_captioning.py", "--families", "vit_gpt2", "--batch-size", "3", "--max-new-tokens", "4"
    )
    [row] = found["rows"]
    assert row["same_captions"] == 1.0
    assert row["different_captions"] > 1, "every image got the same caption: the comparison shows little"
    assert row["hfcap"]["images_per_second"] > 0 and found["machine"]["cores"] > 0


def test_training_gives_both_sides_the_same_number_of_captions(tmp_path: Path) -> None:
    found = _run(
        tmp_path, "bench_training.py", "--families", "blip", "--cases", "lora", "--images", "2", "--steps", "1"
    )
    [row] = found["rows"]
    assert [run["captions"] for side in ("trainer", "hfcap") for run in row[side]["runs"]] == [10, 10]
    assert row["ratio_peak_memory_bytes"] > 0 and row["ratio_with_encoding_over_5_epochs"] > 0
