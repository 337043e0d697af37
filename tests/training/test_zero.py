"""DeepSpeed's ZeRO-2: two real processes train what one process trains, and what it cannot train is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hfcap.captioners.loading import load_captioner
from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.dpo import DpoOptions
from hfcap.run_directory.paths import RunDirectory
from hfcap.training import loop, zero
from hfcap.training.accelerator import new_accelerator
from hfcap.training.checkpoint import damage_of
from hfcap.training.optimization import build_optimizer
from hfcap.training.sharding import require_shardable
from tests.training import two_processes, zero_processes
from tests.training.harness import Result, assert_same_path, forget_accelerator, launch, plain_descent, tiny_recipe
from tests.training.sharded_processes import half_done
from tests.training.two_processes import trained

pytestmark = pytest.mark.timeout(600)
installed = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not installed, reason="deepspeed is not installed (pip install deepspeed)")

ENTRIES = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each weight."""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process trained every case, and the run by AdamW."""
    folder = tmp_path_factory.mktemp("one")
    forget_accelerator()
    with pytest.MonkeyPatch.context() as patch:
        zero_processes.replace_chance(patch.setattr)
        for case in (*zero_processes.CASES, zero_processes.AVERAGED):
            patch.setattr(loop, "build_optimizer", plain_descent)
            trained(zero_processes.recipe_of(case, folder, 4), RunDirectory(folder / case))
        patch.setattr(loop, "build_optimizer", build_optimizer)
        trained(zero_processes.by_adam(folder, 4), RunDirectory(folder / "adam"))
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes trained with DeepSpeed."""
    folder = tmp_path_factory.mktemp("two")
    half_done(one / "adam", folder / "begun_by_one")
    launch(sys.executable, zero_processes.__file__, folder)
    return folder


def both(two: Path, one: Path, name: str) -> tuple[Result, Result]:
    return Result(RunDirectory(two / name)), Result(RunDirectory(one / name))


@needs_deepspeed
@pytest.mark.parametrize("case", zero_processes.CASES)
def test_same_training_as_one_process(case: str, two: Path, one: Path) -> None:
    ours, theirs = both(two, one, case)
    assert ours.summary["processes"] == 2 and theirs.summary["processes"] == 1
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    keys = ("validation_loss", "validation_cider", "grad_norm")
    mine, other = ([row[key] for row in result.rows for key in keys if key in row] for result in (ours, theirs))
    assert len(mine) == 8 and mine == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert ours.summary["parameters"] == theirs.summary["parameters"]
    saved, expected = ours.model_weights(), theirs.model_weights()
    assert saved.keys() == expected.keys()
    for name, weight in expected.items():
        if "pooler" not in name:
            torch.testing.assert_close(saved[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    load_captioner(str(ours.run.model))


@needs_deepspeed
def test_weights_without_gradients_only_decay(two: Path, one: Path) -> None:
    """torch leaves a weight alone that nothing used; ZeRO's flat pieces take its gradient for zero."""
    ours, theirs = both(two, one, "vit_gpt2-full")
    name, recipe = "encoder.pooler.dense.weight", zero_processes.recipe_of("vit_gpt2-full", one, 4)
    began, rate = theirs.weights(4)[name], recipe.train.learning_rate * recipe.train.weight_decay
    # Linear schedule over four updates: 1, 3/4, 1/2, 1/4 of the learning rate.
    kept = (1 - rate) * (1 - rate * 3 / 4) * (1 - rate / 2) * (1 - rate / 4)
    torch.testing.assert_close(ours.weights(4)[name], began * kept)


@needs_deepspeed
def test_the_average_of_weights(two: Path, one: Path) -> None:
    ours, theirs = both(two, one, zero_processes.AVERAGED)
    assert_same_path(ours, theirs, step=4, earlier=2, name="average")


@needs_deepspeed
def test_a_stopped_training_goes_on_bit_for_bit(two: Path) -> None:
    whole, continued = (Result(RunDirectory(two / name)) for name in ("adam", "adam_continued"))
    assert whole.losses == continued.losses and len(set(whole.losses)) == 4
    for file in ("model", "optimizer"):
        ours, theirs = continued.weights(4, file), whole.weights(4, file)
        assert ours.keys() == theirs.keys() and ours
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@needs_deepspeed
def test_the_state_of_the_optimiser_is_that_of_one_process(two: Path, one: Path) -> None:
    ours, theirs = (result.weights(2, "optimizer") for result in both(two, one, "adam"))
    pooler = {name for name in ours if "pooler" in name}
    assert ours.keys() - pooler == theirs.keys() - pooler and len(theirs) > 200
    largest = {
        key: max(float(theirs[name].abs().max()) for name in theirs if name.endswith(f"|{key}")) for key in ENTRIES
    }
    for name, state in theirs.items():
        assert ours[name].shape == state.shape
        # Keys' biases have gradients that are nothing but rounding, so that theirs cannot be compared with themselves.
        assert float((ours[name] - state).abs().max()) <= 1e-4 * largest[name.rsplit("|", 1)[1]], name


@needs_deepspeed
def test_either_continues_what_the_other_began(two: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints hold whole tensors, the optimiser's as well."""
    begun_by_one, whole = Result(RunDirectory(two / "begun_by_one")), Result(RunDirectory(one / "adam"))
    assert begun_by_one.losses == pytest.approx(whole.losses, rel=1e-5)
    assert damage_of(begun_by_one.checkpoint(4)) is None
    zero_processes.replace_chance(monkeypatch.setattr)
    half_done(two / "adam", two / "begun_by_two")
    run = RunDirectory(two / "begun_by_two")
    forget_accelerator()
    trained(zero_processes.by_adam(two, 4), run)
    assert Result(run).losses == pytest.approx(whole.losses, rel=1e-5)


@needs_deepspeed
def test_bfloat16_products_on_float32_weights(two: Path) -> None:
    exact, rounded = (Result(RunDirectory(two / name)) for name in ("vit_gpt2-full", "bf16"))
    assert rounded.losses[0] == pytest.approx(exact.losses[0], rel=2**-7) and rounded.losses[0] != exact.losses[0]
    assert {weight.dtype for weight in rounded.weights(4).values()} == {torch.float32}


@needs_deepspeed
def test_each_process_holds_a_half(two: Path) -> None:
    """Of what the optimiser updates, and so of its state."""
    mine, other = (float((two / f"held-{rank}").read_text()) for rank in (0, 1))
    assert mine + other == pytest.approx(1, abs=0.02) and mine == pytest.approx(0.5, abs=0.02)


class Plugin:
    """What is asked of Accelerate's plugin."""

    def __init__(self, stage: int = 2, **config: Any) -> None:
        self.zero_stage, self.gradient_clipping = stage, config.get("gradient_clipping", "auto")
        self.deepspeed_config = {"zero_optimization": {"stage": stage}, **config}


class Engine(zero.ZeroAccelerator):
    """A ZeroAccelerator without processes."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    @property
    def deepspeed_plugin(self) -> Any:
        return self.plugin

    @property
    def num_processes(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (Plugin(1), "ZeRO of stage 1; set zero_stage: 2"),
        (Plugin(3), "ZeRO of stage 3; set zero_stage: 2 .* or cut weights as well with recipes/accelerate/fsdp2.yaml"),
        (Plugin(optimizer={"type": "Adam"}), "DeepSpeed's optimizer may train otherwise than the recipe says; take it"),
        (Plugin(bf16={"enabled": True}), "DeepSpeed's bf16 may train otherwise"),
        (
            Plugin(zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}}),
            "offload_optimizer_device: cpu replaces the recipe's optimiser by one of DeepSpeed's; set offload",
        ),
    ],
)
def test_configurations_that_would_train_otherwise(plugin: Plugin, said: str) -> None:
    zero.require_plain(Plugin(bf16={"enabled": False}, gradient_clipping="auto"))
    with pytest.raises(UserError, match=said):
        zero.require_plain(plugin)


def changed(recipe: Recipe, **train: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def test_the_recipe_s_numbers_count(tmp_path: Path) -> None:
    recipe = tiny_recipe("vit_gpt2", tmp_path, max_grad_norm=0.5)
    plugin = Plugin(gradient_accumulation_steps=4)
    zero.require_zero(recipe, Engine(plugin))
    numbers = ("gradient_clipping", "gradient_accumulation_steps", "train_micro_batch_size_per_gpu", "train_batch_size")
    assert [plugin.deepspeed_config[name] for name in numbers] == [0.5, 1, 2, 4]
    zero.require_zero(recipe, Engine(Plugin(gradient_clipping=0.5)))
    with pytest.raises(UserError, match=r"gradient_clipping is 1.0, and train.max_grad_norm of the recipe 0.5; leave"):
        zero.require_zero(recipe, Engine(Plugin(gradient_clipping=1.0)))


def test_what_zero_cannot_train_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe("image_text_to_text", tmp_path, "lora")
    require_shardable(recipe, whole_weights=True)
    others = {
        "dpo": recipe.model_copy(update={"dpo": DpoOptions(pairs="pairs.jsonl")}),
        "lora.load_in_4bit": recipe.model_copy(
            update={"lora": recipe.lora and recipe.lora.model_copy(update={"load_in_4bit": True})}
        ),
        "model.quantization": recipe.model_copy(
            update={"model": recipe.model.model_copy(update={"quantization": "4bit"})}
        ),
        **{
            f"train.{key}": changed(recipe, **{key: value})
            for key, value in {"optim": "adafactor", "torch_compile": True, "mixed_precision": "fp16"}.items()
        },
    }
    for key, other in others.items():
        with pytest.raises(UserError, match=f"^{key}: not with DeepSpeed in the accelerate configuration"):
            require_shardable(other, whole_weights=True)


def test_a_cpu_or_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_accelerator()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    said = "which Accelerate does with GPUs alone" if installed else "package that is not installed: DeepSpeed"
    with pytest.raises(UserError, match=said):
        new_accelerator("no")
    forget_accelerator()


def test_an_infinite_gradient_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed says that its norm is -1."""
    for norm, expected in ((-1.0, float("inf")), (0.25, 0.25), (None, None)):
        monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda self, *_, norm=norm: norm)
        assert Engine(Plugin()).clip_grad_norm_([], 1.0) == expected


@pytest.mark.parametrize("case", [case for case in two_processes.CASES if case[1] not in ("dpo", "qlora")])
def test_no_family_is_forgotten(case: tuple[str, str]) -> None:
    assert "-".join(case) in zero_processes.CASES
