"""What a model writes while it thinks never ends up in a caption."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hfcap.captioners.asking.thinking import answers
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import pixel_values
from tests.captioners.itt_models import LLAVA_TEMPLATE, itt, new_tokenizer

OPTIONS = GenerateOptions(num_beams=1, max_new_tokens=30)
CASES = [
    ("<think>a cat? no</think> two dogs", True, ("two dogs", False)),
    ("<think>a cat? no", False, ("", True)),
    ("a cat? no</think> two dogs", True, ("two dogs", False)),
    ("two dogs", True, ("two dogs", False)),
    ("two dogs", False, ("two dogs", True)),
]


def writing(text: str, ends: bool, monkeypatch: pytest.MonkeyPatch, template: str = LLAVA_TEMPLATE) -> Any:
    """A LLaVA that writes this text about every image."""
    captioner = itt("llava", prompt="what is it?")
    captioner.processor.chat_template = template
    ids = [*captioner.tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids += [captioner.end_token_id] if ends else []

    def generate(image_states: Any, input_ids: torch.Tensor, config: Any) -> Any:
        said = torch.tensor([ids]).expand(len(input_ids), -1)
        return SimpleNamespace(sequences=torch.cat([input_ids, said], dim=1))

    monkeypatch.setattr(captioner, "generate", generate)
    return captioner


@pytest.mark.parametrize(("text", "ends", "expected"), CASES)
def test_captions_are_answers(
    text: str, ends: bool, expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = writing(text, ends, monkeypatch)
    captions = captioner.caption_states(captioner.encode(pixel_values(captioner, 2)), OPTIONS)
    assert [(one.text, one.cut) for (one,) in captions] == [expected] * 2


@pytest.mark.parametrize(
    ("text", "ends", "expected"),
    [("a cat? no</think> two dogs", True, ("two dogs", False)), ("a cat? no", False, ("", True))],
)
def test_a_template_that_begins_to_think(
    text: str, ends: bool, expected: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = LLAVA_TEMPLATE.replace("ASSISTANT:", "ASSISTANT:<think>")
    captioner = writing(text, ends, monkeypatch, template)
    (found,) = captioner.caption_states(captioner.encode(pixel_values(captioner, 1)), OPTIONS)
    assert captioner.thinks_first and (found[0].text, found[0].cut) == expected
    closed = writing(text, ends, monkeypatch, template.replace("<think>", "<think></think>"))
    assert not closed.thinks_first


def test_marks_that_are_special_tokens() -> None:
    """Decoding leaves special tokens out, and with them the marks: the thinking would stay."""
    tokenizer = new_tokenizer(special=["<think>", "</think>"])
    rows = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<think>a cat</think> two dogs", "dogs")
    ]
    rows = [[*row, tokenizer.eos_token_id] for row in rows]
    found = answers(tokenizer, rows, begun=False)
    assert [(text.strip(), unended) for text, unended in found] == [("two dogs", False), ("dogs", False)]
