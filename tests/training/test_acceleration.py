"""Checkpointed and compiled layers, 8-bit optimisers, 4-bit layers: what they change and what they ask for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation

from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.base import Captioner
from hfcap.errors import UserError
from hfcap.recipe.blocks import LoraOptions, TrainOptions
from hfcap.recipe.loading import RecipeError
from hfcap.training.acceleration import CheapDropout, checkpoint_layers, compile_layers, use_cheap_layers
from hfcap.training.optimization import build_optimizer
from tests.captioners.helpers import (
    FAMILIES,
    build,
    family_class,
    gradients,
    packed_loss,
    pixel_values,
    random_captions,
)
from tests.rounding import assert_equal_to_rounding
from tests.training.harness import tiny_recipe


def _checkpointed(captioner: Captioner) -> dict[str, bool]:
    return {
        part: any(getattr(layer, "gradient_checkpointing", False) for module in modules for layer in module.modules())
        for part, modules in captioner.part_modules().items()
    }


WITHOUT_LAYERS = {
    ("clip_prefix", "mapper"),
    ("image_text_to_text", "connector"),
    ("cnn_transformer", "vision"),
    ("show_attend_tell", "vision"),
}
"""Parts that are one small network, and ConvNeXt, whose layers transformers cannot compute again."""


@pytest.mark.parametrize(
    ("family", "part"), [(family, part) for family in FAMILIES for part in family_class(family).parts]
)
def test_only_the_parts_named_are_checkpointed(family: str, part: str) -> None:
    captioner = build(family)
    if (family, part) in WITHOUT_LAYERS:
        with pytest.raises(UserError, match=rf"gradient_checkpointing: part '{part}' has no layers"):
            checkpoint_layers(captioner, [part])
        return
    checkpoint_layers(captioner, [part])
    assert [name for name, on in _checkpointed(captioner).items() if on] == [part]


def test_an_unknown_part_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no part 'visoin'.*vision"):
        tiny_recipe("blip", tmp_path, gradient_checkpointing=["visoin"])


def test_compiled_layers_give_the_same_loss_and_gradients() -> None:
    captioner = build("blip")
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    names = list(captioner.model.state_dict())
    expected = packed_loss(captioner, pixels, captions)
    expected.backward()
    wanted = gradients(captioner.model)
    # The tracing backend alone: code generation takes minutes and is torch's own business.
    assert compile_layers(captioner.model, backend="aot_eager") == 4
    found = packed_loss(captioner, pixels, captions)
    found.backward()
    torch.testing.assert_close(found, expected)
    assert_equal_to_rounding(gradients(captioner.model), wanted)
    assert list(captioner.model.state_dict()) == names


def test_a_machine_that_cannot_compile_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match=r"train.torch_compile: .*no C\+\+ compiler found.*set it to false"):
        compile_layers(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
def test_eight_bit_optimisers_ask_for_a_device_that_can(optim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captioner, "device", torch.device("mps"))
    with pytest.raises(UserError, match=rf"train.optim: {optim} needs a CUDA GPU or a CPU.*mps; set it to adamw_torch"):
        build_optimizer(build("blip"), TrainOptions(max_steps=1, optim=optim))


def test_eight_bit_optimisers_ask_for_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captioner, "device", torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"train.optim: adamw_bnb_8bit needs the package 'bitsandbytes'.* adamw_torch"):
        build_optimizer(build("blip"), TrainOptions(max_steps=1, optim="adamw_bnb_8bit"))


class _FewBits(torch.optim.AdamW):
    def __init__(self, groups: Any, optim_bits: int, is_paged: bool, **values: Any) -> None:
        super().__init__(groups, **values)
        self.kind = (optim_bits, is_paged)


@pytest.mark.parametrize(("optim", "kind"), [("adamw_bnb_8bit", (8, False)), ("paged_adamw_8bit", (8, True))])
def test_eight_bit_optimisers_get_the_recipes_groups(
    optim: Any, kind: tuple[int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's AdamW in the place of bitsandbytes'; test_quantization.py has the real one."""
    monkeypatch.setattr(Captioner, "device", torch.device("cuda"))
    inside = SimpleNamespace(AdamW=_FewBits, Lion=None, RMSprop=None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=inside))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", inside)
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: True)
    numbers = {"adam_beta1": 0.8, "adam_beta2": 0.98, "adam_epsilon": 1e-5}
    options = TrainOptions(max_steps=1, optim=optim, learning_rate=1e-3, learning_rates={"vision": 1e-5}, **numbers)
    optimizer: Any = build_optimizer(build("blip"), options)
    assert optimizer.kind == kind
    groups = optimizer.param_groups
    assert {group["part"]: group["lr"] for group in groups} == {"vision": 1e-5, "text": 1e-3}
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.8, 0.98), 1e-5)}


def test_four_bit_layers_ask_for_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"lora.load_in_4bit: true needs the package .*'bitsandbytes>=0.*set it to"):
        add_lora(build("blip"), LoraOptions(load_in_4bit=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cheap_dropout_keeps_each_value_alone_with_its_probability(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    layer = CheapDropout(0.3).train()
    found = torch.stack([layer(torch.ones(7, 101, 3, dtype=dtype)) for _ in range(400)]).float()
    kept = found != 0
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / 0.7), rtol=5e-3, atol=0)
    # 848,400 draws: five standard deviations are 0.0025. Neighbours share a draw of the generator: no correlation.
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.0025)
    flat = kept.view(-1)
    for distance in range(1, 9):
        both = float((flat[:-distance] & flat[distance:]).float().mean())
        assert both == pytest.approx(0.49, abs=0.003)
    # The same place in two batches is drawn again: no value is kept or dropped always.
    assert 0.55 < float(kept.float().mean(0).min()) < float(kept.float().mean(0).max()) < 0.85


def test_cheap_dropout_scales_the_gradient_as_it_scales_the_value_and_rests_in_evaluation() -> None:
    torch.manual_seed(3)
    values = torch.randn(5, 9, requires_grad=True)
    layer = CheapDropout(0.5)
    out = layer.train()(values)
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad * values.detach(), out.detach())
    assert set(values.grad.unique().tolist()) == {0.0, 2.0}
    assert layer.eval()(values) is values
    assert torch.equal(CheapDropout(1.0).train()(values), torch.zeros(5, 9))
    assert CheapDropout(0.0).train()(values) is not None


@pytest.mark.parametrize("family", ["vit_gpt2", "clip_prefix"])
def test_cheap_layers_give_the_same_loss_and_gradients(family: str) -> None:
    captioner = build(family)
    add_lora(captioner, LoraOptions(r=2, lora_alpha=4, lora_dropout=0.1))
    captioner.model.eval()
    names = list(captioner.model.state_dict())
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    expected = packed_loss(captioner, pixels, captions)
    expected.backward()
    wanted = gradients(captioner.model)
    use_cheap_layers(captioner.model)
    kinds = [type(module) for module in captioner.model.modules()]
    assert nn.Dropout not in kinds and NewGELUActivation not in kinds
    assert CheapDropout in kinds and GELUTanh in kinds
    assert list(captioner.model.state_dict()) == names
    found = packed_loss(captioner, pixels, captions)
    found.backward()
    torch.testing.assert_close(found, expected)
    assert_equal_to_rounding(gradients(captioner.model), wanted)
