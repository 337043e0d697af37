"""Models whose code comes with their repository: what is served, and one sentence for what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from hfcap.captioners.image_text_to_text import ImageTextToText, ImageTextToTextOptions
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.vlm.adapter import VlmAdapter
from hfcap.captioners.vlm.prefix import Prefix
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import pixel_values
from tests.captioners.itt_models import llava
from tests.captioners.itt_own_forward import assert_own_captions, assert_own_loss_and_gradients
from tests.captioners.itt_runs import OPTIONS, run_recipe
from tests.training.harness import forget_accelerator

CODE = """
from transformers import LlavaConfig, LlavaForConditionalGeneration


class TinyConfig(LlavaConfig):
    model_type = "tiny_own_code"


class TinyModel(LlavaForConditionalGeneration):
    config_class = TinyConfig
"""
BLIND = """

class BlindModel(TinyModel):
    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, labels=None):
        return super().forward(input_ids, pixel_values, attention_mask, labels=labels)
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_accelerator()


def repository(folder: Path, auto_class: str = "AutoModelForImageTextToText", name: str = "TinyModel") -> Path:
    """What the author of such a model publishes: weights, processor, code, and an auto_map that names its classes."""
    plain, processor = llava()
    namespace: dict[str, Any] = {"__name__": "modeling_tiny"}
    exec(CODE, namespace)
    model = namespace["TinyModel"](namespace["TinyConfig"].from_dict(plain.config.to_dict()))
    model.load_state_dict(plain.state_dict())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "tiny_own_code", "architectures": [name]}
    config["auto_map"] = {"AutoConfig": "modeling_tiny.TinyConfig", auto_class: f"modeling_tiny.{name}"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "modeling_tiny.py").write_text(CODE + BLIND, encoding="utf-8")
    return folder


def test_what_is_written_like_transformers_own_models_works(tmp_path: Path) -> None:
    options = ImageTextToTextOptions(
        pretrained=str(repository(tmp_path / "theirs")), prompt="what is it", trust_remote_code=True
    )
    captioner = ImageTextToText.build(options, [])
    captioner.model.eval()
    assert type(captioner.model).__module__.startswith("transformers_modules")
    assert_own_loss_and_gradients(captioner, (3, 1, 2))
    for num_beams in (1, 3):
        assert_own_captions(captioner, num_beams)
    captioner.save(tmp_path / "ours", OPTIONS)
    assert (tmp_path / "ours" / "modeling_tiny.py").is_file()
    expected = captioner.caption_states(captioner.encode(pixel_values(captioner, 3)), OPTIONS)
    again = load_captioner(str(tmp_path / "ours"), trust_remote_code=True)
    assert again.prompt == "what is it"
    assert again.caption_states(again.encode(pixel_values(again, 3)), OPTIONS) == expected
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", trust_remote_code=True)
    assert type(plain).__name__ == "TinyModel"


@pytest.mark.parametrize("lora", [False, True])
def test_a_whole_run(lora: bool, tmp_path: Path) -> None:
    base = repository(tmp_path / "theirs")
    model = {"pretrained": str(base), "prompt": "what is it", "trust_remote_code": True}
    run = run_recipe(tmp_path, model, lora=lora)
    assert read_json(run.scores("test"), "scores")["n_images"] == 5
    assert read_json(run.model / "hfcap.json", "notes")["brings_code"] == "true"
    assert (run.model / "modeling_tiny.py").is_file() != lora


def test_nobody_s_code_runs_without_being_asked_for(tmp_path: Path) -> None:
    place = str(repository(tmp_path))
    (tmp_path / "modeling_tiny.py").write_text("raise SystemExit('code ran')", encoding="utf-8")
    for attempt in (
        lambda: load_captioner(place),
        lambda: ImageTextToText.build(ImageTextToTextOptions(pretrained=place), []),
    ):
        with pytest.raises(UserError, match=r"type 'tiny_own_code' whose code comes with it; give --trust-remote-code"):
            attempt()


def test_what_the_code_lacks_is_said(tmp_path: Path) -> None:
    other = repository(tmp_path / "other", "AutoModelForCausalLM")  # as Moondream's repository
    with pytest.raises(
        UserError, match=r"names no AutoModelForImageTextToText \(only AutoConfig, AutoModelForCausalLM"
    ):
        load_captioner(str(other), trust_remote_code=True)
    blind = repository(tmp_path / "blind", name="BlindModel")
    with pytest.raises(UserError, match=r"with BlindModel: .*it lacks a parameter mm_encoder_outputs of its forward\)"):
        load_captioner(str(blind), trust_remote_code=True)


class TinyAdapter(Prefix):
    """How the model takes image and words; here as LLaVA does, so that its captions can be packed."""

    model_types: ClassVar[tuple[str, ...]] = ("tiny_own_code",)


class Tiny(ImageTextToText):
    """A family as another package would register it."""

    model_types = ("tiny_own_code",)
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    adapters: ClassVar[tuple[type[VlmAdapter], ...]] = (TinyAdapter,)


def test_a_family_in_another_package_says_how(tmp_path: Path) -> None:
    place = repository(tmp_path, "AutoModelForCausalLM")
    captioner = Tiny.build(ImageTextToTextOptions(pretrained=str(place), prompt="what", trust_remote_code=True), [])
    captioner.model.eval()
    assert isinstance(captioner.kind, TinyAdapter) and captioner.packs_captions
    assert_own_loss_and_gradients(captioner, (3, 1, 2))
    assert_own_captions(captioner, 3)
    states = captioner.encode(pixel_values(captioner, 2))
    assert torch.isfinite(states).all()
    assert captioner.caption_states(states, GenerateOptions(max_new_tokens=3))
