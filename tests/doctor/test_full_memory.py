"""Batches that the memory does not hold: training computes them in parts, and the doctor says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap.data.loading import CaptionBatch
from hfcap.doctor.cost import Memory, report_memory
from hfcap.doctor.findings import Findings
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.doctor.examined import problems_of, report_of, the_error, tiny_recipe

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
]


def hold(images: int, error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the memory hold so many images; return the sizes of batches that were computed."""
    forward = CrossEntropy.forward
    sizes: list[int] = []

    def limited(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        trains = self.training and self.model.training
        if trains and len(batch.images) > images:
            raise error
        if trains:
            sizes.append(len(batch.images))
        return forward(self, batch)

    monkeypatch.setattr(CrossEntropy, "forward", limited)
    return sizes


def recipe(folder: Path) -> Any:
    return tiny_recipe(folder, train={"per_device_train_batch_size": 8}, data={"n_train": 8})


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "mps", "cpu"])
def test_a_batch_that_training_cuts_is_a_warning(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = hold(2, error, monkeypatch)
    report = report_of(recipe(tmp_path), healthy=True, steps=1)
    assert (max(sizes), report["measured"]["images"], report["measured"]["too_many"]) == (2, 2, 4)
    (warning,) = [one for one in problems_of(report, "warning") if "memory" in one]
    assert warning.startswith(
        "train.per_device_train_batch_size: the memory does not hold 4 images at once; a training"
    )
    remedy = next(one["remedy"] for one in report["problems"] if "memory" in one["message"])
    assert remedy.startswith("lower it (now 8) to 2, which it holds, and raise train.gradient_accumulation_steps")
    assert report["cost"] is not None


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "mps", "cpu"])
def test_one_image_that_is_too_large_is_an_error(
    error: RuntimeError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(0, error, monkeypatch)
    report = report_of(recipe(tmp_path), healthy=False, steps=1)
    found = the_error(report, "is too small for a training step with one image")
    assert found.startswith("train: the memory of the device (cpu (")


def test_other_errors_are_no_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        report_of(recipe(tmp_path), healthy=False, steps=1)


@pytest.mark.parametrize(
    ("available", "cuts", "level"),
    [
        (2000, True, None),
        (1050, True, "warning"),
        (900, True, "warning"),  # 200 + 100 for each of 8 images
        (900, False, "error"),
        (290, True, "error"),
    ],
)
def test_what_the_estimate_makes_of_memory_that_is_too_small(
    available: int, cuts: bool, level: str | None, tmp_path: Path
) -> None:
    findings = Findings()
    report_memory(recipe(tmp_path), Memory(50, 50, 100, 0, 800, available), findings, cuts_batches=cuts)
    assert [problem.level for problem in findings.problems] == ([] if level is None else [level])
    if level is not None:
        cut = "goes on with fewer at a time" in findings.problems[0].message
        assert cut is (available == 900 and cuts)
