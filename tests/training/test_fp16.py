"""fp16 through hfcap's own loop: updates whose gradients overflow change nothing but the scale of the loss.

A CPU stands in for the GPU: torch's autocast and GradScaler compute the same there, and Accelerate alone refuses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.hooks import RemovableHandle

from hfcap.data.loading import CaptionBatch
from hfcap.data.source import load_split
from hfcap.errors import StoppedError, WorkError
from hfcap.files import read_json
from hfcap.recipe.blocks import Recipe
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.loop import TrainingRun
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.train import train_stage
from hfcap.training.updates import Stepper
from tests.training.harness import (
    Result,
    assert_same_tensors,
    forget_accelerator,
    send_signal_at,
    tiny_recipe,
)

RATE, DECAY, EMA = 1e-2, 0.05, 0.9
SCALE = 2.0**10


def recipe(folder: Path, **options: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "weight_decay": DECAY,
        "ema_decay": EMA,
        "dropout": 0.0,
        "save_steps": 1,
        "save_total_limit": 9,
        "eval_steps": 4,
    }
    return tiny_recipe("vit_gpt2", folder, **(defaults | options))


def train_in_fp16(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, scale: float = SCALE) -> Result:
    """Train as `train` does, on an accelerator that is what Accelerate's is on a GPU with mixed_precision: fp16."""
    forget_accelerator()
    run = RunDirectory(Path(recipe.output_dir) / recipe.name)
    accelerator = make_accelerator(recipe, run)
    with monkeypatch.context() as patch:
        patch.setattr(AcceleratorState, "mixed_precision", property(lambda _: "fp16"))
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        splits = {name: load_split(recipe.data, name) for name in ("train", "validation")}
        train_stage(recipe, run, splits, accelerator)
    return Result(run)


def plant_overflow(updates: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one gradient of these updates infinite, as a number that is too large for float16 is."""
    forward = CrossEntropy.forward
    numbers = iter(range(1, 100))

    def planted(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        if self.training and next(numbers) in updates:
            weight = next(w for name, w in self.model.named_parameters() if name.endswith("ln_f.weight"))

            def overflow(gradient: torch.Tensor) -> torch.Tensor:
                handle.remove()
                return gradient * math.inf

            handle: RemovableHandle = weight.register_hook(overflow)
        return forward(self, batch)

    monkeypatch.setattr(CrossEntropy, "forward", planted)


@dataclass
class Before:
    """What an update starts from: weight, gradient, learning rate and decay of each trained tensor."""

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor | None]
    rates: list[float]
    decays: list[float]


def record_updates(monkeypatch: pytest.MonkeyPatch) -> list[Before]:
    step = Stepper.step
    records: list[Before] = []

    def recorded(self: Stepper, number: int) -> bool:
        pairs = [(group, weight) for group in self.optimizer.param_groups for weight in group["params"]]
        records.append(
            Before(
                [weight.detach().double() for _, weight in pairs],
                [None if weight.grad is None else weight.grad.double() for _, weight in pairs],
                [group["lr"] for group, _ in pairs],
                [group["weight_decay"] for group, _ in pairs],
            )
        )
        return step(self, number)

    monkeypatch.setattr(Stepper, "step", recorded)
    return records


def adamw(records: list[Before]) -> list[torch.Tensor]:
    """Weights after these updates alone, by algorithm 2 of Loshchilov and Hutter 2019 (arXiv:1711.05101)."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    found = []
    for place, weight in enumerate(records[0].weights):
        mean = square = torch.zeros_like(weight)
        updates = 0
        for record in records:
            gradient = record.gradients[place]
            if gradient is None:
                continue
            updates += 1
            mean = beta1 * mean + (1 - beta1) * gradient
            square = beta2 * square + (1 - beta2) * gradient**2
            change = (mean / (1 - beta1**updates)) / ((square / (1 - beta2**updates)).sqrt() + epsilon)
            weight = weight - record.rates[place] * (change + record.decays[place] * weight)
        found.append(weight)
    return found


def descent(records: list[Before]) -> list[torch.Tensor]:
    """The same of gradient descent with weight decay."""
    found = []
    for place, weight in enumerate(records[0].weights):
        for record in records:
            gradient = record.gradients[place]
            if gradient is not None:
                weight = weight - record.rates[place] * (gradient + record.decays[place] * weight)
        found.append(weight)
    return found


@pytest.mark.parametrize(("optim", "reference"), [("adamw_torch", adamw), ("sgd", descent)])
def test_an_update_that_overflows_leaves_all_but_the_scale_as_it_was(
    optim: str, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW is torch's fused one, which looks at the gradients itself; gradient descent is not called at all."""
    records = record_updates(monkeypatch)
    plant_overflow({2}, monkeypatch)
    result = train_in_fp16(recipe(tmp_path, optim=optim), monkeypatch)
    assert read_json(result.run.environment, "environment")["precision"]["autocast"] == "float16"
    # Nothing has changed but what was seen, and the scale.
    for name in ("model", "optimizer", "average"):
        assert_same_tensors(result.weights(2, name), result.weights(1, name))
    before, after = result.state(1), result.state(2)
    assert [result.state(step)["scaler"]["scale"] for step in (1, 2, 3, 4)] == [SCALE, SCALE / 2, SCALE / 2, SCALE / 2]
    assert after["scheduler"] == before["scheduler"] and after["average_updates"] == before["average_updates"] == 1
    assert (after["step"], after["images_seen"]) == (2, 2 * before["images_seen"])
    assert [row["grad_norm"] is None for row in result.rows if "loss" in row] == [False, True, False, False]
    # The updates after it are those that the paper makes of the good gradients alone.
    good = [record for number, record in enumerate(records) if number != 1]
    assert [record.rates[0] for record in good] == pytest.approx([RATE, RATE * 3 / 4, RATE * 2 / 4])
    for count in (1, 2):
        ours, way = (
            good[count].weights,
            [now - was for now, was in zip(good[count].weights, good[0].weights, strict=True)],
        )
        assert max(float(one.abs().max()) for one in way) > 1e-3
        for mine, other in zip(ours, reference(good[:count]), strict=True):
            assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)
    assert any(gradient is not None and not gradient.isfinite().all() for gradient in records[1].gradients)


def test_the_moving_average_takes_in_good_updates_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_overflow({1, 3}, monkeypatch)
    result = train_in_fp16(recipe(tmp_path), monkeypatch)
    start, second, fourth = (result.weights(step) for step in (1, 2, 4))
    assert_same_tensors(result.weights(1, "average"), {name: start[name] for name in result.weights(1, "average")})
    for name, found in result.weights(4, "average").items():
        # Averaged with decay min(d, (1 + n) / (10 + n)) at the n-th update.
        first = 2 / 11 * start[name] + 9 / 11 * second[name]
        assert torch.allclose(found, 3 / 12 * first + 9 / 12 * fourth[name], rtol=1e-5, atol=1e-7)
    assert result.state(4)["average_updates"] == 2 and result.state(4)["scaler"]["scale"] == SCALE / 4


def test_a_stopped_training_goes_on_with_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant_overflow({2}, patch)
        whole = train_in_fp16(recipe(tmp_path / "whole"), monkeypatch)
    with monkeypatch.context() as patch:
        plant_overflow({2}, patch)
        send_signal_at(2, patch)
        with pytest.raises(StoppedError):
            train_in_fp16(recipe(tmp_path / "cut"), monkeypatch)
    resumed = train_in_fp16(recipe(tmp_path / "cut"), monkeypatch)
    for name in ("model", "optimizer", "average"):
        assert_same_tensors(resumed.weights(4, name), whole.weights(4, name))
    assert resumed.state(4)["scaler"] == whole.state(4)["scaler"]
    assert resumed.losses == whole.losses


def test_gradients_that_always_overflow_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_overflow(set(range(100)), monkeypatch)
    with pytest.raises(WorkError, match=r"step 2: gradients overflow in fp16, .*; lower train\.learning_rate"):
        train_in_fp16(recipe(tmp_path), monkeypatch, scale=2.0**-9)


def test_the_scale_is_read_once_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading waits for the device."""
    reads: list[int] = []
    read = torch.amp.GradScaler.get_scale
    update = TrainingRun._update

    def counted(self: torch.amp.GradScaler) -> float:
        reads.append(len(updates))
        return read(self)

    updates: list[None] = []

    def noted(self: TrainingRun, *arguments: Any) -> bool:
        updates.append(None)
        return update(self, *arguments)

    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", counted)
    monkeypatch.setattr(TrainingRun, "_update", noted)
    train_in_fp16(recipe(tmp_path, save_steps=4), monkeypatch)
    during = [number for number in reads if number > 1]
    assert sorted(set(during)) == [2, 3, 4] and len(during) <= 4  # and one for the checkpoint
