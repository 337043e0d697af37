"""LoRA: what is trained, and that an adapter comes back as it was, separate and merged."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from hfcap.captioners.adaptation.lora import add_lora, load_adapter, save_adapter
from hfcap.captioners.adaptation.targets import adapted_modules
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import describe_size, generation_defaults, load_captioner, save_merged
from hfcap.errors import UserError
from hfcap.files import write_json
from hfcap.recipe.blocks import GenerateOptions, LoraOptions
from tests.captioners.helpers import FAMILIES, PROMPT, build, packed, packed_loss, pixel_values, random_captions
from tests.rounding import assert_equal_to_rounding

pytestmark = pytest.mark.contract

OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=7)
COUNTS = (2, 1, 3)


def _logits(captioner: Captioner) -> torch.Tensor:
    captioner.model.eval()
    with torch.no_grad():
        rows = packed(captioner, random_captions(captioner, COUNTS))
        return captioner.logits(captioner.encode(pixel_values(captioner, len(COUNTS))), rows)


@dataclass
class Trained:
    """A base model and an adapter of a few real updates, both on disk, and what the adapted captioner says."""

    captioner: Captioner
    peft_model: Any
    before: dict[str, torch.Tensor]
    base: Path
    adapter: Path
    base_logits: torch.Tensor
    logits: torch.Tensor


@pytest.fixture(scope="module", params=[(name, dora) for name in FAMILIES for dora in (False, True)], ids=str)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    family, use_dora = request.param
    folder = tmp_path_factory.mktemp("lora")
    captioner = build(family, prompt=PROMPT)
    captioner.save(folder / "base", OPTIONS)
    base_logits = _logits(captioner)
    before = {name: value.clone() for name, value in captioner.model.named_parameters()}
    peft_model = add_lora(captioner, LoraOptions(r=4, use_dora=use_dora))
    weights = [parameter for parameter in captioner.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    torch.manual_seed(0)
    captioner.model.train()
    for _ in range(3):
        loss = packed_loss(captioner, pixel_values(captioner, 3), random_captions(captioner, COUNTS))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(peft_model, str(folder / "base"), folder / "adapter")
    captioner.save_processor(folder / "adapter")
    captioner.generation_config(OPTIONS).save_pretrained(folder / "adapter")
    logits = _logits(captioner)
    return Trained(captioner, peft_model, before, folder / "base", folder / "adapter", base_logits, logits)


def test_only_adapters_and_new_modules_are_trained(trained: Trained) -> None:
    whole = trained.captioner.lora_modules_to_save
    trainable = [name for name, parameter in trained.captioner.model.named_parameters() if parameter.requires_grad]
    assert any("lora_A" in name for name in trainable)
    for name in trainable:
        in_whole = any(f"{module}.modules_to_save." in name for module in whole)
        assert "lora_" in name or in_whole, name
    for module in whole:
        assert any(f"{module}.modules_to_save." in name for name in trainable), module
    vision = trained.captioner.part_modules()["vision"]
    assert not any(parameter.requires_grad for part in vision for parameter in part.parameters())


def test_base_weights_stay_as_they_were(trained: Trained) -> None:
    after = dict(trained.captioner.model.named_parameters())
    compared = 0
    for name, value in trained.before.items():
        candidates = [name, name.replace(".weight", ".base_layer.weight"), name.replace(".bias", ".base_layer.bias")]
        for candidate in candidates:
            if candidate in after and not after[candidate].requires_grad:
                assert torch.equal(after[candidate], value), candidate
                compared += 1
    assert compared > len(trained.before) // 2


def test_training_changed_something(trained: Trained) -> None:
    assert float((trained.logits - trained.base_logits).abs().max()) > 1e-2


def test_adapter_comes_back(trained: Trained) -> None:
    again = load_captioner(str(trained.adapter), merge=False)
    assert torch.equal(_logits(again), trained.logits)
    assert again.prompt == PROMPT
    assert again.start_token_ids() == trained.captioner.start_token_ids()
    assert again.caption_token_ids(["a red <end> cat"], 20) == trained.captioner.caption_token_ids(
        ["a red <end> cat"], 20
    )


def test_merged_equals_separate(trained: Trained, tmp_path: Path) -> None:
    merged = load_captioner(str(trained.adapter))
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    assert_equal_to_rounding({"logits": _logits(merged)}, {"logits": trained.logits})

    save_merged(str(trained.adapter), tmp_path / "merged")
    again = load_captioner(str(tmp_path / "merged"))
    assert torch.equal(_logits(again), _logits(merged))
    assert again.prompt == PROMPT
    with pytest.raises(UserError, match="not empty"):
        save_merged(str(trained.adapter), tmp_path / "merged")


def test_captions_of_adapter_and_merged_are_the_same(trained: Trained) -> None:
    pixels = pixel_values(trained.captioner, 3)
    found = []
    for merge in (False, True):
        captioner = load_captioner(str(trained.adapter), merge=merge)
        with torch.inference_mode():
            found.append([c[0].text for c in captioner.caption_states(captioner.encode(pixels), OPTIONS)])
    assert found[0] == found[1]


def test_adapter_folder_holds_only_what_is_needed(trained: Trained) -> None:
    names = {path.name for path in trained.adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "hfcap.json", "tokenizer.json"} <= names
    assert "README.md" not in names
    adapter, base = (trained.adapter / "adapter_model.safetensors", trained.base / "model.safetensors")
    assert adapter.stat().st_size < base.stat().st_size


def test_base_beside_the_adapter_wins_over_the_recorded_path(trained: Trained, tmp_path: Path) -> None:
    """A run directory may be moved as a whole."""
    shutil.copytree(trained.base, tmp_path / "moved" / "base_model")
    shutil.copytree(trained.adapter, tmp_path / "moved" / "model")
    save_adapter(trained.peft_model, "/where/it/was/before", tmp_path / "moved" / "model")
    again = load_captioner(str(tmp_path / "moved" / "model"), merge=False)
    assert torch.equal(_logits(again), trained.logits)


def test_adapter_whose_base_is_gone(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    save_adapter(trained.peft_model, str(tmp_path / "gone"), tmp_path / "adapter")
    with pytest.raises(
        UserError, match=r"base model of this adapter.*base_model_name_or_path.*no such folder"
    ) as found:
        load_captioner(str(tmp_path / "adapter"))
    assert str(tmp_path / "gone") in str(found.value)


def test_adapter_that_names_no_base(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    write_json(tmp_path / "adapter" / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(UserError, match="base_model_name_or_path is missing"):
        load_captioner(str(tmp_path / "adapter"))


def test_damaged_adapter(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="the adapter does not fit"):
        load_captioner(str(tmp_path / "adapter"))


def test_an_adapter_that_is_a_pickle_is_never_opened(tmp_path: Path) -> None:
    captioner = build("clip_prefix")
    save_adapter(add_lora(captioner, LoraOptions(r=2)), "x", tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="safetensors"):
        load_adapter(build("clip_prefix"), tmp_path)


def test_adapter_of_another_captioner(tmp_path: Path) -> None:
    narrow = build("clip_prefix")
    save_adapter(add_lora(narrow, LoraOptions(r=2)), "x", tmp_path)
    wider = build("clip_prefix", prefix_length=7)
    with pytest.raises(UserError, match="does not fit its base model"):
        load_adapter(wider, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_target_that_matches_nothing(family: str) -> None:
    captioner = build(family)
    with pytest.raises(UserError, match=r"lora\.target_modules: 'q_prj' matches no linear layer.*choose from \w+ \("):
        add_lora(captioner, LoraOptions(target_modules=["q_prj"]))
    assert not any("lora" in name for name, _ in captioner.model.named_parameters())


def test_no_target_at_all() -> None:
    with pytest.raises(ValidationError, match=r"target_modules"):
        LoraOptions(target_modules=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "olora"}, r"init_lora_weights: olora takes no layers of GPT-2's kind .*choose pissa"),
        ({"init_lora_weights": "pissa", "r": 65}, r"lora\.r: 65 is more than .*pissa finds in .* set it to at most"),
        ({"init_lora_weights": "pissa", "load_in_4bit": True}, "pissa needs full weights"),
        ({"target_modules": [""]}, "target_modules: '' matches no linear layer"),
        ({"modules_to_save": [""]}, "modules_to_save: '' matches no module"),
        ({"modules_to_save": ["nothere"]}, "modules_to_save: 'nothere' matches no module"),
    ],
    ids=str,
)
def test_adapters_that_peft_cannot_make_are_refused_before_any_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted_modules(build("vit_gpt2"), LoraOptions(**options))


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_from_the_weights_changes_nothing_that_the_model_says(family: str, start: Any) -> None:
    captioner = build(family)
    expected = _logits(captioner)
    options = LoraOptions(r=4, init_lora_weights=start)
    layers = map(captioner.model.get_submodule, adapted_modules(captioner, LoraOptions()))
    if start == "olora" and any(type(layer).__name__ == "Conv1D" for layer in layers):
        with pytest.raises(UserError, match="olora takes no layers"):
            add_lora(captioner, options)
        return
    add_lora(captioner, options)
    assert torch.allclose(_logits(captioner), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_start_from_weights_that_are_shared_is_refused() -> None:
    captioner = build("vit_gpt2")
    assert captioner.model.decoder.lm_head.weight is captioner.model.decoder.transformer.wte.weight
    with pytest.raises(UserError, match=r"init_lora_weights: pissa changes weights .* that other layers share"):
        add_lora(captioner, LoraOptions(r=4, target_modules=["lm_head"], init_lora_weights="pissa"))


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_that_matches_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = build(family)
    monkeypatch.setattr(type(captioner), "lora_target_modules", r"no_such_layer\..*")
    with pytest.raises(UserError, match=r"lora\.target_modules: auto matches no layer.*give a list of"):
        add_lora(captioner, LoraOptions())


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_adapts_attention_and_mlp_of_the_text_part_only(family: str) -> None:
    captioner = build(family)
    names = adapted_modules(captioner, LoraOptions())
    text = {id(module) for part in captioner.part_modules()["text"] for module in part.modules()}
    modules = dict(captioner.model.named_modules())
    assert all(id(modules[name]) in text for name in names)
    assert any("att" in name for name in names) and any("mlp" in name or "output" in name for name in names)
    vocabulary = len(captioner.tokenizer)
    assert not any(vocabulary in modules[name].weight.shape for name in names)  # never the head


@pytest.mark.parametrize("family", FAMILIES)
def test_listed_targets_are_adapted_and_counted(family: str) -> None:
    captioner = build(family)
    total = describe_size(captioner)
    assert total["parameters"] == total["trainable_parameters"]
    target = adapted_modules(captioner, LoraOptions())[0]
    add_lora(captioner, LoraOptions(r=2, target_modules=[target]))
    size = describe_size(captioner)
    expected = sum(parameter.numel() for parameter in captioner.model.parameters() if parameter.requires_grad)
    assert 0 < size["trainable_parameters"] == expected < size["parameters"]
    adapted = {name.split(".lora_A")[0] for name, _ in captioner.model.named_parameters() if ".lora_A" in name}
    assert adapted == {target}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_decoding_defaults_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=r"generation_config\.json"):
        generation_defaults(tmp_path)


def test_merging_names_wrong_decoding_defaults(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "generation_config.json").write_text('{"num_beams": 0}')
    with pytest.raises(UserError, match=r"generation_config\.json: num_beams: .*greater than"):
        save_merged(str(tmp_path / "adapter"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_optional_part_of_bitsandbytes_is_no_news() -> None:
    """peft imports it where it is installed; on some processors it warns, in programs that never quantise."""
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
