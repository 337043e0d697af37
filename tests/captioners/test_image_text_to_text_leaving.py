"""Finished images leave the batch, and rows share their prefix: captions stay those of the model's own generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioners.vlm.rows import Rows
from hfcap.generation import early_exit
from hfcap.generation.shared_prefix import SharedPrefix
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import pixel_values
from tests.captioners.itt_models import MODELS, itt
from tests.captioners.itt_more_models import MORE_MODELS, more
from tests.captioners.itt_own_forward import own_captions, own_inputs

pytestmark = pytest.mark.speed

BUILDERS: dict[str, Callable[[str], ImageTextToText]] = {
    **dict.fromkeys((name for name in MODELS if name != "florence2"), itt),
    **dict.fromkeys(MORE_MODELS, more),
}
KEEP_POSITIONS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
"""Their models keep the distance of every row's positions between steps."""
SHARING = ("blip-2", "instructblip", "idefics3", "llava")
COUNT = 4


def greedy(num_beams: int = 1) -> GenerateOptions:
    return GenerateOptions(num_beams=num_beams, max_new_tokens=10)


def up_to_end(captioner: ImageTextToText, sequences: torch.Tensor, n_prompt: int) -> list[list[int]]:
    """Words of each sequence; what pads them differs."""
    rows = sequences[:, n_prompt:].tolist()
    end = captioner.end_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


def words_of(captioner: ImageTextToText, states: torch.Tensor, options: GenerateOptions) -> list[list[int]]:
    start = torch.tensor([captioner.start_token_ids()]).expand(len(states), -1)
    sequences = captioner.fast_generate(states, start, captioner.generation_config(options))
    return up_to_end(captioner, sequences, start.shape[1])


def end_some_early(captioner: ImageTextToText, states: torch.Tensor) -> int:
    """Make a word the end token that some captions have much earlier than others; return how much earlier."""
    rows = words_of(captioner, states, greedy())
    spread = {}
    for word in {word for row in rows for word in row[:8]}:
        places = [row.index(word) if word in row else 9 for row in rows]
        spread[word] = max(places) - min(places)
    captioner._end_token_id = max(sorted(spread), key=spread.__getitem__)
    return spread[captioner._end_token_id]


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_images_leave_and_captions_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = BUILDERS[name](name)
    assert isinstance(captioner.kind, Rows)
    states = captioner.encode(pixel_values(captioner, COUNT))
    spread = end_some_early(captioner, states)
    left: list[int] = []
    keep = early_exit._Batch.keep

    def noted(batch: Any, staying: torch.Tensor) -> None:
        left.append(len(batch.images) - len(staying))
        keep(batch, staying)

    for num_beams in (1, 3):
        with monkeypatch.context() as patched:
            patched.setattr(early_exit._Batch, "keep", noted)
            found = words_of(captioner, states, greedy(num_beams))
        inputs = own_inputs(captioner, COUNT)
        config = captioner.generation_config(greedy(num_beams))
        sequences = captioner.model.generate(**inputs, generation_config=config)
        assert found == up_to_end(captioner, sequences, inputs["input_ids"].shape[1])
    assert spread > 1 and bool(left) == (name not in KEEP_POSITIONS)


@pytest.mark.parametrize("name", ["llava", "idefics3", "paligemma", "qwen2_vl"])
def test_prefix_is_read_once_where_it_can_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = itt(name)
    states = captioner.encode(pixel_values(captioner, 2))
    lengths: list[int] = []
    read = SharedPrefix.read

    def noted(language_model: Any, prefix: torch.Tensor) -> SharedPrefix | None:
        shared = read(language_model, prefix)
        assert shared is not None
        lengths.append(shared.length)
        return shared

    monkeypatch.setattr(SharedPrefix, "read", noted)
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    captioner.caption_states(states, GenerateOptions(num_beams=3, max_new_tokens=3))
    assert lengths == ([captioner.positions_before_text] if name in SHARING else [])
    captioner.caption_states(states, GenerateOptions(num_beams=3, max_new_tokens=3, repetition_penalty=1.5))
    assert len(lengths) == (1 if name in SHARING else 0)


def test_samples_are_those_of_generate() -> None:
    captioner = itt("llava")
    states = captioner.encode(pixel_values(captioner, 3))
    options = GenerateOptions(do_sample=True, num_beams=1, max_new_tokens=5, num_return_sequences=2)
    torch.manual_seed(3)
    found = [caption.text for captions in captioner.caption_states(states, options) for caption in captions]
    torch.manual_seed(3)
    assert found == own_captions(captioner, 3, options)
