"""Kinds whose processor or vision part exists only for torchvision or timm: loss, gradients, captions, saving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.adaptation.targets import adapted_modules, lora_coverage
from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.vlm.loading import MODEL_TYPES
from hfcap.card.requirements import CORE, needed_packages
from hfcap.files import read_json
from hfcap.recipe.blocks import LoraOptions
from tests.captioners.helpers import gradients, pixel_values, plain_processor, write_image
from tests.captioners.itt_film_models import NEEDS, VISION_MODELS, of_vision
from tests.captioners.itt_grid_models import GRID_MODELS
from tests.captioners.itt_own_forward import assert_own_captions, assert_own_loss_and_gradients, own_captions
from tests.captioners.itt_runs import OPTIONS, assert_doctor_agrees, card_caption, run_recipe
from tests.training.harness import forget_accelerator

pytestmark = pytest.mark.contract

COUNTS = (3, 1, 2)
FILMS_LEFT_OUT = {*GRID_MODELS} - {"hunyuan_vl", "paddleocr_vl"}
"""Without torchvision they are built without the part of their processor that reads films, and not loaded again."""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_accelerator()


@pytest.fixture(scope="module", params=VISION_MODELS)
def captioner(request: pytest.FixtureRequest) -> ImageTextToText:
    if request.param not in MODEL_TYPES:
        pytest.skip("this release of transformers does not know the model type")
    if request.param not in FILMS_LEFT_OUT:
        require_packages(request.param)
    return of_vision(request.param)


def require_packages(model_type: str) -> None:
    for package in NEEDS.get(model_type, ["torchvision"]):
        if package != "num2words":  # the builder does without
            pytest.importorskip(package)


def test_loss_and_gradients_equal_the_model_s_own_forward(captioner: ImageTextToText) -> None:
    assert_own_loss_and_gradients(captioner, COUNTS)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_equal_the_model_s_own_generate(captioner: ImageTextToText, num_beams: int) -> None:
    assert_own_captions(captioner, num_beams)


def test_parts_and_what_encoding_runs(captioner: ImageTextToText) -> None:
    parts = captioner.part_modules()
    ids = [{id(weight) for module in modules for weight in module.parameters()} for modules in parts.values()]
    assert sum(map(len, ids)) == len(set.union(*ids)) == len(list(captioner.model.parameters()))
    captioner.encode(pixel_values(captioner, 2)).square().sum().backward()
    touched = {name for name, gradient in gradients(captioner.model).items() if bool(gradient.any())}
    assert touched
    assert touched <= {name for name, weight in captioner.model.named_parameters() if id(weight) in ids[0]}


def test_lora_adapts_the_language_model(captioner: ImageTextToText) -> None:
    names = adapted_modules(captioner, LoraOptions())
    text = {id(module) for part in captioner.part_modules()["text"] for module in part.modules()}
    modules = dict(captioner.model.named_modules())
    assert names and all(id(modules[name]) in text for name in names)
    adapted = of_vision(captioner.model.config.model_type)
    add_lora(adapted, LoraOptions(r=2))
    coverage = lora_coverage(adapted)
    # The experts' weights have no layers of their own; lora.target_parameters names them.
    taken_for_experts = {"gate_proj", "up_proj", "down_proj"} if names_of_experts(adapted) else set()
    assert set(coverage.missed) == {*coverage.parameters, *taken_for_experts}
    assert coverage.share == 1.0 or any("experts" in name for name in coverage.missed)


def names_of_experts(captioner: ImageTextToText) -> bool:
    """Whether peft takes layers of this model for experts as transformers 4 named them."""
    return captioner.model.config.model_type == "glm4v_moe"


def test_saved_model_loads_here_and_with_plain_transformers(captioner: ImageTextToText, tmp_path: Path) -> None:
    require_packages(captioner.model.config.model_type)
    captioner.save(tmp_path, OPTIONS)
    needed = NEEDS.get(captioner.model.config.model_type, ["torchvision"])
    assert needed_packages(tmp_path) == [*CORE, *needed]
    pixels = pixel_values(captioner, 3)
    expected = [captions[0].text for captions in captioner.caption_states(captioner.encode(pixels), OPTIONS)]
    again = load_captioner(str(tmp_path))
    assert isinstance(again, ImageTextToText)
    assert (again.prompt, again.image_size) == (captioner.prompt, captioner.image_size)
    assert torch.equal(pixel_values(again, 3), pixels)
    assert [captions[0].text for captions in again.caption_states(again.encode(pixels), OPTIONS)] == expected
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    again.model, again.processor = model, plain_processor(tmp_path)
    assert own_captions(again, 3, OPTIONS) == expected


def test_the_card_s_code_gives_the_same_caption(
    captioner: ImageTextToText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_packages(captioner.model.config.model_type)
    captioner.save(tmp_path / "model", OPTIONS)
    image = write_image(tmp_path / "photo.jpg", seed=3)
    pixels = captioner.image_processor(images=Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = captioner.caption_states(captioner.encode(pixels), OPTIONS)[0][0].text
    assert expected
    assert card_caption(tmp_path / "model", image, captioner.model.config.model_type, monkeypatch) == expected


def test_doctor_finds_training_and_generation_in_agreement(captioner: ImageTextToText) -> None:
    assert_doctor_agrees(captioner)


def test_a_whole_run_with_lora(captioner: ImageTextToText, tmp_path: Path) -> None:
    """Feature store, training, captions, scores and everything that publishing checks before anything goes up."""
    require_packages(captioner.model.config.model_type)
    captioner.save(tmp_path / "base", OPTIONS)
    model = {"pretrained": str(tmp_path / "base"), "prompt": "what is on it?", "image_size": captioner.image_size}
    run = run_recipe(tmp_path, model, lora=True)
    assert list((tmp_path / "features").rglob("*.safetensors"))
    assert read_json(run.scores("test"), "scores")["n_images"] == 5
    assert "somebody/base" in run.card.read_text(encoding="utf-8")
