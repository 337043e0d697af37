"""Kinds without a file of their own, and those with a small one: loss, gradients, captions, parts, saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Pix2StructConfig,
    Pix2StructForConditionalGeneration,
)

from hfcap.captioners.adaptation.targets import adapted_modules
from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.vlm.generic import Generic
from hfcap.captioners.vlm.loading import MODEL_TYPES, REFUSED
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions, LoraOptions
from tests.captioners.helpers import gradients, pixel_values, plain_processor, random_image
from tests.captioners.itt_models import MODELS, itt
from tests.captioners.itt_more_models import MORE_MODELS, more
from tests.captioners.itt_own_forward import (
    assert_own_captions,
    assert_own_loss_and_gradients,
    own_inputs,
)

COUNTS = (3, 1, 2)
FILMS = ("internvl", "llava_onevision", "qwen3_vl", "glm4v")
"""Their processors cannot be loaded without torchvision, because of the films they also take."""


@pytest.fixture(scope="module", params=MORE_MODELS)
def captioner(request: pytest.FixtureRequest) -> ImageTextToText:
    return more(request.param)


def test_loss_and_gradients_equal_the_model_s_own_forward(captioner: ImageTextToText) -> None:
    assert_own_loss_and_gradients(captioner, COUNTS)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_equal_the_model_s_own_generate(captioner: ImageTextToText, num_beams: int) -> None:
    assert_own_captions(captioner, num_beams)


def test_parts_and_what_encoding_runs(captioner: ImageTextToText) -> None:
    parts = captioner.part_modules()
    assert tuple(parts) == captioner.parts
    ids = [{id(weight) for module in modules for weight in module.parameters()} for modules in parts.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == len(list(captioner.model.parameters()))
    captioner.encode(pixel_values(captioner, 2)).sum().backward()
    touched = {name for name, gradient in gradients(captioner.model).items() if bool(gradient.any())}
    assert touched
    assert touched <= {name for name, weight in captioner.model.named_parameters() if id(weight) in ids[0]}


def test_lora_adapts_the_language_model(captioner: ImageTextToText) -> None:
    names = adapted_modules(captioner, LoraOptions())
    text = {id(module) for part in captioner.part_modules()["text"] for module in part.modules()}
    modules = dict(captioner.model.named_modules())
    assert all(id(modules[name]) in text for name in names)
    assert any("attn" in name for name in names) and any("mlp" in name or "fc1" in name for name in names)


@pytest.mark.parametrize("name", [name for name in MORE_MODELS if name not in FILMS])
def test_saved_model_loads_here_and_with_plain_transformers(name: str, tmp_path: Path) -> None:
    captioner = more(name)
    options = GenerateOptions(num_beams=2, max_new_tokens=6)
    captioner.save(tmp_path, options)
    pixels = pixel_values(captioner, 2)
    expected = [captions[0].text for captions in captioner.caption_states(captioner.encode(pixels), options)]
    again = load_captioner(str(tmp_path))
    assert isinstance(again, ImageTextToText)
    assert (again.prompt, again.image_size) == (captioner.prompt, captioner.image_size)
    assert again.sees_one_image == captioner.sees_one_image
    assert torch.equal(pixel_values(again, 2), pixels)
    assert [captions[0].text for captions in again.caption_states(again.encode(pixels), options)] == expected
    again.processor = plain_processor(tmp_path)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = own_inputs(again, 2)
    # The language models inside these bring generation settings of their own.
    inside = {"num_beams": 2, "max_new_tokens": 6} if name in ("instructblip", "kosmos-2") else {}
    sequences = model.generate(**inputs, **inside)[:, inputs["input_ids"].shape[1] :]
    texts = again.tokenizer.batch_decode(sequences, skip_special_tokens=True)
    assert [" ".join(text.split()) for text in texts] == expected


def test_images_become_one_square_only_where_their_shape_matters() -> None:
    sizes = {name: more(name).image_size for name in ("janus", "internvl", "idefics2", "mllama")}
    assert sizes == {"janus": None, "internvl": 32, "idefics2": 32, "mllama": 32}
    captioner = more("internvl")
    images = [random_image(0, (64, 32)), random_image(1, (20, 90))]
    values = captioner.image_processor(images=images, return_tensors="pt")["pixel_values"]
    assert captioner.encode(values).shape[0] == 2


def test_whether_anybody_can_look_at_the_pixels() -> None:
    assert more("janus").sees_one_image
    assert itt("qwen2_vl").sees_one_image
    assert not more("qwen3_vl").sees_one_image
    assert not more("llava_next").sees_one_image


@pytest.mark.parametrize("model_type", REFUSED)
def test_types_that_are_not_served_are_refused_by_their_configuration(model_type: str, tmp_path: Path) -> None:
    """One sentence with the reason, before weights are read or code runs."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    if model_type not in MODEL_TYPES:
        pytest.skip("this release of transformers does not know the model type")
    with pytest.raises(UserError) as caught:
        load_captioner(str(tmp_path))
    message = str(caught.value)
    assert f"a model of type {model_type}: {REFUSED[model_type]}; choose another" in message
    assert "\n" not in message and not isinstance(caught.value.__cause__, Exception)


def test_what_reading_needs_and_the_processor_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = more("janus")
    kind = Generic(captioner)

    def reader(pixel_values: Any, target_sizes: Any, return_dict: bool = True) -> Any:
        raise AssertionError

    monkeypatch.setattr(kind, "_readers", lambda: [reader])
    with pytest.raises(UserError, match="reads images with target_sizes, which its processor does not give"):
        kind.encode(pixel_values(captioner, 1))


def test_image_in_several_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = more("janus")
    kind = Generic(captioner)
    called = type(captioner.processor).__call__

    def with_a_close_look(self: Any, **inputs: Any) -> Any:
        values = called(self, **inputs)
        return {**values, "high_res_pixels": values["pixel_values"]}

    monkeypatch.setattr(type(captioner.processor), "__call__", with_a_close_look)
    with pytest.raises(UserError, match=r"of an image together \(high_res_pixels\)"):
        kind.check()


def test_features_that_do_not_fit_their_places_are_refused() -> None:
    captioner = more("janus")
    captioner.processor.num_image_tokens = 3
    captioner.kind = Generic(captioner)
    with pytest.raises(UserError, match="makes 4 states of an image, but its processor leaves 3 places"):
        captioner.encode(pixel_values(captioner, 1))


def test_more_features_than_the_image_s_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = more("janus")
    output = captioner.model.base_model.get_image_features(pixel_values(captioner, 1), return_dict=True)
    output["visual_indicator_features"] = torch.zeros(1)
    monkeypatch.setattr(captioner.model.base_model, "get_image_features", lambda **_: output)
    with pytest.raises(UserError, match=r"cannot keep the image features of Janus"):
        captioner.encode(pixel_values(captioner, 1))


def test_logits_of_more_positions_than_asked_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = more("janus")
    rows = torch.tensor([[captioner.start_token_id, 70, 71]])
    states = captioner.encode(pixel_values(captioner, 1))
    expected = captioner.plain_logits(states, rows)
    forward = captioner.model.forward

    def keeping_all(logits_to_keep: int = 0, mm_encoder_outputs: Any = None, **inputs: Any) -> Any:
        return forward(mm_encoder_outputs=mm_encoder_outputs, **inputs)

    monkeypatch.setattr(captioner.model, "forward", keeping_all)
    assert torch.allclose(captioner.plain_logits(states, rows), expected, atol=1e-5)


@pytest.mark.parametrize(("axis", "left"), [(0, None), (3, None), (None, "pixel_values"), (0, "sizes")])
def test_pixels_of_two_images_lie_where_the_processor_puts_them(
    axis: int | None, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = more("janus")
    called = type(captioner.processor).__call__

    def elsewhere(self: Any, **inputs: Any) -> Any:
        values = called(self, **inputs)
        pixels = values["pixel_values"]
        rows = pixels[:1] if axis is None else torch.cat(list(pixels.split(1)), dim=axis)
        sizes = torch.ones(3 if left == "sizes" else len(pixels), 2)
        return type(values)({**values, "pixel_values": rows, "sizes": sizes})

    monkeypatch.setattr(type(captioner.processor), "__call__", elsewhere)
    kind = Generic(captioner)
    pixels = pixel_values(captioner, 2)
    if left is not None:
        with pytest.raises(UserError, match=rf"makes of two images \({left}\) is not twice"):
            kind.plain_pixels(pixels)
        return
    assert axis is not None
    assert torch.equal(kind.plain_pixels(pixels), torch.cat(list(pixels[:, None]), dim=axis))
    assert kind.sees_one_image() == (axis == 0)


def test_model_whose_image_encoder_has_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = more("janus")
    monkeypatch.setattr(Generic, "tower_names", ())
    monkeypatch.setattr(Generic, "connector_names", ())
    with pytest.raises(UserError, match="does not find the image encoder of Janus"):
        Generic(captioner).check_model()


def test_model_that_reads_images_with_a_layer_of_the_text_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = more("janus")
    monkeypatch.setattr(Generic, "connector_names", ())
    captioner.kind = Generic(captioner)
    with pytest.raises(UserError, match=r"reads images with model\.aligner\.\w+, which hfcap does not know"):
        captioner.encode(pixel_values(captioner, 1))


def test_model_whose_processor_makes_no_tokens_is_refused() -> None:
    class WithoutTokens:
        tokenizer = itt("git").tokenizer

        def __call__(self, **_: Any) -> dict[str, torch.Tensor]:
            return {"flattened_patches": torch.zeros(1, 4, 8)}

    config = Pix2StructConfig(
        vision_config={"num_hidden_layers": 1, "hidden_size": 8, "d_ff": 8, "d_kv": 4, "num_attention_heads": 2},
        text_config={"num_layers": 1, "hidden_size": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "vocab_size": 9},
    )
    with pytest.raises(UserError, match="cannot caption with Pix2StructForConditionalGeneration"):
        ImageTextToText(Pix2StructForConditionalGeneration(config), WithoutTokens())


@pytest.mark.parametrize("name", ["idefics2", "llava_next"])
def test_placeholder_in_the_prompt_is_refused(name: str) -> None:
    captioner = more(name)
    with pytest.raises(UserError, match=r"model\.prompt: the processor of .* the prompt 'see <image> there': .*leave"):
        captioner.kind.prompt_inputs("see <image> there")


def test_text_between_image_and_caption_is_asked_for_where_none_is_given() -> None:
    """LLaVA without a chat template: the processor is given the placeholder and the prompt, nothing else."""
    model, processor = MODELS["llava"]()
    processor.chat_template = None
    with_prompt = ImageTextToText(model, processor, "a photo of")
    with_prompt.kind.check_prompt()
    states = with_prompt.encode(torch.rand(2, 3, 32, 32))
    assert len(with_prompt.caption_states(states, GenerateOptions(max_new_tokens=3))) == 2
    without = ImageTextToText(model, processor)
    for ask in (without.kind.check_prompt, lambda: without.caption_states(states, GenerateOptions(max_new_tokens=3))):
        with pytest.raises(UserError, match=r"model\.prompt: Llava.* needs text between image and caption"):
            ask()
