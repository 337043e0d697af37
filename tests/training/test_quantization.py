"""QLoRA and 8-bit Adam with the real bitsandbytes, on the CPU: trained, stopped, resumed, saved, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfcap.captioners.adaptation import quantization
from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.adaptation.quantization import plain_compute_type
from hfcap.captioners.adaptation.targets import adapted_modules
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.vlm.loading import load_model, quantization_config
from hfcap.files import read_json
from hfcap.recipe.blocks import GenerateOptions, LoraOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.training.accelerator import AUTOCAST
from hfcap.training.build import make_trainable
from tests.captioners.helpers import build, packed, packed_loss, pixel_values, random_captions
from tests.training.harness import recipe_values, tiny_model, train
from tests.training.test_resume import assert_same_end, stop_and_continue

bitsandbytes = pytest.importorskip("bitsandbytes")

WIDTH = 64
"""bitsandbytes quantises blocks of 64 values, and its CPU kernel wants whole blocks in each row."""


def wide(family: str) -> dict[str, Any]:
    """The tiny captioner's model block with a text half of whole blocks."""
    model = tiny_model(family, dropout=0.0)
    if family == "blip":
        model["from_config"]["text_config"] |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
        model["from_config"]["vision_config"] |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    else:
        model["decoder_config"] |= {"n_embd": WIDTH}
        model["encoder_config"] |= {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    return model


@pytest.mark.parametrize("family", ["vit_gpt2", "blip"])
def test_frozen_layers_are_in_four_bits_and_only_the_adapter_trains(family: str) -> None:
    """GPT-2's transposed layers and BERT's plain ones."""
    captioner = build(family, **wide(family))
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    plain = float(packed_loss(captioner, pixels, captions).detach())
    options = LoraOptions(r=2, lora_alpha=4, load_in_4bit=True)
    names = adapted_modules(captioner, options)
    saved = set(captioner.lora_modules_to_save)
    add_lora(captioner, options)
    captioner.model.eval()
    quantised = [m for m in captioner.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(quantised) == sum(not saved.intersection(name.split(".")) for name in names) > 0
    assert all(layer.weight.dtype == torch.uint8 for layer in quantised)
    loss = packed_loss(captioner, pixels, captions)
    # Four bits are coarse, and on random weights nearly everything cancels out.
    assert float(loss.detach()) == pytest.approx(plain, rel=0.02)
    loss.backward()
    trained = {name for name, weight in captioner.model.named_parameters() if weight.requires_grad}
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)
    assert all(
        weight.grad is not None and bool(weight.grad.isfinite().all())
        for name, weight in captioner.model.named_parameters()
        if "lora_B" in name
    )


@pytest.mark.parametrize(
    ("precision", "has_bfloat16", "expected"),
    [("no", True, "bfloat16"), ("no", False, "float32"), ("bf16", True, "bfloat16"), ("fp16", False, "float16")],
)
def test_products_with_four_bits_are_in_the_type_of_mixed_precision(
    precision: str, has_bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without mixed precision in bfloat16, where the GPU has it."""
    product = bitsandbytes.matmul_4bit
    computed: list[tuple[torch.Tensor, Any, Any, torch.Tensor]] = []

    def noted(inputs: torch.Tensor, weight: Any, bias: Any = None, quant_state: Any = None) -> torch.Tensor:
        found: torch.Tensor = product(inputs, weight, bias=bias, quant_state=quant_state)
        computed.append((inputs, weight, bias, found))
        return found

    monkeypatch.setattr("bitsandbytes.matmul_4bit", noted)
    values = recipe_values("vit_gpt2", Path("runs"), "lora", mixed_precision=precision)
    values["model"] = wide("vit_gpt2")
    values["lora"]["load_in_4bit"] = True
    captioner = build("vit_gpt2", **values["model"])
    with monkeypatch.context() as patch:
        patch.setattr(
            quantization, "plain_compute_type", lambda: getattr(torch, "bfloat16" if has_bfloat16 else "float32")
        )
        make_trainable(captioner, recipe_from_mapping(values, "test"))
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    autocast = AUTOCAST[precision]
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        packed_loss(captioner, pixels, captions).backward()
    assert {str(one.dtype) for inputs, *_, found in computed for one in (inputs, found)} == {f"torch.{expected}"}
    # No product was rounded to another type on the way: float16 has 11 bits, bfloat16 8.
    roundings = {"float32": 2**-20, "bfloat16": 2**-8, "float16": 2**-11}[expected]
    for inputs, weight, bias, found in computed:
        whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).double()
        exact = inputs.double() @ whole.T + (0 if bias is None else bias.double())
        size = inputs.double().abs() @ whole.abs().T
        assert bool(((found.double() - exact).abs() <= 2 * roundings * (size + 1e-6)).all())


def test_a_gpu_without_bfloat16_computes_four_bits_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantization_config("4bit", None).bnb_4bit_compute_dtype == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert plain_compute_type() == torch.float32
    assert quantization_config("4bit", None).bnb_4bit_compute_dtype == torch.float32
    assert quantization_config("4bit", "float16").bnb_4bit_compute_dtype == torch.float16


def _lora_gradients(captioner: Captioner, pixels: torch.Tensor, captions: Any) -> list[torch.Tensor]:
    captioner.model.zero_grad()
    packed_loss(captioner, pixels, captions).backward()
    named = captioner.model.named_parameters()
    return [weight.grad.clone() for name, weight in named if "lora_B" in name and weight.grad is not None]


def test_a_validation_leaves_four_bit_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation packs them on AVX512-BF16 (Intel from 2020, AMD from Zen 4); gradients are wrong from then on."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert bitsandbytes.nn.Linear4bit(WIDTH, WIDTH).support_avx512bf16_for_cpu  # what decides, in this release
    captioner = build("vit_gpt2", **wide("vit_gpt2"))
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    add_lora(captioner, LoraOptions(r=2, lora_alpha=4, lora_dropout=0.0, load_in_4bit=True))
    layers = [m for m in captioner.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    before = [layer.weight.clone() for layer in layers]
    captioner.model.train()
    gradients = _lora_gradients(captioner, pixels, captions)
    captioner.model.eval()
    with torch.no_grad():
        packed_loss(captioner, pixels, captions)
    assert layers and not any(getattr(one.weight.quant_state, "packing_format_for_cpu", False) for one in layers)
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    captioner.model.train()
    again = _lora_gradients(captioner, pixels, captions)
    assert gradients and all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


def test_vision_language_models_loaded_in_four_bits_are_kept_from_it_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Any = bitsandbytes.nn.Linear4bit(WIDTH, WIDTH)
    layer.support_avx512bf16_for_cpu = True
    model = torch.nn.Sequential(layer)
    monkeypatch.setattr("hfcap.captioners.vlm.loading.whole_model", lambda *_, **__: model)
    load_model("somewhere", None, False, None, None)
    assert layer.support_avx512bf16_for_cpu is False


def test_qlora_resumes_exactly_and_its_adapter_goes_onto_the_full_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(folder: Path, **train: Any) -> Any:
        recipe = recipe_values("vit_gpt2", folder, "lora", **train)
        recipe["model"] = wide("vit_gpt2")
        recipe["lora"]["load_in_4bit"] = True
        return recipe_from_mapping(recipe, "test")

    monkeypatch.setattr("tests.training.test_resume.tiny_recipe", lambda name, folder, **options: values(folder))
    whole = train(values(tmp_path / "whole"))
    resumed = stop_and_continue(tmp_path / "cut", 3, monkeypatch, "vit_gpt2")
    assert_same_end(resumed, whole)
    assert whole.losses[0] != whole.losses[-1]
    facts = read_json(whole.run.environment, "environment")["precision"]
    assert facts == {"autocast": None, "weights": ["float32", "nf4"], "four_bit_layers": "bfloat16", "tf32": []}
    captioner = load_captioner(str(whole.run.model))
    assert not any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in captioner.model.modules())
    states = captioner.encode(pixel_values(captioner, 2))
    assert len(captioner.caption_states(states, GenerateOptions(num_beams=2, max_new_tokens=4))) == 2


def test_eight_bit_adam_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe_from_mapping(recipe_values("blip", tmp_path / "whole", optim="adamw_bnb_8bit"), "test"))
    resumed = stop_and_continue(tmp_path / "cut", 3, monkeypatch, "blip", optim="adamw_bnb_8bit")
    assert_same_end(resumed, whole)
    kinds = {tensor.dtype for tensor in load_file(whole.checkpoint(4) / "optimizer.safetensors").values()}
    # Tensors of fewer than 4,096 values keep float32 states.
    assert {torch.uint8, torch.float32} <= kinds


def test_evaluation_leaves_the_layout_of_the_weights_and_gradients_alone() -> None:
    """bitsandbytes packs weights for inference on processors with AVX512-BF16; training through them is wrong."""
    captioner = build("vit_gpt2", **wide("vit_gpt2"))
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    add_lora(captioner, LoraOptions(r=2, lora_alpha=4, load_in_4bit=True))
    captioner.model.eval()
    weights = {name: weight.clone() for name, weight in captioner.model.named_parameters() if "lora_" not in name}
    states = captioner.encode(pixels).detach()
    rows = packed(captioner, captions)
    with torch.no_grad():
        logits = captioner.logits(states, rows)
    captioner.caption_states(states, GenerateOptions(num_beams=2, max_new_tokens=4))
    for name, weight in captioner.model.named_parameters():
        assert "lora_" in name or torch.equal(weight, weights[name]), name
    learnt = captioner.logits(states, rows)
    assert torch.equal(learnt, logits)
    assert learnt.requires_grad
