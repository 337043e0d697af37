"""What the recipe's training keys do to weights, gradients and learning rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.training import loop
from hfcap.training.assemble import training_run
from hfcap.training.build import build_captioner, make_trainable
from hfcap.training.loop import TrainingRun
from hfcap.training.optimization import (
    MovingAverage,
    build_optimizer,
    build_scheduler,
    parameter_groups,
    trained_parameters,
)
from hfcap.training.updates import Stepper
from tests.rounding import assert_equal_to_rounding
from tests.training.harness import (
    FAMILIES,
    METHODS,
    assert_same_path,
    assert_same_tensors,
    forget_accelerator,
    plain_descent,
    ragged,
    recipe_values,
    tiny_recipe,
    train,
)


def prepared(folder: Path, captioner: str, method: str = "full", **options: Any) -> TrainingRun:
    """A training that has not begun."""
    forget_accelerator()
    recipe = tiny_recipe(captioner, folder, method, **options)
    splits = {"train": load_split(recipe.data, "train"), "validation": load_split(recipe.data, "validation")}
    trainable = make_trainable(build_captioner(recipe, splits["train"]), recipe)
    run = RunDirectory(folder / recipe.name)
    return training_run(recipe, run, trainable, splits, make_accelerator(recipe, run))


def first_gradients(training: TrainingRun) -> dict[str, torch.Tensor]:
    """Gradients of the first update, in training mode."""
    training.objective.train()
    (window, _), *_ = training._windows()
    for batch in window:
        training.objective(batch).backward()
    return {name: p.grad.clone() for name, p in training.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("captioner", FAMILIES)
def test_two_half_batches_equal_one_batch(
    captioner: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "build_optimizer", plain_descent)
    options: dict[str, Any] = {"dropout": 0.0, "max_steps": 3, "max_grad_norm": 0.5, "learning_rate": 0.1}
    whole = train(
        tiny_recipe(captioner, tmp_path / "a", method, **options, per_device_train_batch_size=7),
        ragged_splits(tmp_path),
    )
    parts = train(
        tiny_recipe(
            captioner, tmp_path / "b", method, **options, per_device_train_batch_size=2, gradient_accumulation_steps=4
        ),
        ragged_splits(tmp_path),
    )
    # A mean of means would weigh the last, smaller batch and short captions wrongly.
    assert_same_path(parts, whole, step=3, earlier=2)
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)
    assert [row["grad_norm"] for row in whole.rows if "loss" in row] == pytest.approx(
        [row["grad_norm"] for row in parts.rows if "loss" in row], rel=1e-4
    )
    assert whole.state(3)["images_seen"] == parts.state(3)["images_seen"] == 21


def ragged_splits(tmp_path: Path) -> dict[str, Any]:
    """Scenes with one to five captions each."""
    data = tiny_recipe("blip", tmp_path).data
    return {"train": ragged(load_split(data, "train")), "validation": load_split(data, "validation")}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("captioner", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(captioner: str, method: str, tmp_path: Path) -> None:
    plain = prepared(tmp_path, captioner, method, dropout=0.0)
    checkpointed = prepared(tmp_path, captioner, method, dropout=0.0, gradient_checkpointing=True)
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.captioner.model.modules())
    calls: list[str] = []
    for module in checkpointed.captioner.model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = _counting(module._gradient_checkpointing_func, calls)
    ours, theirs = first_gradients(checkpointed), first_gradients(plain)
    assert calls, "no layer was checkpointed"
    assert_equal_to_rounding(ours, theirs)


def _counting(function: Any, calls: list[str]) -> Any:
    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append("checkpointed")
        return function(*arguments, **keywords)

    return counted


@pytest.mark.parametrize("captioner", FAMILIES)
def test_frozen_parts_stay_bit_equal_and_others_move(captioner: str, tmp_path: Path) -> None:
    recipe = tiny_recipe(captioner, tmp_path, freeze=["vision"], max_steps=2)
    before = build_captioner(recipe, load_split(recipe.data, "train"))
    vision = {id(p) for module in before.part_modules()["vision"] for p in module.parameters()}
    names = {name for name, p in before.model.named_parameters() if id(p) in vision}
    start = {name: p.detach().clone() for name, p in before.model.named_parameters()}
    result = train(recipe)
    after = {name: p.detach() for name, p in load_captioner(str(result.run.model)).model.named_parameters()}
    assert names
    assert_same_tensors({name: start[name] for name in names}, {name: after[name] for name in names})
    trained = result.weights(2)
    assert names.isdisjoint(trained)
    moved = [name for name in trained if name in start and not torch.equal(trained[name], start[name])]
    assert len(moved) > 5


def test_batch_norm_of_a_frozen_encoder_does_not_move(tmp_path: Path) -> None:
    """The first update too: a model that was just built is in training mode."""
    values = tiny_recipe("clip_prefix", tmp_path, max_steps=2, freeze=["vision"], data={"feature_store": "off"})
    resnet = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
        "image_size": 32,
    }
    recipe = values.model_copy(update={"model": values.model.model_copy(update={"vision_config": resnet})})
    before = build_captioner(recipe, load_split(recipe.data, "train"))
    buffers = {name: buffer.clone() for name, buffer in before.model.named_buffers() if "running" in name}
    after = train(recipe).weights(2)
    assert len(buffers) > 4
    assert_same_tensors(buffers, {name: after[name] for name in buffers})


def test_batch_norm_of_a_trained_encoder_moves(tmp_path: Path) -> None:
    values = tiny_recipe("clip_prefix", tmp_path, max_steps=1)
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "image_size": 32}
    resnet["layer_type"] = "basic"
    recipe = values.model_copy(update={"model": values.model.model_copy(update={"vision_config": resnet})})
    after = train(recipe).weights(1)
    means = [tensor for name, tensor in after.items() if "running_mean" in name]
    assert means and all(float(mean.abs().max()) > 0 for mean in means)


@pytest.mark.parametrize("captioner", FAMILIES)
def test_lora_trains_only_adapters_and_new_parts(captioner: str, tmp_path: Path) -> None:
    training = prepared(tmp_path, captioner, "lora")
    new_parts = tuple(training.captioner.lora_modules_to_save)
    assert training.parameters
    for name in training.parameters:
        assert "lora_" in name or any(part in name.split(".") for part in new_parts), name


def test_freezing_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.freeze.*leaves nothing to train"):
        prepared(tmp_path, "blip", freeze=["vision", "text"])


def test_learning_rates_per_part(tmp_path: Path) -> None:
    training = prepared(tmp_path, "clip_prefix", learning_rate=1e-3, learning_rates={"vision": 0.0, "text": 1e-5})
    groups = parameter_groups(training.captioner, training.options)
    rates = {(group["part"], group["lr"]) for group in groups}
    assert rates == {("vision", 0.0), ("text", 1e-5), ("mapper", 1e-3)}
    assert sum(len(group["params"]) for group in groups) == len(trained_parameters(training.captioner.model))
    for group in groups:
        kinds = {parameter.ndim >= 2 for parameter in group["params"]}
        assert kinds == {group["weight_decay"] > 0}
    result = train(tiny_recipe("clip_prefix", tmp_path, max_steps=1, learning_rates={"vision": 0.0}))
    start = dict(prepared(tmp_path / "b", "clip_prefix").captioner.model.named_parameters())
    after = result.weights(1)
    unmoved = {name.split(".")[0] for name in after if name in start and torch.equal(after[name], start[name])}
    assert "vision_model" in unmoved and "mapper" not in unmoved


def with_text_dropout(folder: Path, method: str = "full", made_with: float = 0.1) -> Captioner:
    """A tiny clip_prefix made with this dropout, but none on attention, after `train.dropout: {text: 0.4}`."""
    values = recipe_values("clip_prefix", folder, method, dropout=made_with)
    values["model"]["language_model_config"]["attn_pdrop"] = 0.0
    values["train"]["dropout"] = {"text": 0.4}
    recipe = recipe_from_mapping(values, "harness")
    return make_trainable(build_captioner(recipe, load_split(recipe.data, "train")), recipe).captioner


def dropout_probabilities(module: nn.Module) -> set[float]:
    return {layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)}


def test_dropout_per_part_leaves_layers_that_are_off_other_parts_lora_and_the_configuration(tmp_path: Path) -> None:
    model = with_text_dropout(tmp_path).model
    attention = model.language_model.transformer.h[0].attn
    assert (attention.attn_dropout.p, attention.resid_dropout.p) == (0.0, 0.4)
    assert dropout_probabilities(model.language_model) == {0.0, 0.4}
    assert dropout_probabilities(model.mapper) == {0.1}
    assert model.config.text_config.resid_pdrop == 0.1
    adapted = with_text_dropout(tmp_path, "lora").model
    assert dropout_probabilities(adapted.language_model) == {0.0, 0.1, 0.4}


@pytest.mark.parametrize(("method", "freeze"), [("full", ["mapper"]), ("lora", ["mapper"])])
def test_dropout_of_a_part_that_is_not_trained_is_an_error(tmp_path: Path, method: str, freeze: list[str]) -> None:
    values = recipe_values("clip_prefix", tmp_path, method, dropout=0.1)
    values["train"] |= {"dropout": {"mapper": 0.4}, "freeze": freeze}
    recipe = recipe_from_mapping(values, "harness")
    with pytest.raises(UserError, match=r"train\.dropout\.mapper: nothing of this part is trained"):
        make_trainable(build_captioner(recipe, load_split(recipe.data, "train")), recipe)


def test_dropout_of_a_part_without_any_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.dropout\.text: .*no dropout layer that is switched on"):
        with_text_dropout(tmp_path, made_with=0.0)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("constant", lambda step: 1.0),
        ("constant_with_warmup", lambda step: min(1.0, step / 4)),
        ("linear", lambda step: step / 4 if step < 4 else (20 - step) / 16),
        ("cosine", lambda step: step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16))),
    ],
)
@pytest.mark.parametrize("warmup", [{"warmup_steps": 4}, {"warmup_ratio": 0.2}], ids=str)
def test_schedules(kind: str, shape: Any, warmup: dict[str, Any], tmp_path: Path) -> None:
    given = {} if kind == "constant" else warmup
    training = prepared(tmp_path, "blip", lr_scheduler_type=kind, learning_rate=0.5, max_steps=20, **given)
    rates = []
    for _ in range(20):
        rates.append(training.scheduler.get_last_lr()[0])
        training.optimizer.step()
        training.scheduler.step()
    assert rates == pytest.approx([0.5 * shape(step) for step in range(20)], abs=1e-7)


def test_warmup_counts_updates_not_micro_batches(tmp_path: Path) -> None:
    options = tiny_recipe("blip", tmp_path, max_steps=10, warmup_ratio=0.3, gradient_accumulation_steps=4).train
    captioner = prepared(tmp_path, "blip").captioner
    optimizer = build_optimizer(captioner, options)
    scheduler = build_scheduler(optimizer, options, total_steps=10)
    rates = []
    for _ in range(4):
        rates.append(scheduler.get_last_lr()[0] / options.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1])


# The schedule was made for the optimiser whose place SGD takes.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
def test_clipping_limits_the_gradient_and_zero_switches_it_off(tmp_path: Path) -> None:
    """Seen with plain SGD, whose update is the gradient times the rate."""
    moved = {}
    for limit in (0.0, 1e-3, 1e6):
        training = prepared(tmp_path / str(limit), "blip", max_steps=1, max_grad_norm=limit, dropout=0.0)
        before = {name: p.detach().clone() for name, p in training.parameters.items()}
        training.optimizer = torch.optim.SGD(training.parameters.values(), lr=1.0)
        training.prepared_optimizer = training.accelerator.prepare(training.optimizer)
        training.stepper = Stepper(training.accelerator, training.prepared_optimizer)
        (window, _), *_ = training._windows()
        training._update(window, 0.0)
        difference = [p.detach() - before[name] for name, p in training.parameters.items()]
        moved[limit] = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(d) for d in difference])))
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[0.0] == pytest.approx(moved[1e6], rel=1e-6)
    assert moved[0.0] > 0.01


def averages_by_hand(weights: list[float], decay: float) -> list[float]:
    """The first weight and then its average after each of the others, in float64."""
    found = [weights[0]]
    for update, weight in enumerate(weights[1:], start=1):
        kept = min(decay, (1 + update) / (10 + update))  # 2/11, 3/12, ...: the random start is forgotten
        found.append(kept * found[-1] + (1 - kept) * weight)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_moving_average_follows_its_formula(decay: float, dtype: torch.dtype) -> None:
    """From the first update on, and in bfloat16 too, where one thousandth of a weight is less than its last digit."""
    values = [1.0] + [1.0 + number / 8 for number in range(1, 8)] + [1.5] * 300  # exact in bfloat16
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=dtype))
    average = MovingAverage({"w": weight}, decay)
    assert average.average["w"].dtype == torch.float32
    for value, expected in zip(values[1:], averages_by_hand(values, decay)[1:], strict=True):
        weight.data.copy_(torch.tensor([value, -value]))
        average.update()
        # Each of the 300 updates rounds once, by at most half of float32's last digit.
        torch.testing.assert_close(average.average["w"], torch.tensor([expected, -expected]), rtol=300 * 2**-24, atol=0)
    now = weight.detach().clone()
    with average.in_place():
        assert torch.equal(weight, average.average["w"].to(dtype)) and weight.dtype == dtype
    assert torch.equal(weight, now)


def test_weights_come_back_when_the_look_at_the_average_fails() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    average = MovingAverage({"w": weight}, 0.9)
    weight.data.fill_(3.0)
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert weight.tolist() == [1.0, 1.0]
        raise ZeroDivisionError
    assert weight.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("captioner", FAMILIES)
def test_weights_stored_in_half_precision_are_trained_in_float32(captioner: str, tmp_path: Path) -> None:
    """In bfloat16 AdamW rounds updates below a 256th of a weight away."""
    recipe = tiny_recipe(captioner, tmp_path)
    stored = build_captioner(recipe, load_split(recipe.data, "train"))
    stored.model.to(torch.bfloat16)
    stored.save(tmp_path / "half", recipe.generate)
    values = recipe_values(captioner, tmp_path) | {"model": {"pretrained": str(tmp_path / "half")}}
    again = recipe_from_mapping(values, "test")
    trainable = make_trainable(load_captioner(str(tmp_path / "half")), again)
    assert {weight.dtype for weight in trained_parameters(trainable.captioner.model).values()} == {torch.float32}


def test_half_precision_asked_for_is_refused_without_lora(tmp_path: Path) -> None:
    recipe = tiny_recipe("image_text_to_text", tmp_path)
    stored = build_captioner(recipe, load_split(recipe.data, "train"))
    stored.save(tmp_path / "base", recipe.generate)
    for method in METHODS:
        values = recipe_values("image_text_to_text", tmp_path, method)
        values["model"] = {"pretrained": str(tmp_path / "base"), "dtype": "bfloat16"}
        half = recipe_from_mapping(values, "test")
        captioner = build_captioner(half, [])
        assert captioner.model.dtype == torch.bfloat16
        if method == "full":
            with pytest.raises(UserError, match=r"model\.dtype: .*bfloat16.*lora.*float32.*mixed_precision"):
                make_trainable(captioner, half)
        else:
            make_trainable(captioner, half)
            assert captioner.model.dtype == torch.bfloat16  # the frozen weights keep their half of the memory
