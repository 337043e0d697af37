"""Batches that the memory does not hold: the same updates in smaller parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from hfcap.data.loading import CaptionBatch
from hfcap.errors import StoppedError, WorkError
from hfcap.failures.memory import parts_of
from hfcap.recipe.blocks import Recipe
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.training.harness import assert_same_path, assert_same_tensors, send_signal_at, tiny_recipe, train

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB"


def hold(images: int, monkeypatch: pytest.MonkeyPatch, where: str = "backward") -> list[int]:
    """Let the memory hold so many images; return what sizes were computed, when training is over."""
    forward = CrossEntropy.forward
    sizes: list[int] = []

    hooks: list[RemovableHandle] = []

    def full(_: object = None) -> None:
        for hook in hooks:
            hook.remove()
        raise torch.OutOfMemoryError(FULL)

    def limited(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        too_many = self.training and len(batch.images) > images
        if too_many and where == "forward":
            full()
        loss = forward(self, batch)
        if too_many:
            # The decoder has its gradients by then, the encoder has none.
            hooks.append(next(w for name, w in self.model.named_parameters() if "encoder" in name).register_hook(full))
        elif self.training:
            sizes.append(len(batch.images))
        return loss

    monkeypatch.setattr(CrossEntropy, "forward", limited)
    return sizes


def recipe(folder: Path, **train_options: Any) -> Recipe:
    # Plain gradient descent: what a wrong gradient moves is not scaled away.
    options: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "dropout": 0.0,
        "logging_steps": 1,
        "save_steps": 1,
    }
    options |= {"save_steps": 1, "max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    return tiny_recipe("vit_gpt2", folder, **(options | train_options))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_same_updates_in_smaller_parts(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(recipe(tmp_path / "plain"))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        sizes = hold(2, patch, where)
        parts = train(recipe(tmp_path / "parts"))
    assert max(sizes) == 2 and parts.summary["images_seen"] == plain.summary["images_seen"]
    assert_same_path(parts, plain, step=4, earlier=3)
    assert parts.losses == pytest.approx(plain.losses, rel=1e-5)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("The memory is too small for 4 images at once: training goes on with at most 2") == 1
    assert parts.state(4)["batch_parts"] == 2


def test_a_resumed_training_begins_with_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        hold(1, patch)
        whole = train(recipe(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        hold(1, patch)
        send_signal_at(2, patch)
        with pytest.raises(StoppedError):
            train(recipe(tmp_path / "resumed"))
    # The memory would now hold everything: what is computed together stays as it was.
    sizes = hold(9, monkeypatch)
    resumed = train(recipe(tmp_path / "resumed"))
    assert set(sizes) == {1}
    assert_same_tensors(resumed.weights(4), whole.weights(4))


def test_one_image_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(0, monkeypatch, "forward")
    with pytest.raises(
        WorkError, match=r"step 1 of the training: .* too small for one image at a time; .*gradient_checkpointing"
    ):
        train(recipe(tmp_path))


@pytest.mark.parametrize(
    "words", [FULL, "MPS backend out of memory (MPS allocated: 8 GB)", "DefaultCPUAllocator: can't allocate memory: 9"]
)
def test_an_update_that_the_memory_is_too_small_for_is_not_tried_again(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's averages are made in its first step, group after group: some weights have changed when one fails."""
    options: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 1e-2}
    whole = train(recipe(tmp_path / "whole", **options))
    step = torch.optim.AdamW.step
    calls: list[torch.optim.Optimizer] = []

    def full(self: torch.optim.AdamW, closure: Any = None) -> None:
        calls.append(self)
        if len(calls) == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0].zero_()
            raise torch.OutOfMemoryError(words) if words == FULL else RuntimeError(words)
        step(self, closure)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", full)
        with pytest.raises(
            WorkError, match=r"^step 3: the memory is too small for weights, gradients and the state .*train\.optim"
        ):
            train(recipe(tmp_path / "cut", **options))
    assert len(calls) == 3
    resumed = train(recipe(tmp_path / "cut", **options))
    assert resumed.steps == whole.steps and resumed.state(4)["batch_parts"] == 1
    for name in ("model", "optimizer"):
        assert_same_tensors(resumed.weights(4, name), whole.weights(4, name))


def test_the_validation_loss_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"max_steps": 2, "eval_steps": 1, "per_device_eval_batch_size": 4}
    plain = train(recipe(tmp_path / "plain", **options))
    capsys.readouterr()
    forward = CrossEntropy.forward
    sizes: list[int] = []

    def limited(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        if not self.training:
            sizes.append(len(batch.images))
            if len(batch.images) > 1:
                raise RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")
        return forward(self, batch)

    monkeypatch.setattr(CrossEntropy, "forward", limited)
    parts = train(recipe(tmp_path / "parts", **options))
    assert sizes == [4, 2, 1, 1, 1, 1, *[1, 1, 1, 1]]  # the second validation begins with what fits
    losses = [[row["validation_loss"] for row in one.rows if "validation_loss" in row] for one in (parts, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[1]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "too small for the validation loss of 4 images at once: it goes on with 2 at a time (train.per_dev" in said
    assert_same_tensors(parts.weights(2), plain.weights(2))


def test_an_image_that_is_too_large_to_validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CrossEntropy.forward

    def limited(self: CrossEntropy, batch: CaptionBatch) -> torch.Tensor:
        if not self.training:
            raise torch.OutOfMemoryError(FULL)
        return forward(self, batch)

    monkeypatch.setattr(CrossEntropy, "forward", limited)
    with pytest.raises(WorkError, match=r"the accelerator's memory is too small .*halve per_device_eval_batch_size"):
        train(recipe(tmp_path, max_steps=1))


def test_parts_keep_order_and_are_even() -> None:
    assert parts_of([[5, 3, 8, 1, 9], [2]], 2) == [[5, 3], [8, 1, 9], [2]]
    assert parts_of([[5, 3, 8]], 8) == [[5], [3], [8]]
    assert parts_of([[5, 3, 8], [1, 2]], 1) == [[5, 3, 8], [1, 2]]
