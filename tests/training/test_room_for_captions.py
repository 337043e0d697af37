"""A caption that is longer than the text model's positions allow is refused before training, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hfcap import registry
from hfcap.captioners.shared.room import require_room, room_for_caption
from hfcap.data.packing import pack_captions
from hfcap.data.source import load_split
from hfcap.errors import OptionError, UserError
from hfcap.recipe.blocks import GenerateOptions, Recipe
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.training.build import build_captioner, text_without_room
from tests.captioners.helpers import build, pixel_values
from tests.training.harness import recipe_values, train

WITH_LEARNED_POSITIONS = (
    "blip",
    "clip_prefix",
    "cnn_transformer",
    "image_text_to_text",
    "image_transformer",
    "vit_gpt2",
)


def recipe_of(family: str, folder: Path, caption: int = 40, new: int = 30, **model: Any) -> Recipe:
    """A tiny recipe of any family with these lengths."""
    values = recipe_values("blip", folder)
    values["captioner"] = family
    values["model"] = {**registry.load("captioners", family).REGISTERED.tiny(), **model}
    values["data"]["max_caption_tokens"] = caption
    values["generate"] = {"num_beams": 1, "max_new_tokens": new}
    return recipe_from_mapping(values, "test")


@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("family", WITH_LEARNED_POSITIONS)
def test_the_longest_caption_allowed_is_the_longest_that_runs(family: str, prompt: str, tmp_path: Path) -> None:
    recipe = recipe_of(family, tmp_path, prompt=prompt)
    captioner = build_captioner(recipe, load_split(recipe.data, "train"))
    limit = captioner.max_text_tokens
    assert limit is not None
    start = captioner.start_token_ids()
    longest = limit - len(start)
    states = torch.zeros_like(captioner.encode(torch.zeros(1, 3, *_size(captioner))))

    def run(length: int) -> None:
        packed = pack_captions([[[5] * length]], start, captioner.end_token_id, captioner.pad_token_id)
        captioner.logits(states, packed)

    run(longest)
    with pytest.raises((IndexError, RuntimeError)):
        run(longest + 1)
    assert text_without_room(captioner, recipe_of(family, tmp_path, longest, longest + 1, prompt=prompt)) is None
    for lengths, key in (
        ((longest + 1, 1), "data.max_caption_tokens"),
        ((longest, longest + 2), "generate.max_new_tokens"),
    ):
        found = text_without_room(captioner, recipe_of(family, tmp_path, *lengths, prompt=prompt))
        assert found is not None and found[0] == key
        assert f"at most {longest if key.startswith('data') else longest + 1}," in found[2]


@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("family", [*WITH_LEARNED_POSITIONS, "ensemble"])
def test_captioning_allows_what_generation_can_read_and_no_more(family: str, prompt: str) -> None:
    captioner = build(family)
    given = None if family == "ensemble" else prompt
    room = room_for_caption(captioner, given)
    assert room is not None
    longest = room.new_tokens
    never_ending = GenerateOptions(num_beams=1, max_new_tokens=longest, min_new_tokens=longest)
    require_room(captioner, never_ending, given)
    states = captioner.encode(pixel_values(captioner, 1))
    captioner.caption_states(states, never_ending, given)
    longer = never_ending.model_copy(update={"max_new_tokens": longest + 1, "min_new_tokens": longest + 1})
    with pytest.raises(OptionError, match=f"max_new_tokens={longest + 1} .* at most {longest},"):
        require_room(captioner, longer, given)
    with pytest.raises((IndexError, RuntimeError)):
        captioner.caption_states(states, longer, given)


def _size(captioner: Any) -> tuple[int, int]:
    size = captioner.image_processor.size
    return size["height"], size["width"]


def test_positions_that_start_behind_the_padding_index(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {"model_type": "roberta", **shape, "max_position_embeddings": 64}
    recipe = recipe_of("vit_gpt2", tmp_path, decoder_config=decoder)
    captioner = build_captioner(recipe, load_split(recipe.data, "train"))
    limit = captioner.max_text_tokens
    assert limit == 64 - captioner.positions_before_text and captioner.positions_before_text > 0
    states = captioner.encode(torch.zeros(1, 3, *_size(captioner)))
    special = (captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id)
    captioner.logits(states, pack_captions([[[5] * (limit - 1)]], *special))
    with pytest.raises((IndexError, RuntimeError)):
        captioner.logits(states, pack_captions([[[5] * limit]], *special))


def test_a_recurrent_decoder_has_no_limit(tmp_path: Path) -> None:
    recipe = recipe_of("show_attend_tell", tmp_path, 10_000, 10_000)
    captioner = build_captioner(recipe, load_split(recipe.data, "train"))
    assert text_without_room(captioner, recipe) is None


def test_training_refuses_before_it_computes_anything(tmp_path: Path) -> None:
    recipe = recipe_of("clip_prefix", tmp_path, caption=60)
    with pytest.raises(UserError, match=r"data\.max_caption_tokens: a caption of 60 tokens .* at most 59, or .*prefix"):
        train(recipe)
    assert not (tmp_path / "tiny").exists()
