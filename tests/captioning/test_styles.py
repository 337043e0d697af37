"""What models are asked where nobody says it, and styles of captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import GenerationConfig

from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioners.loading import generation_defaults, load_captioner
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.styles import STYLE_TOKENS, Style
from tests.captioners.helpers import build
from tests.captioners.itt_models import itt

pytestmark = pytest.mark.contract


def from_strangers(folder: Path, captioner: ImageTextToText, **decoding: Any) -> Path:
    """A model as transformers saves it, without a note of hfcap's."""
    captioner.model.generation_config = GenerationConfig(**decoding)
    captioner.model.save_pretrained(folder)
    captioner.processor.save_pretrained(folder)
    assert not (folder / "hfcap.json").exists()
    return folder


def test_a_chat_model_without_a_prompt_is_asked_for_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = from_strangers(tmp_path, itt("llava", prompt=""), max_new_tokens=77)
    captioner = load_captioner(str(folder))
    assert captioner.prompt == CHAT_STYLES["short"]
    said = capsys.readouterr().err
    assert "no prompt is saved with llava" in said and CHAT_STYLES["short"] in said and "--prompt" in said
    assert generation_defaults(folder) == {"num_beams": 1, "max_new_tokens": 77}  # the checkpoint's own counts
    (folder / "generation_config.json").unlink()
    assert generation_defaults(folder) == {"num_beams": 1, "max_new_tokens": 128}


@pytest.mark.parametrize(("kind", "prompt"), [("paligemma", "caption en"), ("florence2", "<CAPTION>"), ("blip-2", "")])
def test_other_kinds_are_asked_as_their_authors_do(kind: str, prompt: str, tmp_path: Path) -> None:
    folder = from_strangers(tmp_path, itt(kind, prompt=""))
    (folder / "generation_config.json").unlink()
    assert load_captioner(str(folder)).prompt == prompt
    assert generation_defaults(folder) == {}


def test_an_empty_prompt_that_was_saved_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    itt("llava", prompt="").save(tmp_path, GenerateOptions())
    assert load_captioner(str(tmp_path)).prompt == ""
    assert "no prompt" not in capsys.readouterr().err
    assert generation_defaults(tmp_path)["num_beams"] == GenerateOptions().num_beams


def test_styles_are_prompts_of_the_kind() -> None:
    assert set(get_args(Style)) == set(CHAT_STYLES) == set(STYLE_TOKENS)
    chat = itt("llava")
    assert {style: chat.style_prompt(style) for style in CHAT_STYLES} == dict(CHAT_STYLES)
    assert itt("florence2").style_prompt("detailed") == "<MORE_DETAILED_CAPTION>"
    with pytest.raises(UserError, match=r"style tags: paligemma has no prompt for it; choose.*\(short, detailed\)"):
        itt("paligemma").style_prompt("tags")
    with pytest.raises(UserError, match=r"style tags: blip-2 has no prompt for it.*takes no instructions"):
        itt("blip-2").style_prompt("tags")
    with pytest.raises(UserError, match="style tags: this captioner takes no instructions; leave the style out"):
        build("blip").style_prompt("tags")
