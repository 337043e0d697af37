"""Styles from the command line, Python and recipes: what is asked, and how long captions may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import hfcap
from hfcap.captioners.asking.prompts import CHAT_STYLES
from hfcap.cli import app
from hfcap.errors import OptionError, UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.training.build import build_captioner
from tests.captioners.chat_server import ChatServer, chatting
from tests.captioners.helpers import build, random_image, write_image
from tests.captioners.itt_models import itt
from tests.training.harness import recipe_values


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chatting() as server:
        yield server


def asked(chat: ChatServer) -> tuple[str, int]:
    body = chat.asked[-1]
    return body["messages"][0]["content"][1]["text"], body["max_tokens"]


def test_the_command_asks_for_a_style(chat: ChatServer, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.png")
    command = ["caption", chat.base_url, str(image), "-o", str(tmp_path / "captions.txt"), "--style"]
    for style, tokens in (("tags", 96), ("detailed", 384)):
        done = CliRunner().invoke(app, [*command, style, "--force"])
        assert done.exit_code == 0, done.output
        assert asked(chat) == (CHAT_STYLES[style], tokens)
    CliRunner().invoke(app, [*command, "tags", "--force", "--max-new-tokens", "7"])
    assert asked(chat) == (CHAT_STYLES["tags"], 7)
    refused = CliRunner().invoke(app, [*command, "tags", "--prompt", "What?"])
    assert isinstance(refused.exception, OptionError) and "leave one of them out" in str(refused.exception)


def test_python_asks_for_a_style_as_for_its_prompt(tmp_path: Path) -> None:
    itt("llava", prompt="what is it?").save(tmp_path, GenerateOptions(num_beams=1, max_new_tokens=8))
    captioner = hfcap.load_captioner(tmp_path)
    images: list[Any] = [random_image(number) for number in range(4)]
    ways: dict[str, dict[str, Any]] = {
        "own": {},
        "style": {"style": "tags"},
        "prompt": {"prompt": CHAT_STYLES["tags"]},
    }
    texts = {
        how: [one.text for one in captioner.caption(images, max_new_tokens=8, **arguments)]
        for how, arguments in ways.items()
    }
    assert texts["style"] == texts["prompt"] != texts["own"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("paligemma", r"style tags: paligemma has no prompt for it; choose one of its styles \(short"),
        ("blip", "style tags: this captioner takes no instructions; leave the style out"),
    ],
)
def test_a_style_that_a_kind_lacks(kind: str, message: str, tmp_path: Path) -> None:
    captioner = build("blip") if kind == "blip" else itt(kind)
    captioner.save(tmp_path, GenerateOptions())
    with pytest.raises(UserError, match=message):
        hfcap.load_captioner(tmp_path).caption(random_image(0), style="tags")


def test_a_recipe_asks_for_a_style(chat: ChatServer, tmp_path: Path) -> None:
    values = recipe_values("blip", tmp_path) | {"captioner": "openai_endpoint", "lora": None}
    values["model"] = {"base_url": chat.base_url}
    values["generate"] = {"num_beams": 1, "style": "alt_text"}
    recipe = recipe_from_mapping(values, "test")
    assert recipe.generate.max_new_tokens == 64
    assert build_captioner(recipe, []).prompt == CHAT_STYLES["alt_text"]
    values["model"]["prompt"] = "What is it?"
    with pytest.raises(UserError, match=r"generate\.style: alt_text and model\.prompt both say what is asked"):
        build_captioner(recipe_from_mapping(values, "test"), [])


@pytest.mark.parametrize("style", [["tags"], {"a": 1}, 3])
def test_a_style_that_is_none(style: Any) -> None:
    with pytest.raises(ValidationError, match="style"):
        GenerateOptions.model_validate({"style": style})
    assert GenerateOptions.model_validate({"style": "tags"}).max_new_tokens == 96
