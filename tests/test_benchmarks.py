"""The speed benchmarks run with small models, compare like with like, and write their JSON; no time is asserted."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

pytestmark = pytest.mark.usefixtures("forks")
ROOT = Path(__file__).resolve().parents[1]


def _run(tmp_path: Path, script: str, *arguments: str) -> Any:
    output = tmp_path / "result.json"
    command = [
        sys.executable,
        str(ROOT / "scripts" / script),
        "--size",
        "small",
        "--threads",
        "1",
        "--rounds",
        "1",
        *arguments,
    ]
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


def test_models_at_their_own_resolution_say_the_same_on_both_sides(tmp_path: Path) -> None:
    asked = ("--kinds", "qwen2_5_vl", "--images", "6", "--batch-size", "3", "--max-new-tokens", "4")
    alone, together = _run(tmp_path, "bench_own_resolution.py", *asked)["rows"]
    assert (alone["batch_size"], together["batch_size"]) == (1, 3)
    for row in (alone, together):
        assert row["same_captions"] == 1.0 and row["different_captions"] > 3
        assert row["hfcap"]["images_per_second"] > 0


def test_training_gives_both_sides_the_same_number_of_captions(tmp_path: Path) -> None:
    found = _run(
        tmp_path,
        "bench_training.py",
        "--families",
        "blip",
        "--cases",
        "lora",
        "--images",
        "2",
        "--steps",
        "1",
        "--compare-step",
    )
    [row] = found["rows"]
    assert [run["captions"] for side in ("trainer", "hfcap") for run in row[side]["runs"]] == [10, 10]
    assert row["ratio_peak_memory_bytes"] > 0 and row["ratio_with_encoding_over_5_epochs"] > 0
    for loss in (row["loss"], row["loss_after_step"]):
        assert loss["hfcap"] == pytest.approx(loss["trainer"], rel=1e-5)
    assert row["loss_after_step"]["hfcap"] < row["loss"]["hfcap"] - 1e-3
    assert 0 < row["share_of_floor"] < 1, "faster than its products and its memory"
    assert 0 < row["share_of_own_floor"] < 1 and row["ratio_gflop"] > 0.1


def test_the_check_of_a_gpu_ends_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), "--size", "small", "--output", str(output)]
    only = ["--only", "BLIP, captions, float32", "3B", "fp16"]
    result = subprocess.run([*command, *only], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    captions, of_3b, fp16 = json.loads(output.read_text(encoding="utf-8"))["rows"]
    assert captions["same"] is True and captions["ratio_images_per_second"] > 0
    assert of_3b["kind"] == "qwen2_5_vl" and of_3b["ratio_images_per_second"] > 0
    if not torch.cuda.is_available():
        assert fp16 == {"check": "ViT-GPT2, fp16", "not_run": "needs a GPU"}
    late = subprocess.run([*command, *only, "--minutes", "0"], capture_output=True, text=True, check=False)
    assert late.returncode == 0 and late.stdout.count("time was over") == 3


def _side(seconds: list[float], speeds: list[float]) -> dict[str, Any]:
    return {"seconds": seconds, "processor_seconds": seconds, "peak_memory_bytes": 8, "matrix_gflops": speeds}


@pytest.mark.parametrize(("speed", "text"), [(95.0, "2.00 (1.00 to 3.00)"), (90.0, "machine busy")])
def test_a_busy_machine_gives_no_ratio(speed: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sides = importlib.import_module("bench_sides")
    floors = {"floor_seconds": 1.0, "own_floor_seconds": 1.5}
    runs = {
        "plain": [_side([2.0, 2.0], [100.0, speed]), _side([6.0, 6.0], [100.0, 100.0])],
        "hfcap": [_side([2.0, 2.0], [100.0, 100.0]) | floors, _side([2.0, 2.0], [100.0, 100.0])],
    }
    row = sides.summaries(runs, "images", 4)
    assert sides.ratio_text(row, "ratio_images_per_second", even_if_busy=False) == text
    assert sides.ratio_text(row, "ratio_images_per_second", even_if_busy=True) == "2.00 (1.00 to 3.00)"
    assert row["plain"]["images_per_second"] == 1.0 and row["share_of_floor"] == 0.5
    assert row["share_of_own_floor"] == 0.75


def test_products_and_attention_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention on a CPU, which torch's own counter leaves out, counts as it does where it is two plain products."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    floor = importlib.import_module("bench_floor")
    query, key = (torch.randn(2, 4, length, 32, requires_grad=True) for length in (64, 48))
    counts = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend), floor.flop_counter() as counted:
            torch.nn.functional.scaled_dot_product_attention(query, key, key).sum().backward()
        counts.append(counted.get_total_flops())
    # The one kernel computes the weights again in its backward pass: one product more.
    product = 2 * 2 * 4 * 64 * 48 * 32
    assert counts == [7 * product, 6 * product]


def test_each_product_is_run_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor of own shapes runs every product of the work, in training as in inference mode, laid out alike."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    floor = importlib.import_module("bench_floor")
    layer, rows = torch.nn.Linear(48, 32), torch.randn(3, 10, 48)[:, ::2].flatten(0, 1)
    ran: list[tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]]] = []
    alone = floor._alone

    def watched(operation: Any, leaves: list[Any], structure: Any) -> float:
        assert alone(operation, leaves, structure) > 0
        tensors = [leaf.tensor() for leaf in leaves if isinstance(leaf, floor._Like)]
        ran.append((operation.__name__, [tuple(each.shape) for each in tensors], [each.stride() for each in tensors]))
        return 1.0

    monkeypatch.setattr(floor, "_alone", watched)
    found = floor.floors(lambda: [layer(rows).sum().backward() for _ in range(3)], own_bytes=0)
    # Forward one product; backward that of the weight (the rows want no gradient).
    shapes = [("addmm.default", [(32,), (15, 48), (48, 32)]), ("mm.default", [(32, 15), (15, 48)])]
    assert [(name, of_one) for name, of_one, _ in ran] == shapes
    assert ran[0][2] == [(1,), (96, 1), (1, 48)], "rows of a larger tensor, and the weight transposed"
    assert found["own_floor_seconds"] == 6.0 and found["gflop"] == 3 * 2 * (2 * 15 * 48 * 32) / 1e9
    ran.clear()
    with torch.inference_mode():
        floor.floors(lambda: layer(rows[:1].expand(15, 48)), own_bytes=0)
    assert ran == [("addmm.default", shapes[0][1], [(1,), (0, 1), (1, 48)])]


def test_scores_of_many_images_are_measured_on_both_sides(tmp_path: Path) -> None:
    """Two source trees score the same captions, and score files that differ end the benchmark."""
    pytest.importorskip("pycocoevalcap")
    output = tmp_path / "result.json"
    arguments = ["--images", "30", "--against", str(ROOT), "--no-compare", "--output", str(output)]
    command = [sys.executable, "-m", "scripts.bench_scores", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    [row] = json.loads(output.read_text(encoding="utf-8"))
    assert row["n_images"] == 30 and set(row) == {"n_images", "this", "other"}
    for side in ("this", "other"):
        took = row[side]["score"]
        assert took["seconds"] > 0 and took["processor_seconds"] > 0
        assert 50 * 2**20 < took["peak_bytes"] < 2**30


def test_kernels_are_those_that_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting reaches the process that it is measured in, and no other."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    kernels = importlib.import_module("bench_kernels")
    assert kernels.capabilities_here()[0] == "default"
    floors = {"floor_seconds": 1.0, "own_floor_seconds": 2.0}
    says = (
        "import json, torch; name, enabled = torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled; "
        f"print(json.dumps({{'seconds': [name], 'processor_seconds': [enabled]}} | {floors}))"
    )
    for name, _ in kernels.CASES.values():
        (tmp_path / name).write_text(says)
    monkeypatch.setattr(kernels.Path, "with_name", lambda _, name: tmp_path / name)
    monkeypatch.setattr(kernels.statistics, "median", lambda values: values[0])
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    for onednn in ("on", "off"):
        found = kernels.measure("blip-captioning", "default", onednn, 1, "small")
        assert found == {"seconds": "DEFAULT", "processor_seconds": onednn == "on"} | floors
    assert "ATEN_CPU_CAPABILITY" not in os.environ
