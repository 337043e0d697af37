"""What a checkpoint holds comes back as it was, in the process that wrote it, and nothing else is taken for one."""

from __future__ import annotations

import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hfcap.errors import UserError, WorkError
from hfcap.training.checkpoint import (
    CHECKSUMS,
    Progress,
    checkpoint_path,
    checkpoint_steps,
    damage_of,
    fit_progress,
    load_checkpoint,
    load_weights,
    prune_checkpoints,
    remove_unfinished,
    restore_schedule,
    set_damaged_aside,
)
from hfcap.training.optimization import MovingAverage, trained_parameters
from tests.training.harness import assert_same_tensors
from tests.training.small_training import Training, process


def optimizer_state(training: Training) -> dict[str, torch.Tensor]:
    return {
        f"{name} {key}": value
        for name, parameter in training.parameters.items()
        for key, value in training.optimizer.state[parameter].items()
    }


def test_everything_comes_back(tmp_path: Path) -> None:
    ours = Training(seed=1, updates=3)
    progress = Progress(
        step=12, epoch=2, window=3, images_seen=40, captions_seen=90, train_seconds=1.5, best_value=0.25, best_step=6,
        bad_validations=2, stopped_early=True, unlogged_loss=3.5, unlogged_units=7.0, unlogged_sums={"reward": 0.5},
        scheduler={"last_epoch": 12, "_step_count": 13}, steps_per_epoch=5, scaler={"scale": 2.0}, batch_parts=2,
    )  # fmt: skip
    assert all(getattr(progress, f.name) != getattr(Progress(), f.name) for f in fields(Progress) if f.name not in (
        "processes", "average_updates",
    ))  # fmt: skip
    path = ours.save(tmp_path, progress)
    torch_next, python_next = torch.rand(3), random.random()
    theirs = Training(seed=2, updates=1)
    assert theirs.load(path) == progress and progress.average_updates == theirs.average.updates == 3
    assert torch.equal(torch.rand(3), torch_next) and random.random() == python_next
    assert_same_tensors(theirs.parameters, ours.parameters)
    assert_same_tensors(theirs.average.average, ours.average.average)
    assert_same_tensors(optimizer_state(theirs), optimizer_state(ours))
    assert len(optimizer_state(ours)) == 3 * len(ours.parameters) == 12
    mine, kept = dict(theirs.model.named_buffers()), dict(ours.model.named_buffers())
    assert torch.equal(mine["norm.running_mean"], kept["norm.running_mean"]) and kept["norm.num_batches_tracked"] == 3
    assert not torch.equal(mine["computed"], kept["computed"]), "what is computed again is not kept"
    assert not torch.equal(theirs.model.frozen.weight, ours.model.frozen.weight), "frozen weights are not kept"


def test_what_lies_in_a_checkpoint(tmp_path: Path) -> None:
    path = Training(updates=1).save(tmp_path, Progress(step=7))
    assert path.name == "step-00000007" and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    names = {entry.name for entry in path.iterdir()}
    weights = {"model.safetensors", "optimizer.safetensors", "average.safetensors", "random-0.safetensors"}
    assert names == weights | {"state.json", "checksums.json"}
    assert {tensor.dtype for tensor in load_file(path / "average.safetensors").values()} == {torch.float32}


def test_averages_of_half_precision_weights_are_kept_in_float32(tmp_path: Path) -> None:
    ours, theirs = Training(seed=1), Training(seed=2)
    for training in (ours, theirs):
        training.model.bfloat16()
        training.average = MovingAverage(trained_parameters(training.model), 0.999)
    for _ in range(3):
        ours.model.out.weight.data.mul_(1.25)
        ours.average.update()
    path = ours.save(tmp_path, Progress(step=1))
    theirs.load(path)
    assert_same_tensors(theirs.average.average, ours.average.average)
    assert {tensor.dtype for tensor in theirs.average.average.values()} == {torch.float32}
    load_weights(path, theirs.model, averaged=True)
    assert theirs.model.out.weight.dtype == torch.bfloat16
    assert torch.equal(theirs.model.out.weight, ours.average.average["out.weight"].bfloat16())


def test_an_average_that_stood_still_is_refused(tmp_path: Path) -> None:
    """Earlier versions kept it in the number type of the weights."""
    training = Training(updates=2)
    path = training.save(tmp_path, Progress(step=1))
    file = path / "average.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    with pytest.raises(WorkError, match=r"step-00000001: an earlier hfcap kept .* in bfloat16.*delete the run"):
        training.load(path)
    with pytest.raises(WorkError, match="in bfloat16"):
        load_weights(path, training.model, averaged=True)
    training.load(path, average=False)  # the weights themselves are right
    load_weights(path, training.model)


def test_each_process_gets_its_own_random_numbers_back(tmp_path: Path) -> None:
    training, drawn = Training(updates=1), {}
    for rank in (1, 0):  # the main process writes the folder when all have saved
        torch.manual_seed(10 + rank)
        random.seed(10 + rank)
        path = training.save(tmp_path, Progress(step=1, processes=2), rank, world=2)
        drawn[rank] = (float(torch.rand(())), random.random())
    assert drawn[0] != drawn[1]
    for rank in (0, 1):
        training.load(path, rank, world=2)
        assert (float(torch.rand(())), random.random()) == drawn[rank]


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    training = Training(updates=1)
    path = training.save(tmp_path, Progress(step=1, processes=2), world=2)
    with pytest.raises(UserError, match=r"step-00000001: was written by 2 processes, but 1 train now; continue with 2"):
        training.load(path)


def test_another_number_of_processes_draws_from_the_seed_of_this_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, seeds = Training(updates=1), []
    path = training.save(tmp_path, Progress(step=12, processes=2), world=2)
    monkeypatch.setattr("hfcap.training.checkpoint.set_seed", lambda seed, **options: seeds.append((seed, options)))
    progress = load_checkpoint(path, training.model, training.optimizer, None, process(0, 3), other_seed=7)
    assert seeds == [(19, {"device_specific": True})]  # another one on each process
    assert progress.processes == 3


def test_a_schedule_goes_on_at_its_place_with_the_rates_of_the_recipe() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def made(*rates: float) -> tuple[torch.optim.Optimizer, Any]:
        groups = [{"params": [weight], "lr": rate} for weight, rate in zip((first, second), rates, strict=True)]
        optimizer = torch.optim.SGD(groups)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    optimizer, scheduler = made(1.0, 2.0)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    progress = Progress(scheduler=scheduler.state_dict())
    optimizer, scheduler = made(4.0, 8.0)
    restore_schedule(scheduler, optimizer, progress)
    assert [group["lr"] for group in optimizer.param_groups] == scheduler.get_last_lr() == [1.0, 2.0]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 1.6]
    assert (scheduler.last_epoch, scheduler._step_count) == (4, 5)


@pytest.mark.parametrize(("before", "now", "window"), [(4, 8, 6), (4, 2, 1), (4, 3, 2), (4, 4, 3), (0, 2, 3)])
def test_the_same_share_of_an_epoch_stays_done(before: int, now: int, window: int, tmp_path: Path) -> None:
    progress = Progress(window=3, steps_per_epoch=before)
    fit_progress(progress, tmp_path, now)
    assert progress.window == window


def test_the_best_value_counts_while_its_checkpoint_is_there(tmp_path: Path) -> None:
    progress = Progress(best_step=5, best_value=0.0, bad_validations=2)
    checkpoint_path(tmp_path, 5).mkdir()
    fit_progress(progress, tmp_path, 1)
    assert (progress.best_step, progress.best_value, progress.bad_validations) == (5, 0.0, 2)
    checkpoint_path(tmp_path, 5).rmdir()
    fit_progress(progress, tmp_path, 1)
    assert (progress.best_step, progress.best_value, progress.bad_validations) == (None, None, 0)


def _changed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _not_finite(path: Path) -> None:
    save_file({**load_file(path), "out.bias": torch.tensor([0.0, torch.inf])}, path)


def _no_number(path: Path) -> None:
    save_file({**load_file(path), "added": torch.tensor([0.0, torch.nan])}, path)


DAMAGE: list[tuple[str, Any, bool, str]] = [
    ("optimizer.safetensors", _changed, True, r"optimizer\.safetensors: damaged checkpoint \(not the content"),
    ("random-1.safetensors", Path.unlink, True, r"step-00000003: damaged checkpoint \(.*random-1\.safetensors"),
    ("random-1.safetensors", Path.unlink, False, r"step-00000003: damaged checkpoint \(.*random-1\.safetensors"),
    ("model.safetensors", _not_finite, False, r"step-00000003: weights that are no longer numbers \(out\.bias\)"),
    ("optimizer.safetensors", _no_number, False, r"are no longer numbers \(added of the optimiser\)"),
    ("average.safetensors", _not_finite, False, r"step-00000003: weights that are no longer numbers \(out\.bias\)"),
    ("state.json", lambda path: path.write_text('{"step": "x"}'), True, r"state\.json: damaged .*\(1 validation error"),
    ("state.json", lambda path: path.write_text("{"), True, r"damaged checkpoint \(.*state\.json: checkpoint state\b"),
    (CHECKSUMS, lambda path: path.write_text("["), True, r"damaged checkpoint \(.*: checksums of a checkpoint\b"),
    (CHECKSUMS, lambda path: path.write_text("[]"), True, r"checksums\.json: damaged .*no JSON object of checksums"),
    (CHECKSUMS, lambda path: path.write_text('{"a": 1}'), True, r"checksums\.json: damaged .*no JSON object of"),
    (CHECKSUMS, lambda path: path.write_text('{"../a": "b"}'), True, r"checksums\.json: damaged .*no JSON object of"),
]


@pytest.mark.parametrize(("name", "damage", "checksums", "message"), DAMAGE)
def test_damage_is_found_and_named(name: str, damage: Any, checksums: bool, message: str, tmp_path: Path) -> None:
    training = Training(updates=1)
    for rank in (1, 0):
        path = training.save(tmp_path, Progress(step=3, processes=2), rank, world=2)
    assert damage_of(path) is None
    if not checksums:  # as an earlier version left it
        (path / CHECKSUMS).unlink()
        assert damage_of(path) is None
    damage(path / name)
    assert re.search(message, damage_of(path) or "")


def test_bounds_without_end_are_no_damage(tmp_path: Path) -> None:
    """Gemma 4 keeps one number a layer to which its inputs are clipped."""
    for bound, damaged in ((torch.inf, False), (torch.nan, True)):
        training = Training(updates=1)
        training.model.register_buffer("input_max", torch.tensor(bound))
        path = training.save(tmp_path / str(bound), Progress(step=3))
        assert ("input_max" in (damage_of(path) or "")) == damaged


def test_damaged_checkpoints_are_set_aside_from_the_newest_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(updates=1)
    paths = {step: training.save(tmp_path, Progress(step=step, best_step=2)) for step in (1, 2, 3, 4, 5)}
    (tmp_path / "damaged-step-00000005").mkdir()
    for step in (1, 2, 5):
        _changed(paths[step] / "model.safetensors")
    set_damaged_aside(tmp_path)
    assert checkpoint_steps(tmp_path) == [1, 3, 4]  # the first is neither continued from nor the best
    said = capsys.readouterr().err.splitlines()
    follows = {
        5: "continuing from the one before, step 4",
        2: "the best of the checkpoints after it is taken in its place",
    }
    assert said == [
        f"warning: {paths[step] / 'model.safetensors'}: damaged checkpoint (not the content that was written); {what}. "
        f"The damaged one is now damaged-{paths[step].name}, and may be deleted"
        for step, what in follows.items()
    ]
    for step in (3, 4):
        _changed(paths[step] / "model.safetensors")
    set_damaged_aside(tmp_path)
    assert checkpoint_steps(tmp_path) == []
    assert "); there is none before it, so that training begins again. The" in capsys.readouterr().err.splitlines()[-1]


def test_weights_with_or_without_the_average(tmp_path: Path) -> None:
    ours, theirs = Training(seed=1, updates=2), Training(seed=2)
    path = ours.save(tmp_path, Progress(step=1))
    load_weights(path, theirs.model)
    assert_same_tensors(theirs.parameters, ours.parameters)
    load_weights(path, theirs.model, averaged=True)
    assert_same_tensors(theirs.parameters, ours.average.average)
    assert torch.equal(theirs.model.norm.running_var, ours.model.norm.running_var)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_other_weights_are_refused(change: str, tmp_path: Path) -> None:
    training = Training(updates=1)
    path = training.save(tmp_path, Progress(step=1))
    training.model.out.bias.requires_grad_(False) if change == "fewer" else training.model.frozen.requires_grad_(True)
    pattern = r"1 differ, first out\.bias" if change == "fewer" else r"2 differ, first frozen\.bias"
    with pytest.raises(WorkError, match=pattern):
        load_weights(path, training.model)


def test_a_damaged_or_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    training = Training(updates=1)
    path = training.save(tmp_path, Progress(step=1))
    for name in ("random-0", "average", "optimizer", "model"):
        file = path / f"{name}.safetensors"
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(WorkError, match=rf"{name}\.safetensors: damaged .*continues from the one before"):
            training.load(path)
        file.unlink()
        with pytest.raises(WorkError, match=rf"{name}\.safetensors: damaged"):
            training.load(path)


def test_whole_numbers_in_the_optimizer_stay_whole(tmp_path: Path) -> None:
    """bitsandbytes counts its steps in Python's integers and refuses tensors."""
    training = Training(updates=1)
    for state in training.optimizer.state.values():
        state["step"] = 17
    path = training.save(tmp_path, Progress(step=1))
    again = Training(seed=3)
    again.load(path)
    steps = [again.optimizer.state[parameter]["step"] for parameter in again.parameters.values()]
    assert steps == [17] * 4 and all(type(step) is int for step in steps)


def test_only_complete_checkpoints_count_in_the_order_of_their_steps(tmp_path: Path) -> None:
    assert checkpoint_steps(tmp_path / "nothing") == []
    for name in ("step-00000900", "step-00001000", "step-00000020", ".step-00000030.writing", "step-final", "steps-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000040").write_text("a file")
    # Copies and names that hfcap never gave: too few digits, too many, and digits of another script.
    for name in ("step-0000050", "step-1234567890123", "step-\u0660\u0660\u0660\u0660\u0660\u0660\u0661\u0660"):
        (tmp_path / name).mkdir()
    # Beyond eight digits names no longer sort like numbers.
    (tmp_path / "step-123456789").mkdir()
    assert checkpoint_steps(tmp_path) == [20, 900, 1000, 123456789]
    assert checkpoint_path(tmp_path, 123456789).is_dir() and checkpoint_path(tmp_path, 20).is_dir()


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(2, None, [4, 5]), (2, 4, [4, 5]), (2, 1, [1, 4, 5]), (1, 2, [2, 5]), (9, 3, range(6))]
)
def test_the_newest_checkpoints_and_the_best_stay(keep: int, best: int | None, left: Any, tmp_path: Path) -> None:
    for step in range(6):
        checkpoint_path(tmp_path, step).mkdir()
        (checkpoint_path(tmp_path, step) / "model.safetensors").write_bytes(b"x")
    prune_checkpoints(tmp_path, keep, best)
    assert checkpoint_steps(tmp_path) == list(left)
    assert len(list(tmp_path.iterdir())) == len(left)


def test_a_kill_while_deleting_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoint_path(tmp_path, step).mkdir()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hfcap.training.checkpoint.shutil.rmtree", killed)
        prune_checkpoints(tmp_path, 1, None)
    assert checkpoint_steps(tmp_path) == [2]
    (tmp_path / ".random-00000002").mkdir()
    (tmp_path / "notes").mkdir()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000002", "notes"}
