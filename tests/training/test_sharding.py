"""Two real processes with weights in pieces train what one process with whole weights and twice the batch trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap.captioners.loading import load_captioner
from hfcap.errors import UserError
from hfcap.recipe.dpo import DpoOptions
from hfcap.recipe.scst import ScstOptions
from hfcap.run_directory.paths import RunDirectory
from hfcap.training import loop
from hfcap.training.accelerator import new_accelerator
from hfcap.training.sharding import layer_classes, require_shardable
from tests.captioners.helpers import build
from tests.captioners.itt_models import itt
from tests.training import sharded_processes, two_processes
from tests.training.harness import Result, assert_same_path, forget_accelerator, plain_descent, tiny_recipe
from tests.training.sharded_processes import OWN_SHAPES
from tests.training.test_two_processes import launch

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folders(forking: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where two processes trained with weights in pieces, and one with whole weights."""
    two, one = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("one")
    forget_accelerator()
    two_processes.train_cases(one, 4, sharded_processes.CASES)
    sharded_processes.half_done(one / "clip_prefix-full", two / "begun_by_one")
    for folder in (one, two):
        sharded_processes.write_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_optimizer", plain_descent)
        sharded_processes.trained(sharded_processes.own_shapes(one, 4), RunDirectory(one / OWN_SHAPES))
    launch(forking, sharded_processes.__file__, two)
    return two, one


def results(folders: tuple[Path, Path], name: str) -> tuple[Result, Result]:
    two, one = (Result(RunDirectory(folder / name)) for folder in folders)
    return two, one


def assert_same_training(two: Result, one: Result) -> None:
    assert two.summary["processes"] == 2 and one.summary["processes"] == 1
    for name in ("model", "average"):
        assert_same_path(two, one, step=4, earlier=2, name=name)


@pytest.mark.parametrize(("captioner", "method"), sharded_processes.CASES)
def test_same_weights_as_one_process(captioner: str, method: str, folders: tuple[Path, Path]) -> None:
    two, one = results(folders, f"{captioner}-{method}")
    assert_same_training(two, one)
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    keys = ("validation_loss", "validation_cider", "grad_norm")
    ours, theirs = ([row[key] for row in result.rows for key in keys if key in row] for result in (two, one))
    assert len(ours) == 8 and ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert two.summary["parameters"] == one.summary["parameters"]
    assert sorted(path.name for path in two.run.model.iterdir()) == sorted(
        path.name for path in one.run.model.iterdir()
    )
    ours_saved, theirs_saved = two.model_weights(), one.model_weights()
    assert ours_saved.keys() == theirs_saved.keys()
    for name, weight in theirs_saved.items():
        torch.testing.assert_close(ours_saved[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    load_captioner(str(two.run.model))


def test_images_of_all_shapes(folders: tuple[Path, Path]) -> None:
    """Each process computes its images in groups of one shape, more or fewer of them than the other."""
    two, one = results(folders, OWN_SHAPES)
    assert_same_training(two, one)
    assert two.losses == pytest.approx(one.losses, rel=1e-5) and len(set(one.losses)) == 4
    assert load_captioner(str(two.run.model)).own_shapes


def test_each_process_holds_a_half(folders: tuple[Path, Path]) -> None:
    held = [json.loads((folders[0] / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(held[0]) == len(held[1]) == len(sharded_processes.CASES) + 8
    for mine, other in zip(*held, strict=True):
        assert mine + other == pytest.approx(1)
        assert mine == pytest.approx(0.5, abs=0.02)  # the last row of an odd number is in one of them


@pytest.mark.parametrize("name", sharded_processes.CONTINUED)
def test_a_stopped_training_goes_on_bit_for_bit(name: str, folders: tuple[Path, Path]) -> None:
    whole, continued = (Result(RunDirectory(folders[0] / run)) for run in (name, f"{name}_continued"))
    assert whole.rows[0]["step"] == 1 and whole.losses == continued.losses
    for file in ("model", "average", "optimizer"):
        ours, theirs = continued.weights(4, file), whole.weights(4, file)
        assert ours.keys() == theirs.keys() and ours
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_either_continues_what_the_other_began(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints hold whole weights, so neither the number of processes nor FSDP is bound to them."""
    two, one = results(folders, "clip_prefix-full")
    begun_by_one = Result(RunDirectory(folders[0] / "begun_by_one"))
    assert_same_training(begun_by_one, one)
    sharded_processes.half_done(two.run.path, folders[1] / "begun_by_two")
    monkeypatch.setattr(loop, "build_optimizer", plain_descent)
    begun_by_two = RunDirectory(folders[1] / "begun_by_two")
    recipe = two_processes.case_recipe("clip_prefix", "full", folders[1], 4)
    sharded_processes.trained(recipe, begun_by_two, accept_changes=True)
    assert_same_path(Result(begun_by_two), one, step=4, earlier=2)


def test_bfloat16_products_on_float32_pieces(folders: tuple[Path, Path]) -> None:
    exact, rounded = (Result(RunDirectory(folders[0] / name)) for name in ("clip_prefix-full", "bf16"))
    assert rounded.losses[0] == pytest.approx(exact.losses[0], rel=2**-7) and rounded.losses[0] != exact.losses[0]
    assert {weight.dtype for weight in rounded.weights(4).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("key", "blocks", "train"),
    [
        ("scst", {"scst": ScstOptions()}, {}),
        ("dpo", {"dpo": DpoOptions(pairs="pairs.jsonl")}, {}),
        ("train.torch_compile", {}, {"torch_compile": True}),
        ("train.mixed_precision", {}, {"mixed_precision": "fp16"}),
        ("train.optim", {}, {"optim": "adafactor"}),
    ],
)
def test_what_needs_whole_weights_is_refused(
    key: str, blocks: dict[str, Any], train: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tiny_recipe("vit_gpt2", tmp_path)
    captioner = build("vit_gpt2")
    require_shardable(recipe, captioner)
    changed = recipe.model_copy(update={**blocks, "train": recipe.train.model_copy(update=train)})
    with pytest.raises(UserError, match=f"^{key}: not with weights in pieces .FSDP in the accelerate configuration"):
        require_shardable(changed, captioner)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "FSDP of version 1, which torch replaces; set fsdp_version: 2"),
        ({"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: false"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: false"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.gradient_checkpointing: true"),
        ({"FSDP_VERSION": "2"}, "with several GPUs alone, and here it has 1 x cpu"),
    ],
)
def test_configurations_of_fsdp_that_hfcap_does_not_train_with(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        new_accelerator("no")
    forget_accelerator()


def test_layers_that_hold_tied_weights_stay_whole() -> None:
    """torch refuses to cut a weight in two ways."""
    assert layer_classes(build("vit_gpt2").model) == ["GPT2Block", "ViTEmbeddings", "ViTLayer"]
    assert "BlipTextEmbeddings" not in layer_classes(build("blip").model)
    assert layer_classes(itt("llava").model)
