"""Whole runs of image-text-to-text models through the one loop, and the card's code, executed as a stranger would."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hfcap.captioners.lora import add_lora
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.doctor.agreement import examine_agreement
from hfcap.doctor.findings import Findings
from hfcap.files import read_json
from hfcap.publishing.snippet import usage_code
from hfcap.recipe import GenerateOptions, LoraOptions
from hfcap.recipe_loading import recipe_from_mapping
from hfcap.run_directory import RunDirectory
from hfcap.stages import Run
from tests.captioners.helpers import pixel_values, random_captions, write_picture
from tests.captioners.itt_models import MODELS, itt
from tests.training.harness import forget_accelerator

ALL = ["git", *MODELS]
OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=6)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_accelerator()


def run_recipe(folder: Path, model: dict[str, Any], lora: bool, **train: Any) -> RunDirectory:
    values = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "captioner": "image_text_to_text",
        "model": model,
        "data": {
            "source": "scenes",
            "n_train": 7,
            "n_validation": 4,
            "n_test": 5,
            "image_size": 32,
            "feature_store_folder": str(folder / "features"),
        },
        "lora": {"r": 4} if lora else None,
        "train": {
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "dataloader_num_workers": 0,
            **train,
        },
        "generate": OPTIONS.model_dump(include={"num_beams", "max_new_tokens"}),
        "score": {"n_resamples": 10, "baselines": ["blank_images"]},
        "publish": {"license": "apache-2.0", "base_model": "somebody/base"},
    }
    forget_accelerator()
    run = Run(recipe_from_mapping(values, "test"))
    run.execute("publish", False)
    return run.directory


def card_caption(folder: Path, picture: Path, model_type: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the card's code prints for the picture."""
    code = usage_code(str(folder), folder, has_code=False, model_type=model_type)
    monkeypatch.chdir(picture.parent)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {"__name__": "card"})
    return " ".join(printed.getvalue().split())


@pytest.mark.parametrize("name", ALL)
def test_the_card_s_code_gives_the_caption_that_was_scored(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = itt(name)
    captioner.save(tmp_path / "model", OPTIONS)
    picture = write_picture(tmp_path / "photo.jpg", seed=3)
    if name.startswith("qwen"):
        # Its processor cannot be loaded without torchvision.
        monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: captioner.processor)
    pixels = captioner.image_processor(images=Image.open(picture).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = captioner.caption_states(captioner.encode(pixels), OPTIONS)[0][0].text
    assert expected
    found = card_caption(tmp_path / "model", picture, captioner.model.config.model_type, monkeypatch)
    # Random words of a byte-level tokenizer may begin without a space.
    assert found == expected


@pytest.mark.parametrize("name", ALL)
def test_doctor_finds_training_and_generation_in_agreement(name: str, tmp_path: Path) -> None:
    captioner = itt(name)
    captions = random_captions(captioner, [2, 1])
    rows = pack_captions(captions, captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id)
    batch = CaptionBatch(pixel_values(captioner, 2), False, rows, 3)
    values = {
        "name": "x",
        "captioner": "image_text_to_text",
        "model": {"pretrained": "x"},
        "data": {"source": "scenes"},
        "train": {"max_steps": 1},
    }
    findings = Findings()
    facts = examine_agreement(recipe_from_mapping(values, "test"), captioner, batch, findings)
    assert findings.problems == []
    assert facts.start_in_training == facts.start_in_generation == facts.start_in_transformers
    assert facts.prediction_difference is not None and facts.prediction_difference < 1e-4
    assert facts.leak is not None and facts.leak < 1e-4


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
    assert "apply_chat_template" in run.card.read_text()


def test_encoder_decoder_trained_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    itt("florence2", "").save(tmp_path / "base", OPTIONS)
    model = {"pretrained": str(tmp_path / "base"), "prompt": "<CAPTION>"}
    run = run_recipe(tmp_path, model, lora=False, freeze=["vision"], gradient_checkpointing=True)
    summary = read_json(run.summary, "summary")
    assert summary["encoder_frozen"] and 0 < summary["trainable_parameters"] < summary["parameters"]
    picture = write_picture(tmp_path / "photo.jpg", seed=3)
    assert card_caption(run.publish, picture, "florence2", monkeypatch) is not None


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
