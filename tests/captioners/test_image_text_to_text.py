"""Every kind of image-text-to-text model against its own forward and its own generate, from its own processor."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForImageTextToText

from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.adaptation.targets import adapted_modules
from hfcap.captioners.image_text_to_text import ADAPTERS, ImageTextToText, ImageTextToTextOptions
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.vlm.generic import Generic
from hfcap.captioners.vlm.loading import MODEL_TYPES, quantization_config
from hfcap.captioners.vlm.one_size_images import ImagesOfOneSize
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions, LoraOptions
from hfcap.training.acceleration import checkpoint_layers
from tests.captioners.helpers import (
    CORPUS,
    build,
    gradients,
    packed,
    packed_loss,
    pixel_values,
    plain_processor,
    random_captions,
    random_image,
)
from tests.captioners.itt_models import IMAGE_SIZES, MODELS, QwenProcessor, itt
from tests.captioners.itt_own_forward import (
    assert_own_captions,
    assert_own_loss_and_gradients,
    own_inputs,
)
from tests.rounding import assert_equal_to_rounding

pytestmark = pytest.mark.contract

ALL = ["git", *MODELS]
_WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE_GIT = {
    "model_type": "git",
    "vision_config": {**_WIDE, "image_size": 32, "patch_size": 16},
    **_WIDE,
    "max_position_embeddings": 64,
}
"""Rows of whole blocks of 64 values, as bitsandbytes' CPU kernel wants them."""
COUNTS = (3, 1, 2)
ONE_PER_ROW = ["grouped"]
"""Not a kind: LLaVA treated as a model that hfcap has no file for."""


def captioner_of(name: str, prompt: str | None = None) -> ImageTextToText:
    if name != "grouped":
        return itt(name, prompt)
    captioner = itt("llava", prompt)
    captioner.kind = Generic(captioner)
    return captioner


@pytest.fixture(scope="module", params=ALL + ONE_PER_ROW)
def captioner(request: pytest.FixtureRequest) -> ImageTextToText:
    return captioner_of(request.param)


def test_packed_loss_and_gradients_equal_the_model_s_own_forward(captioner: ImageTextToText) -> None:
    assert_own_loss_and_gradients(captioner, COUNTS)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_equal_the_model_s_own_generate(captioner: ImageTextToText, num_beams: int) -> None:
    assert_own_captions(captioner, num_beams)


def test_greedy_follows_the_training_logits(captioner: ImageTextToText) -> None:
    options = GenerateOptions(num_beams=1, max_new_tokens=6)
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 2))
        start = captioner.start_token_ids()
        sequences = captioner.generate(
            states, torch.tensor([start, start]), captioner.generation_config(options)
        ).tolist()
        for image, sequence in enumerate(sequences):
            assert sequence[: len(start)] == start
            words = sequence[len(start) :]
            if captioner.end_token_id in words:
                words = words[: words.index(captioner.end_token_id) + 1]
            logits = captioner.logits(states[image : image + 1], packed(captioner, [[words]]))[0, len(start) - 1 :]
            assert logits[: len(words)].argmax(-1).tolist() == words


def test_captions_do_not_see_one_another(captioner: ImageTextToText) -> None:
    pixels = pixel_values(captioner, 2)
    captions = random_captions(captioner, [3, 2], seed=4)
    with torch.no_grad():
        together = float(packed_loss(captioner, pixels, captions))
        alone = sum(
            float(packed_loss(captioner, pixels[image : image + 1], [[caption]]))
            for image, of_image in enumerate(captions)
            for caption in of_image
        )
        other = float(packed_loss(captioner, pixels.flip(0), captions))
    assert together == pytest.approx(alone, rel=1e-5)
    assert abs(together - other) > 1e-3


def test_another_prompt_for_one_call(captioner: ImageTextToText) -> None:
    own = captioner.prompt
    options = GenerateOptions(num_beams=1, max_new_tokens=6)
    states = captioner.encode(pixel_values(captioner, 3))
    other = "<DETAILED_CAPTION>" if own == "<CAPTION>" else "two dogs"
    found = captioner.caption_states(states, options, other)
    assert captioner.prompt == own
    captioner.prompt = other
    try:
        assert captioner.caption_states(states, options) == found
    finally:
        captioner.prompt = own
    assert captioner.caption_states(states, options) != found


def test_parts_cover_all_parameters_once(captioner: ImageTextToText) -> None:
    parts = captioner.part_modules()
    assert tuple(parts) == captioner.parts
    found = [
        id(parameter)
        for modules in parts.values()
        for parameter in {id(p): p for module in modules for p in module.parameters()}.values()
    ]
    assert sorted(found) == sorted(id(parameter) for parameter in captioner.model.parameters())


def test_encoding_runs_the_vision_part_and_no_other(captioner: ImageTextToText) -> None:
    """What the feature store keeps depends on frozen weights alone."""
    captioner.encode(pixel_values(captioner, 2)).sum().backward()
    touched = {name for name, gradient in gradients(captioner.model).items() if float(gradient.abs().max()) > 0}
    vision = {id(parameter) for module in captioner.part_modules()["vision"] for parameter in module.parameters()}
    names = {name for name, parameter in captioner.model.named_parameters() if id(parameter) in vision}
    assert touched and touched <= names


def test_prompt_and_end_are_those_of_the_processor(captioner: ImageTextToText) -> None:
    ends = {"idefics3": "<end_of_utterance>", "qwen2_vl": "<|im_end|>", "qwen2_5_vl": "<|im_end|>"}
    model_type = captioner.model.config.model_type
    end = ends.get(model_type, "<end>")
    assert captioner.end_token_id == captioner.tokenizer.convert_tokens_to_ids(end)
    rows = packed(captioner, [[captioner.caption_token_ids(["a red cat"], 20)[0]]])
    taught = rows.labels[rows.labels != -100].tolist()
    assert captioner.tokenizer.decode(taught).strip() == f"a red cat{end}"
    spaced = model_type in ("git", "blip-2", "idefics3", "llava")
    assert captioner.prompt_separator == (" " if spaced else "")


@pytest.mark.parametrize("name", MODELS)
def test_lora_adapts_the_language_model_and_trains(name: str) -> None:
    captioner = itt(name)
    names = adapted_modules(captioner, LoraOptions())
    text = {id(module) for part in captioner.part_modules()["text"] for module in part.modules()}
    modules = dict(captioner.model.named_modules())
    assert all(id(modules[target]) in text for target in names)
    assert any("attn" in target for target in names) and any("fc1" in n or "mlp" in n for n in names)
    vocabulary = captioner.model.config.get_text_config(decoder=True).vocab_size
    assert not any(vocabulary in modules[target].weight.shape for target in names)
    add_lora(captioner, LoraOptions(r=2))
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    optimizer = torch.optim.AdamW([p for p in captioner.model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = packed_loss(captioner, pixels, captions)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_keeps_the_gradients(name: str, method: str) -> None:
    captioner = itt(name)
    if method == "lora":
        add_lora(captioner, LoraOptions(r=4, lora_dropout=0.0))
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [2, 1])
    packed_loss(captioner, pixels, captions).backward()
    expected = gradients(captioner.model)
    checkpoint_layers(captioner, True)
    for module in captioner.model.train().modules():
        for attribute in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    packed_loss(captioner, pixels, captions).backward()
    assert_equal_to_rounding(gradients(captioner.model), expected)


LOADABLE = [name for name in MODELS if not name.startswith("qwen")]
"""Qwen's processor cannot be loaded without torchvision, because of the films it also takes."""


@pytest.mark.parametrize("name", LOADABLE)
def test_saved_model_loads_here_and_with_plain_transformers(name: str, tmp_path: Path) -> None:
    captioner = itt(name)
    options = GenerateOptions(num_beams=2, max_new_tokens=6)
    captioner.save(tmp_path, options)
    states = captioner.encode(pixel_values(captioner, 2))
    rows = packed(captioner, random_captions(captioner, [2, 1]))
    again = load_captioner(str(tmp_path))
    assert again.prompt == captioner.prompt
    assert again.start_token_ids() == captioner.start_token_ids()
    assert again.end_token_id == captioner.end_token_id
    with torch.no_grad():
        assert torch.equal(again.encode(pixel_values(again, 2)), states)
        assert torch.equal(again.logits(states, rows), captioner.logits(states, rows))
    plain: Any = ImageTextToText.__new__(ImageTextToText)
    plain.processor = plain_processor(tmp_path)
    plain.model, plain.prompt, plain.image_size = captioner.model, captioner.prompt, captioner.image_size
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = own_inputs(plain, 2)
    arguments = {"num_beams": 2, "max_new_tokens": 6} if name == "blip-2" else {}
    sequences = model.generate(**inputs, **arguments)
    if not model.config.is_encoder_decoder:
        sequences = sequences[:, inputs["input_ids"].shape[1] :]
    texts = [" ".join(text.split()) for text in plain.processor.batch_decode(sequences, skip_special_tokens=True)]
    assert texts == [captions[0].text for captions in captioner.caption_states(states, options)]


def test_size_of_images_is_kept_beside_the_weights(tmp_path: Path) -> None:
    captioner = itt("qwen2_vl")
    notes = captioner.sidecar()
    assert notes["image_size"] == "56"
    other = ImageTextToText(captioner.model, captioner.processor, image_size=84)
    assert pixel_values(other, 1).shape == (1, 3, 84, 84)
    other.take_sidecar(notes)
    assert pixel_values(other, 1).shape == (1, 3, 56, 56)
    with pytest.raises(UserError, match="image_size must be a whole number"):
        other.take_sidecar({"image_size": "many"})


@pytest.mark.parametrize("size", [50, 14, 448])
def test_size_that_the_processor_would_change_is_refused(size: int) -> None:
    captioner = itt("qwen2_vl")
    with pytest.raises(UserError, match=rf"model\.image_size: {size} does not suit.*multiple of 28"):
        ImageTextToText(captioner.model, captioner.processor, image_size=size)


def test_images_of_any_shape_become_one() -> None:
    images = [random_image(0, (64, 32)), random_image(1, (20, 90))]
    for name in ("idefics3", "qwen2_vl"):
        captioner = itt(name)
        values = captioner.image_processor(images=images, return_tensors="pt")["pixel_values"]
        assert len(values) == 2
        assert captioner.encode(values).shape[0] == 2


def test_black_image_is_a_image() -> None:
    """Idefics3's own code takes pixels of zero for padding and drops the image."""
    captioner = itt("idefics3")
    states = captioner.encode(torch.zeros(2, 3, 32, 32))
    assert states.shape[0] == 2
    assert captioner.caption_states(states, GenerateOptions(num_beams=1, max_new_tokens=3))


def test_unknown_kind_gets_one_row_per_caption() -> None:
    assert type(captioner_of("grouped").kind) is Generic
    assert not Generic.model_types
    known = [name for kind in ADAPTERS for name in kind.model_types]
    assert len(set(known)) == len(known)
    assert set(known) <= MODEL_TYPES


def test_blip2_with_flan_t5_is_refused() -> None:
    captioner = itt("blip-2")
    captioner.model.config.use_decoder_only_language_model = False
    with pytest.raises(UserError, match=r"Flan-T5.*choose one with OPT"):
        ImageTextToText(captioner.model, captioner.processor)


def test_model_that_takes_images_in_another_way_is_refused() -> None:
    captioner = itt("git")
    with pytest.raises(UserError, match=r"cannot caption with GitForCausalLM.*docs/image_text_to_text.md"):
        Generic(captioner).check_model()


def test_other_model_types_are_not_built_from_a_config() -> None:
    with pytest.raises(UserError, match=r"model\.from_config: model_type is 'llava'.*give pretrained"):
        build("image_text_to_text", from_config={"model_type": "llava"})


def test_quantization_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build("image_text_to_text").save(tmp_path, GenerateOptions())
    options = ImageTextToTextOptions(pretrained=str(tmp_path), quantization="4bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bitsandbytes>=0[^']*', or set it to null and model.dtype"):
        ImageTextToText.build(options, CORPUS)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_models_take_lora(quantization: Any, tmp_path: Path) -> None:
    """With the real bitsandbytes, on whatever device is there."""
    pytest.importorskip("bitsandbytes")
    git = build("image_text_to_text", from_config=WIDE_GIT)
    pixels, captions = pixel_values(git, 2), random_captions(git, [2, 1])
    plain = float(packed_loss(git, pixels, captions).detach())
    git.save(tmp_path, GenerateOptions())
    captioner = ImageTextToText.build(
        ImageTextToTextOptions(pretrained=str(tmp_path), quantization=quantization), CORPUS
    )
    kinds = {type(module).__name__ for module in captioner.model.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantization] in kinds
    add_lora(captioner, LoraOptions(r=2, lora_alpha=4))
    captioner.model.eval()
    loss = packed_loss(captioner, pixels.to(captioner.device), captions)
    assert float(loss.detach()) == pytest.approx(plain, rel=0.03)
    loss.backward()
    trained = [weight for weight in captioner.model.parameters() if weight.requires_grad]
    assert trained and any(weight.grad is not None and bool(weight.grad.any()) for weight in trained)


def test_quantization_settings_are_qlora_s() -> None:
    four = quantization_config("4bit", "bfloat16")
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config("8bit", None).load_in_8bit
    with pytest.raises(ValidationError, match="quantization"):
        ImageTextToTextOptions(pretrained="x", quantization="3bit")


class _QuantisedLinear(torch.nn.Module):
    """A linear layer whose weight says int8, as bitsandbytes' layers do."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = [layer]
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> Any:
        return self.layer[0](inputs)


def test_states_stay_numbers_in_front_of_quantised_layers() -> None:
    captioner = itt("blip-2")
    pixels, captions = pixel_values(captioner, 2), random_captions(captioner, [1, 2])
    with torch.no_grad():
        expected = float(packed_loss(captioner, pixels, captions))
        captioner.model.language_projection = _QuantisedLinear(captioner.model.language_projection)
        assert float(packed_loss(captioner, pixels, captions)) == expected


def test_number_type_of_the_weights(tmp_path: Path) -> None:
    build("image_text_to_text").save(tmp_path, GenerateOptions())
    for dtype in ("float32", "bfloat16"):
        options = ImageTextToTextOptions(pretrained=str(tmp_path), dtype=dtype)
        captioner = ImageTextToText.build(options, CORPUS)
        assert captioner.model.dtype == getattr(torch, dtype)
        add_lora(captioner, LoraOptions(r=2))
        states = captioner.encode(pixel_values(captioner, 2))
        packed_loss(captioner, pixel_values(captioner, 2), random_captions(captioner, [1, 2])).backward()
        assert len(captioner.caption_states(states.float(), GenerateOptions(max_new_tokens=3))) == 2


@pytest.mark.parametrize("end", [False, "…", [True]])
def test_an_end_token_that_is_no_number(end: Any, tmp_path: Path) -> None:
    build("image_text_to_text").save(tmp_path, GenerateOptions())
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": end}))
    with pytest.raises(UserError, match=r"eos_token_id of the model must be the number .*generation_config\.json"):
        load_captioner(str(tmp_path)).caption_states(torch.zeros(1, 5, 32), GenerateOptions(max_new_tokens=2))


def test_processor_that_needs_torchvision(tmp_path: Path) -> None:
    captioner = itt("qwen2_vl")
    captioner.save(tmp_path, GenerateOptions())
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert config["processor_class"] == QwenProcessor.__name__
    films = {"video_processor_type": "Qwen2VLVideoProcessor"}
    whole = {**config, "processor_class": "Qwen2VLProcessor", "video_processor": films}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer.pop("processor_class", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(UserError, match=r"pip install torchvision"):
            load_captioner(str(tmp_path))


def test_picklable_images() -> None:
    processor = itt("idefics3").image_processor
    assert isinstance(processor, ImagesOfOneSize)
    again = pickle.loads(pickle.dumps(processor))
    assert torch.equal(again(images=random_image(1))["pixel_values"], processor(images=random_image(1))["pixel_values"])
    assert IMAGE_SIZES["qwen2_vl"] == itt("qwen2_vl").image_processor.to_dict()["image_size"]
