"""Which weights the optimiser gets and with which numbers; on a captioner that was never loaded into a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers import Trainer

from hfcap.errors import UserError
from hfcap.recipe.blocks import TrainOptions
from hfcap.recipe.training_blocks import Optimizer
from hfcap.training.optimization import (
    MovingAverage,
    build_optimizer,
    build_scheduler,
    encoder_is_frozen,
    freeze_parts,
    frozen_modules,
    parameter_groups,
    require_optimization,
    require_trained_parts,
    set_dropout,
    train_in_float32,
    trained_parameters,
)


def two_parts() -> Any:
    """A vision part of two modules and a text part with dropout; every module has a matrix and a vector."""
    model = nn.ModuleDict(
        {
            "first": nn.Linear(3, 4),
            "second": nn.Linear(4, 4),
            "words": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Dropout(0.0), nn.Dropout(0.3)),
        }
    )
    parts = {"vision": [model["first"], model["second"]], "text": [model["words"]]}
    return SimpleNamespace(model=model, part_modules=lambda: parts, device=torch.device("cpu"))


def options(**values: Any) -> TrainOptions:
    return TrainOptions(**{"max_steps": 10, **values})


def test_groups_by_part_and_decay() -> None:
    captioner = two_parts()
    groups = parameter_groups(captioner, options(learning_rate=1e-3, learning_rates={"text": 5e-5}, weight_decay=0.25))
    shapes = {(g["part"], g["weight_decay"], g["lr"]): [tuple(p.shape) for p in g["params"]] for g in groups}
    assert shapes == {
        ("vision", 0.25, 1e-3): [(4, 3), (4, 4)],
        ("vision", 0.0, 1e-3): [(4,), (4,)],
        ("text", 0.25, 5e-5): [(4, 4)],
        ("text", 0.0, 5e-5): [(4,)],
    }


def test_adamw_as_the_recipe_says() -> None:
    captioner = two_parts()
    given = options(learning_rate=2e-3, adam_beta1=0.8, adam_beta2=0.98, adam_epsilon=1e-5, weight_decay=0.0)
    optimizer = build_optimizer(captioner, given)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3] * 4
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["fused"]) == ((0.8, 0.98), 1e-5, True)
    captioner.device = torch.device("cuda")
    assert build_optimizer(captioner, given).param_groups[0]["fused"] is True
    captioner.device = torch.device("meta")
    assert build_optimizer(captioner, given).param_groups[0]["fused"] is False


@pytest.mark.parametrize(
    ("given", "warm"), [({"warmup_steps": 4}, 4), ({"warmup_ratio": 0.26}, 3), ({}, 0), ({"warmup_ratio": 0.04}, 0)]
)
def test_steps_of_the_warm_up(given: dict[str, Any], warm: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
    scheduler = build_scheduler(optimizer, options(lr_scheduler_type="constant_with_warmup", **given), total_steps=10)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5 * min(1.0, step / max(warm, 1)) if warm else 0.5 for step in range(6)])


def test_frozen_parts() -> None:
    captioner = two_parts()
    assert frozen_modules(captioner) == [] and not encoder_is_frozen(captioner)
    captioner.model["first"].requires_grad_(False)
    assert frozen_modules(captioner) == [captioner.model["first"]] and not encoder_is_frozen(captioner)
    freeze_parts(captioner, options(freeze=["vision"]))
    assert encoder_is_frozen(captioner) and len(frozen_modules(captioner)) == 2
    assert list(trained_parameters(captioner.model)) == ["words.0.weight", "words.0.bias"]
    with pytest.raises(
        UserError, match=r"train\.freeze: \['vision', 'text'\] leaves nothing to train; take a part out"
    ):
        freeze_parts(captioner, options(freeze=["vision", "text"]))


def test_dropout_of_a_part() -> None:
    captioner = two_parts()
    set_dropout(captioner, options(dropout={"text": 0.5}))
    assert [layer.p for layer in captioner.model["words"][1:]] == [0.5, 0.0, 0.5]
    with pytest.raises(
        UserError, match=r"train\.dropout\.vision: this part has no dropout layer .*; leave the key out"
    ):
        set_dropout(captioner, options(dropout={"vision": 0.5}))
    require_trained_parts(captioner, options(dropout={"text": 0.5}))
    captioner.model["words"][0].bias.requires_grad_(False)
    require_trained_parts(captioner, options(dropout={"text": 0.5}))
    captioner.model["words"].requires_grad_(False)
    with pytest.raises(UserError, match=r"train\.dropout\.text: nothing of this part is trained.*; leave the key out"):
        require_trained_parts(captioner, options(dropout={"text": 0.5}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chosen", [None, "float32"])
def test_one_trained_weight_in_half_precision_makes_all_float32(dtype: torch.dtype, chosen: str | None) -> None:
    captioner = two_parts()
    captioner.model["first"].to(dtype).requires_grad_(False)
    train_in_float32(captioner, "bfloat16")
    assert captioner.model["first"].weight.dtype == dtype, "frozen weights may be what they are"
    captioner.model["words"].to(dtype)
    with pytest.raises(UserError, match=r"model\.dtype: AdamW cannot train bfloat16 weights \(words\.0\.weight\)"):
        train_in_float32(captioner, "bfloat16")
    train_in_float32(captioner, chosen)
    assert {weight.dtype for weight in captioner.model.parameters()} == {torch.float32}
    captioner.model.double()
    train_in_float32(captioner, chosen)
    assert captioner.model["words"][0].weight.dtype == torch.float64


def test_refusals_name_the_key_and_the_way_out() -> None:
    captioner = two_parts()
    captioner.model["words"].bfloat16()
    said = {
        "float32": "model.dtype: AdamW cannot train bfloat16 weights (words.0.weight), it would round their updates "
        "away; train adapters alone (the block lora, without modules_to_save), or set dtype: float32 and "
        "train.mixed_precision",
        "freeze": "train.freeze: ['vision', 'text'] leaves nothing to train; take a part out of the list",
        "no dropout": "train.dropout.vision: this part has no dropout layer that is switched on; leave the key out, or "
        "build the model with dropout (resid_pdrop, hidden_dropout_prob, ... in its configuration)",
        "not trained": "train.dropout.text: nothing of this part is trained (train.freeze, or LoRA elsewhere), so that "
        "it has no dropout; leave the key out",
    }
    asked = {
        "float32": lambda: train_in_float32(captioner, "bfloat16"),
        "freeze": lambda: freeze_parts(captioner, options(freeze=["vision", "text"])),
        "no dropout": lambda: set_dropout(captioner, options(dropout={"vision": 0.5})),
        "not trained": lambda: require_trained_parts(captioner, options(dropout={"text": 0.5})),
    }
    for name, ask in asked.items():
        with pytest.raises(UserError) as caught:
            ask()
        assert str(caught.value) == said[name]


BITSANDBYTES = {
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit",
    "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
}  # fmt: skip
"""Optimisers that transformers takes from bitsandbytes."""


@pytest.mark.parametrize("name", sorted(get_args(Optimizer)))
def test_bitsandbytes_is_required_where_transformers_takes_the_optimiser_from_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("hfcap.training.optimization.require_bitsandbytes", lambda *given: asked.append(given))

    def factory(arguments: Any, model: Any) -> tuple[Any, dict[str, Any]]:
        assert arguments.optim == name and isinstance(model, nn.Module)
        return torch.optim.SGD, {}

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(factory))
    device = torch.device("meta")
    require_optimization(options(optim=name), device)
    assert asked == ([("train.optim", name, "adamw_torch", device)] if name in BITSANDBYTES else [])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("galore_adamw_layerwise", "it steps inside the backward pass, weight by weight"),
        ("adalomo", "it steps inside the backward pass"),
        ("schedule_free_sgd", "it keeps weights apart from those that it trains, outside what checkpoints hold"),
    ],
)
def test_optimisers_that_the_loop_cannot_use_are_refused(name: str, reason: str) -> None:
    given = options().model_copy(update={"optim": name})  # a recipe cannot name them
    with pytest.raises(UserError) as caught:
        require_optimization(given, torch.device("cpu"))
    assert str(caught.value) == f"train.optim: hfcap cannot train with {name}: {reason}; choose another"


def test_what_is_said_of_one_weight_is_its_group_s(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = two_parts()
    low = captioner.model["first"].weight
    given = [{"params": [low], "rank": 2}, {"params": [w for w in captioner.model.parameters() if w is not low]}]
    found = torch.optim.SGD, {"lr": 0.1, "params": given}
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda *_: found))
    optimizer = build_optimizer(captioner, options(optim="galore_adamw", optim_target_modules=["first"]))
    shapes = [([tuple(w.shape) for w in group["params"]], group.get("rank")) for group in optimizer.param_groups]
    assert shapes == [([(4, 3)], 2), ([(4, 4)], None), ([(4,), (4,)], None), ([(4, 4)], None), ([(4,)], None)]


def test_what_the_library_says_is_shown_in_one_line_of_bearable_length(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError("no\n   such" + "x" * 500)

    monkeypatch.setattr("hfcap.training.optimization.get_scheduler", fails)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError) as caught:
        build_scheduler(optimizer, options(lr_scheduler_type="linear"), 10)
    assert str(caught.value) == f"train.lr_scheduler_kwargs: not what linear takes: no\n   such{'x' * 190}"
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(fails))
    with pytest.raises(UserError) as caught:
        build_optimizer(two_parts(), options(optim="sgd"))
    assert str(caught.value) == f"train.optim: transformers cannot make sgd here: no such{'x' * 293}"


def test_the_note_on_the_old_name_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    require_optimization(options(warmup_ratio=0.25), torch.device("cpu"))
    said = "note: train.warmup_ratio is called warmup_steps: 0.25 since transformers 5\n"
    assert capsys.readouterr().err == said


def test_the_average_follows_every_weight_and_stands_apart() -> None:
    weights = {"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.full((1, 1), 4.0))}
    average = MovingAverage(weights, 0.9)
    weights["a"].data += 11.0
    weights["b"].data += 22.0
    assert average.average["a"].tolist() == [1.0, 1.0] and average.updates == 0
    average.update()
    # (1 + 1) / (10 + 1) of the old value stays at the first update.
    assert average.average["a"].tolist() == pytest.approx([10.0, 10.0]) and average.updates == 1
    assert average.average["b"].item() == pytest.approx(22.0)
    assert not any(tensor.requires_grad for tensor in average.average.values())
    with average.in_place():
        assert weights["a"].tolist() == pytest.approx([10.0, 10.0]) and weights["b"].item() == pytest.approx(22.0)
    assert weights["a"].tolist() == [12.0, 12.0] and weights["b"].item() == 26.0
