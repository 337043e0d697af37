"""Keys of `train` mean what TrainingArguments means by them: names, schedules, optimisers, trackers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from torch import nn
from transformers import Adafactor, Trainer, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hfcap.errors import MissingPackageError, UserError
from hfcap.recipe.blocks import TrainOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.recipe.training_blocks import Optimizer, Schedule, Tracker
from hfcap.run.stages import Run
from hfcap.training.optimization import build_optimizer, build_scheduler, require_optimization, warmup_updates
from tests.captioners.helpers import build
from tests.training.harness import Result, forget_accelerator, recipe_values, tiny_recipe, train
from tests.training.test_resume import assert_same_end, stop_and_continue

pytestmark = pytest.mark.contract

OWN_STEPS = ("layerwise", "lomo", "schedule_free")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """TrainingArguments reset the state that an Accelerator of the process looks at."""
    yield
    forget_accelerator()


def options(**values: Any) -> TrainOptions:
    return TrainOptions(**{"max_steps": 10, **values})


def test_names_are_those_of_the_libraries() -> None:
    theirs = {name.value for name in OptimizerNames}
    ours = set(get_args(Optimizer))
    assert ours <= theirs
    assert all(any(part in name for part in OWN_STEPS) for name in theirs - ours)
    schedules = {name.value for name in SchedulerType}
    assert schedules - set(get_args(Schedule)) <= {"reduce_lr_on_plateau", "greedy"}
    assert set(get_args(Schedule)) <= schedules
    trackers = set(get_args(Tracker))
    assert {str(name) for name in LoggerType} - {"all"} <= trackers


def test_flags_and_a_tracker_alone() -> None:
    given = options(bf16=True, fp16=False, report_to="mlflow")
    assert (given.mixed_precision, given.report_to) == ("bf16", ["mlflow"])
    assert options(fp16=True).mixed_precision == "fp16"
    assert options(bf16=False, mixed_precision="fp16").mixed_precision == "fp16"
    assert options(report_to="none").report_to == []
    with pytest.raises(UserError, match="give one of bf16: true, fp16: true and mixed_precision"):
        recipe_from_mapping(recipe_values("blip", Path("runs"), bf16=True, mixed_precision="fp16"), "test")
    with pytest.raises(UserError, match=r"train\.bf16: unknown key"):
        recipe_from_mapping(recipe_values("blip", Path("runs"), bf16="yes"), "test")


@pytest.mark.parametrize(("steps", "total"), [(0.05, 200), (0.05, 11), (0.99, 7), (0, 9), (1, 9), (4, 9), (0.001, 3)])
def test_warm_up_is_a_share_below_one(steps: float, total: int) -> None:
    theirs = TrainingArguments(output_dir="unused", warmup_steps=steps).get_warmup_steps(total)
    assert warmup_updates(options(warmup_steps=steps), total) == theirs


def test_a_broken_number_of_updates_is_refused() -> None:
    with pytest.raises(UserError, match=r"warmup_steps: 2\.5 must be a share below 1, or a whole number"):
        recipe_from_mapping(recipe_values("blip", Path("runs"), warmup_steps=2.5), "test")


@pytest.mark.parametrize(
    ("kind", "given", "last"),
    [
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, 0.1),
        ("cosine_with_min_lr", {"min_lr": 0.05}, 0.1),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2}, 0.2 + 0.4 * (1 + math.cos(17 / 16 * math.pi))),
        ("polynomial", {"lr_end": 0.125, "power": 2.0}, 0.25),
        ("cosine_with_restarts", {"num_cycles": 2}, 0.0),
        ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "linear", "min_lr_ratio": 0.3}, 0.3),
        ("inverse_sqrt", {"timescale": 4}, 5**-0.5),
    ],
)
def test_schedules_take_their_arguments(kind: str, given: dict[str, Any], last: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    chosen = options(lr_scheduler_type=kind, lr_scheduler_kwargs=given, learning_rate=0.5)
    scheduler = build_scheduler(optimizer, chosen, total_steps=16)
    for _ in range(16):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] / 0.5 == pytest.approx(last, abs=1e-6)


def test_what_cannot_be_made_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr_scheduler_kwargs: not what cosine takes: .*min_lr"):
        train(tiny_recipe("blip", tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs={"min_lr": 0.1}))
    assert not (tmp_path / "tiny" / "environment.json").exists()
    with pytest.raises(UserError, match=r"train\.optim: transformers cannot make galore_adamw here: .*galore"):
        require_optimization(options(optim="galore_adamw"), torch.device("cpu"))
    with pytest.raises(UserError, match=r"train\.optim: must be .*'adamw_torch'.*, not \"lomo\""):
        recipe_from_mapping(recipe_values("blip", Path("runs"), optim="lomo"), "test")


def test_the_old_name_of_the_share_gets_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    require_optimization(options(warmup_ratio=0.05), torch.device("cpu"))
    assert "train.warmup_ratio is called warmup_steps: 0.05 since transformers 5" in capsys.readouterr().err
    require_optimization(options(warmup_steps=0.05), torch.device("cpu"))
    assert capsys.readouterr().err == ""


CLASSES: dict[str, Any] = {
    "adamw_torch_fused": torch.optim.AdamW,
    "adafactor": Adafactor,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


@pytest.mark.parametrize("name", CLASSES)
def test_optimisers_are_the_trainer_s(name: str) -> None:
    captioner = build("blip")
    arguments = "momentum=0.5" if name in ("sgd", "rmsprop") else None
    optimizer = build_optimizer(captioner, options(optim=name, optim_args=arguments, learning_rate=0.25))
    made, given = Trainer.get_optimizer_cls_and_kwargs(
        TrainingArguments(output_dir="unused", optim=name, optim_args=arguments, learning_rate=0.25)
    )
    assert type(optimizer) is made is CLASSES[name]
    for group in optimizer.param_groups:
        assert {key: group[key] for key in given} == given
        assert group["part"] in captioner.parts


@pytest.mark.parametrize("name", [*CLASSES, "lion_32bit", "ademamix"])
def test_a_stopped_training_goes_on_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in CLASSES:
        pytest.importorskip("bitsandbytes")
    given: dict[str, Any] = {
        "optim": name,
        "optim_args": "momentum=0.5" if name in ("sgd", "rmsprop") else None,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "warmup_steps": 0.3,
    }
    whole: Result = train(tiny_recipe("blip", tmp_path / "whole", **given))
    resumed = stop_and_continue(tmp_path / "cut", 3, monkeypatch, "blip", **given)
    assert_same_end(resumed, whole)
    assert whole.losses[0] != whole.losses[-1]


def test_weights_that_galore_projects_get_a_group_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = build("blip")

    def factory(arguments: Any, model: Any) -> tuple[Any, dict[str, Any]]:
        assert (arguments.optim, arguments.optim_target_modules) == (OptimizerNames.GALORE_ADAMW, ["query"])
        named = dict(model.named_parameters())
        chosen = [weight for name, weight in named.items() if name.endswith("query.weight")]
        others = [weight for name, weight in named.items() if not name.endswith("query.weight")]
        groups = [{"params": others}, {"params": chosen, "rank": 8}]
        return torch.optim.SGD, {"lr": arguments.learning_rate, "params": groups}

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(factory))
    optimizer = build_optimizer(captioner, options(optim="galore_adamw", optim_target_modules=["query"]))
    ranks = {
        name: group.get("rank")
        for group in optimizer.param_groups
        for name, weight in captioner.model.named_parameters()
        if any(weight is other for other in group["params"])
    }
    assert ranks == {
        name: 8 if name.endswith("query.weight") else None for name, _ in captioner.model.named_parameters()
    }


def test_trackers_that_are_not_installed_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"train\.report_to: aim.*pip install"):
        Run(tiny_recipe("blip", tmp_path, report_to="aim"))


def test_an_optimiser_leaves_the_accelerator_as_it_is() -> None:
    forget_accelerator()
    accelerator = Accelerator(cpu=True)
    before = dict(AcceleratorState._shared_state)
    build_optimizer(build("blip"), options(optim="adafactor"))
    assert before == AcceleratorState._shared_state and accelerator.device.type == "cpu"
