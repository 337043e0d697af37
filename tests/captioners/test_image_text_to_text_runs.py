"""Whole runs of image-text-to-text models through the one loop, and the card's code, executed as a stranger would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from hfcap.captioners.adaptation.lora import add_lora
from hfcap.files import read_json
from hfcap.recipe.blocks import LoraOptions
from tests.captioners.helpers import write_image
from tests.captioners.itt_models import MODELS, itt
from tests.captioners.itt_runs import OPTIONS, assert_doctor_agrees, card_caption, run_recipe
from tests.training.harness import forget_accelerator

ALL = ["git", *MODELS]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_accelerator()


@pytest.mark.parametrize("name", ALL)
def test_the_card_s_code_gives_the_caption_that_was_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = itt(name)
    captioner.save(tmp_path / "model", OPTIONS)
    image = write_image(tmp_path / "photo.jpg", seed=3)
    if name.startswith("qwen"):
        # Its processor cannot be loaded without torchvision.
        monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: captioner.processor)
    pixels = captioner.image_processor(images=Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = captioner.caption_states(captioner.encode(pixels), OPTIONS)[0][0].text
    assert expected
    found = card_caption(tmp_path / "model", image, captioner.model.config.model_type, monkeypatch)
    # Random words of a byte-level tokenizer may begin without a space.
    assert found == expected


@pytest.mark.parametrize("name", ALL)
def test_doctor_finds_training_and_generation_in_agreement(name: str) -> None:
    assert_doctor_agrees(itt(name))


def test_chat_model_with_lora_behind_a_frozen_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, chat template and end of reply survive training, reload, scoring and staging."""
    itt("idefics3", "").save(tmp_path / "base", OPTIONS)
    model = {"pretrained": str(tmp_path / "base"), "prompt": "what is on it?"}
    run = run_recipe(tmp_path, model, lora=True)
    assert list((tmp_path / "features").rglob("*.safetensors"))
    assert read_json(run.scores("test"), "scores")["n_images"] == 5
    assert read_json(run.model / "hfcap.json", "notes") == {
        "captioner": "image_text_to_text",
        "prompt": "what is on it?",
        "call": "chat",
        "returns": "prompt and caption",
        "image_backend": "pil",
    }
    card = run.card.read_text()
    assert "apply_chat_template" in card
    # The adapter needs its base model: a server takes them merged.
    assert "hfcap merge . -o merged\n" in card and "transformers serve merged  # or: vllm serve merged" in card
    assert "the prompt `what is on it?`" in card


def test_encoder_decoder_trained_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    itt("florence2", "").save(tmp_path / "base", OPTIONS)
    model = {"pretrained": str(tmp_path / "base"), "prompt": "<CAPTION>"}
    run = run_recipe(tmp_path, model, lora=False, freeze=["vision"], gradient_checkpointing=True)
    summary = read_json(run.summary, "summary")
    assert summary["encoder_frozen"] and 0 < summary["trainable_parameters"] < summary["parameters"]
    image = write_image(tmp_path / "photo.jpg", seed=3)
    assert card_caption(run.publish, image, "florence2", monkeypatch) is not None
    assert "transformers serve" not in run.card.read_text()  # a task is no chat


def test_lora_on_weights_in_half_precision(tmp_path: Path) -> None:
    itt("paligemma", "").save(tmp_path / "base", OPTIONS)
    model = {"pretrained": str(tmp_path / "base"), "prompt": "caption en", "dtype": "bfloat16"}
    run = run_recipe(tmp_path, model, lora=True, mixed_precision="bf16")
    assert read_json(run.scores("test"), "scores")["n_images"] == 5


def test_adapter_weights_are_float32_whatever_the_base(tmp_path: Path) -> None:
    captioner = itt("llava")
    captioner.model.to(torch.bfloat16)
    add_lora(captioner, LoraOptions(r=2))
    assert {p.dtype for p in captioner.model.parameters() if p.requires_grad} == {torch.float32}
