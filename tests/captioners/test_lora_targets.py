"""Which layers LoRA reaches: structure instead of names, peft's own options, and how much that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.adaptation.targets import adapted_modules, lora_coverage
from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.recipe.blocks import LoraOptions
from hfcap.recipe.loading import recipe_from_mapping
from tests.captioners.helpers import build
from tests.captioners.itt_models import LAYERS, itt, llava
from tests.captioners.itt_runs import OPTIONS, run_recipe
from tests.captioners.test_merging import assert_all_say, trained_adapter

pytestmark = pytest.mark.contract
hf: Any = transformers


def llava_with(text: dict[str, Any]) -> ImageTextToText:
    """LLaVA around another language model."""
    model, processor = llava(text)
    return ImageTextToText(model, processor, "what is on it?")


def lfm2() -> ImageTextToText:
    """Convolutions and attention, with names of layers that no other language model has."""
    return llava_with(
        {
            "model_type": "lfm2",
            **LAYERS,
            "num_key_value_heads": 1,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        }
    )


def experts() -> ImageTextToText:
    """Experts whose weights lie in one tensor, next to a shared one."""
    return llava_with(
        {
            "model_type": "qwen2_moe",
            **LAYERS,
            "num_key_value_heads": 1,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        }
    )


def endings(names: list[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def test_auto_takes_layers_whatever_they_are_called() -> None:
    captioner = lfm2()
    names = adapted_modules(captioner, LoraOptions())
    assert endings(names) == {"in_proj", "out_proj", "w1", "w2", "w3", "q_proj", "k_proj", "v_proj"}
    language_model = captioner.model.model.language_model
    everything = {id(layer) for layer in language_model.modules() if isinstance(layer, nn.Linear)}
    assert {id(captioner.model.get_submodule(name)) for name in names} == everything
    add_lora(captioner, LoraOptions(r=2))
    coverage = lora_coverage(captioner)
    assert (coverage.share, coverage.missed) == (1.0, {})
    assert coverage.sentence() == "LoRA reaches 100 % of the language model's linear weights"


def test_auto_leaves_routers_and_heads() -> None:
    captioner = experts()
    names = adapted_modules(captioner, LoraOptions())
    assert endings(names) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not any(name.endswith(("gate", "lm_head")) for name in names)
    assert any(name.endswith("shared_expert_gate") for name, _ in captioner.model.named_modules())


def test_coverage_counts_what_the_layers_hold() -> None:
    captioner = lfm2()
    add_lora(captioner, LoraOptions(r=2, target_modules=["q_proj", "v_proj"]))
    inside = captioner.model.model.language_model
    adapted = {layer.get_base_layer() for layer in inside.modules() if isinstance(layer, LoraLayer)}
    small = {part for layer in inside.modules() if isinstance(layer, LoraLayer) for part in layer.modules()} - adapted
    linear = [layer for layer in inside.modules() if isinstance(layer, nn.Linear) and layer not in small]
    coverage = lora_coverage(captioner)
    assert coverage.weights == sum(layer.weight.numel() for layer in linear)
    assert coverage.reached == sum(layer.weight.numel() for layer in adapted)
    assert not coverage.enough
    assert coverage.missed == {"w1": 2, "w3": 2, "w2": 2, "out_proj": 2, "in_proj": 1, "k_proj": 1}
    assert "not: w1 (2), w3 (2)" in coverage.sentence() and "auto" in coverage.remedy()


def test_what_is_trained_in_full_counts_as_reached() -> None:
    captioner = lfm2()
    add_lora(captioner, LoraOptions(r=2, target_modules=["q_proj"], modules_to_save=["feed_forward"]))
    assert not {"w1", "w2", "w3"} & set(lora_coverage(captioner).missed)


def test_experts_are_reached_by_target_parameters(tmp_path: Path) -> None:
    captioner = experts()
    add_lora(captioner, LoraOptions(r=2, lora_dropout=0.0))
    coverage = lora_coverage(captioner)
    assert coverage.parameters == ("experts.gate_up_proj", "experts.down_proj")
    assert not coverage.enough and "lora.target_parameters: [experts.gate_up_proj, exp" in coverage.remedy()
    captioner = experts()
    expected = trained_adapter(captioner, tmp_path, target_parameters=list(coverage.parameters))
    assert lora_coverage(captioner).share == 1.0
    saved = read_json(tmp_path / "adapter" / "adapter_config.json", "adapter")
    assert saved["target_parameters"] == list(coverage.parameters)
    assert_all_say(expected, tmp_path)


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(UserError, match=r"target_parameters: 'mlp.nothing' matches no.*experts\.gate_up_proj"):
        add_lora(experts(), LoraOptions(lora_dropout=0.0, target_parameters=["mlp.nothing"]))
    with pytest.raises(UserError, match=r"lora_dropout: 0.*change lora\.lora_dropout"):
        add_lora(experts(), LoraOptions(target_parameters=["experts.down_proj"]))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"vision_tower", "multi_modal_projector", "language_model"}),
        (r".*vision_tower.*\.(q_proj|v_proj)", {"vision_tower"}),
        (r".*multi_modal_projector\.linear_\d", {"multi_modal_projector"}),
        (r".*(language_model|multi_modal_projector).*", {"multi_modal_projector", "language_model"}),
    ],
)
def test_all_linear_and_regular_expressions(targets: str, expected: set[str], tmp_path: Path) -> None:
    captioner = itt("llava")
    names = adapted_modules(captioner, LoraOptions(target_modules=targets))
    assert {name.split(".")[1] for name in names} == expected
    if targets == "all-linear":
        linear = [module for module in captioner.model.modules() if isinstance(module, nn.Linear)]
        assert len(names) == len(linear) - 1  # the head
    assert_all_say(trained_adapter(captioner, tmp_path, target_modules=targets), tmp_path)


def test_expressions_that_fit_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"target_modules: nothing matches no layer.*q_proj \("):
        adapted_modules(itt("llava"), LoraOptions(target_modules="nothing"))
    with pytest.raises(UserError, match=r"lora.target_modules: '\(' is no regular expression"):
        recipe_from_mapping(
            {"name": "a", "captioner": "blip", "model": {"from_config": {}}, "lora": {"target_modules": "("}}, "test"
        )


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6}},
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "orthogonal"},
        {"trainable_token_indices": [3, 50]},
        {"modules_to_save": ["multi_modal_projector"]},
    ],
    ids=str,
)
def test_options_reach_peft_and_publish_what_was_trained(options: dict[str, Any], tmp_path: Path) -> None:
    captioner = itt("llava")
    expected = trained_adapter(captioner, tmp_path, **options)
    saved = read_json(tmp_path / "adapter" / "adapter_config.json", "adapter")
    assert {name: saved[name] for name in options} == options
    layer = next(m for n, m in captioner.model.named_modules() if n.endswith("q_proj") and isinstance(m, LoraLayer))
    assert layer.r["default"] == (2 if "rank_pattern" in options else 4)
    scale = 32 / (2 if options.get("use_rslora") else 4)
    assert layer.scaling["default"] == pytest.approx(6 / 2 if "alpha_pattern" in options else scale)
    assert_all_say(expected, tmp_path)


def test_eva_begins_with_what_the_layers_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captioner = itt("llava")
    captioner.save(tmp_path / "base", OPTIONS)
    begun: list[torch.Tensor] = []
    for init in (True, "eva"):
        run = run_recipe(
            tmp_path / str(init),
            {"pretrained": str(tmp_path / "base"), "prompt": captioner.prompt},
            lora=True,
            lora_options={"init_lora_weights": init, "r": 2},
            learning_rate=1e-12,
        )
        assert "LoRA reaches 100 % of the language model's linear weights" in capsys.readouterr().err
        begun.append(_first_a(run.model))
    random, chosen = begun
    # The directions of the data's largest variance are orthonormal; random ones are not.
    torch.testing.assert_close(chosen @ chosen.T, torch.eye(2), rtol=1e-3, atol=1e-3)
    assert float((random @ random.T - torch.eye(2)).abs().max()) > 0.1


def _first_a(folder: Path) -> torch.Tensor:
    weights = load_file(folder / "adapter_model.safetensors")
    return next(value for name, value in sorted(weights.items()) if "lora_A" in name and "q_proj" in name)


def test_a_family_with_a_list_of_its_own_keeps_it() -> None:
    assert endings(adapted_modules(build("blip"), LoraOptions())) == {"query", "key", "value", "dense"}
