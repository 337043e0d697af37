"""What a checkpoint says where it cannot be used, to the last word, and what it keeps on other machines."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hfcap.errors import UserError, WorkError
from hfcap.files import read_json, write_json
from hfcap.training.checkpoint import (
    Progress,
    checkpoint_path,
    load_weights,
    read_progress,
    save_checkpoint,
    set_aside_if_damaged,
)
from tests.training.small_training import Training, process

OTHER_NAME = "the recipe was changed after the run began: choose another name, or delete the run directory"


def test_the_folder_of_the_checkpoints_is_made(tmp_path: Path) -> None:
    path = Training(updates=1).save(tmp_path / "runs" / "new" / "checkpoints", Progress(step=1))
    assert (path / "state.json").is_file()


def test_another_number_of_processes_needs_a_decision(tmp_path: Path) -> None:
    path = Training(updates=1).save(tmp_path, Progress(step=1, processes=2), world=2)
    with pytest.raises(UserError) as caught:
        Training().load(path)
    assert str(caught.value) == (
        f"{path}: was written by 2 processes, but 1 train now; continue with 2, or give --accept-changes to go on with "
        "other random numbers, or start again with another name (name=...)"
    )


@pytest.mark.parametrize("missing", ["last_epoch", "_step_count"])
def test_a_state_without_a_place_in_the_schedule_is_damaged(missing: str, tmp_path: Path) -> None:
    path = Training(updates=1).save(tmp_path, Progress(step=1))
    values = read_json(path / "state.json", "state")
    del values["scheduler"][missing]
    write_json(path / "state.json", values)
    with pytest.raises(WorkError) as caught:
        read_progress(path)
    said = f"{path / 'state.json'}: damaged checkpoint (no place in the schedule); delete the folder"
    assert str(caught.value) == said


def test_weights_of_another_recipe_are_named_with_the_way_out(tmp_path: Path) -> None:
    training = Training(updates=1)
    path = training.save(tmp_path, Progress(step=1))
    training.model.out = nn.Linear(4, 3)
    with pytest.raises(WorkError) as caught:
        load_weights(path, training.model)
    assert str(caught.value) == (
        f"{path}: holds weights of another size than this recipe trains (size mismatch for out.bias: copying a param "
        "with shape torch.Size([2]) from checkpoint, the shape in current model is torch.Size([3]).); choose another "
        "name (name=...), or train again with 'hfcap train' and --force"
    )
    training.model.out.requires_grad_(False)
    with pytest.raises(WorkError) as caught:
        load_weights(path, training.model)
    said = f"{path}: holds other weights than this recipe trains (2 differ, first out.bias); {OTHER_NAME}"
    assert str(caught.value) == said


def test_an_average_in_half_precision_is_named_with_the_way_out(tmp_path: Path) -> None:
    training = Training(updates=1)
    file = training.save(tmp_path, Progress(step=1)) / "average.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    with pytest.raises(WorkError) as caught:
        load_weights(file.parent, training.model, averaged=True)
    assert str(caught.value) == (
        f"{file.parent}: an earlier hfcap kept this moving average in float16, too coarse for it to follow the "
        "weights; train again: choose another name, or delete the run directory"
    )


def test_random_numbers_that_are_none_are_named_with_the_way_out(tmp_path: Path) -> None:
    training = Training(updates=1)
    file = training.save(tmp_path, Progress(step=1)) / "random-0.safetensors"
    save_file({"torch": torch.get_rng_state()}, file)
    with pytest.raises(WorkError) as caught:
        training.load(file.parent)
    assert str(caught.value) == (
        f"{file}: damaged random state ('python'); delete the folder step-00000001, the run then continues from the "
        "one before"
    )


def test_what_is_set_aside_is_named_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the folder's name looks like markup, and where an earlier damaged one already lies there."""
    path = Training(updates=1).save(tmp_path / "[red]run[/red]", Progress(step=1))
    earlier = path.with_name("damaged-step-00000001")
    earlier.mkdir()
    (earlier / "state.json").touch()
    (path / "model.safetensors").write_bytes(b"")
    assert set_aside_if_damaged(path, "what follows")
    assert capsys.readouterr().err == (
        f"warning: {path / 'model.safetensors'}: damaged checkpoint (not the content that was written); what follows. "
        "The damaged one is now damaged-step-00000001, and may be deleted\n"
    )
    assert not path.exists() and (earlier / "model.safetensors").stat().st_size == 0


def test_numbers_of_the_optimizer_come_back_with_all_their_digits(tmp_path: Path) -> None:
    """Adafactor keeps a float, and a parameter's name may hold what divides it from the entry's."""
    training, again = Training(updates=1), Training(seed=3, updates=1)
    for each in (training, again):
        each.model.add_module("left|right", nn.Linear(1, 1))
    added = dict(training.model.named_parameters())["left|right.weight"]
    training.optimizer.state[added] = {"step": 3, "RMS": 0.1}
    path = checkpoint_path(tmp_path, 2)
    progress = Progress(step=2, scheduler={"last_epoch": 2, "_step_count": 3})
    save_checkpoint(tmp_path, training.model, training.optimizer, progress, None, process(0, 1))
    again.load(path, average=False)
    state = again.optimizer.state[dict(again.model.named_parameters())["left|right.weight"]]
    assert state == {"step": 3, "RMS": 0.1} and type(state["RMS"]) is float


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_random_numbers_of_a_device_are_kept_where_one_trains(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, given = Training(updates=1), []
    state = torch.arange(16, dtype=torch.uint8)

    def taken(value: Any, *_: Any) -> None:
        given.append(value)

    monkeypatch.setattr(getattr(torch, kind), "get_rng_state", lambda *_: state)
    monkeypatch.setattr(getattr(torch, kind), "set_rng_state", taken)
    paths = {}
    for step, device in enumerate(("cpu", kind), start=1):
        random.seed(step)
        paths[device] = training.save(tmp_path, Progress(step=step), device=device)
    kept = load_file(paths[kind] / "random-0.safetensors")
    assert torch.equal(kept[kind], state) and set(kept) == {"torch", kind, "python"}
    assert set(load_file(paths["cpu"] / "random-0.safetensors")) == {"torch", "python"}
    for written in paths.values():
        for device in paths:
            training.load(written, device=device)
    assert len(given) == 1 and torch.equal(given[0], state)
