"""Beams that share one copy of their image: the attention function, and the same captions with it and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hfcap.captioners.base import Captioner
from hfcap.generation import shared_attention as module
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import SEARCHES, build, pixel_values

pytestmark = pytest.mark.speed

CROSS_ATTENTION = ("blip", "vit_gpt2")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("length", [1, 4])
def test_folded_queries_get_what_copies_of_the_keys_would_give(beams: int, length: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2 * beams, 4, length, 8)
    key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    found, _ = module.shared_sdpa(torch.nn.Module(), query, key, value, None, is_causal=False)
    keys, values = (states.repeat_interleave(beams, dim=0) for states in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values).transpose(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module", params=CROSS_ATTENTION)
def captioner(request: pytest.FixtureRequest) -> Captioner:
    return build(request.param)


OPTIONS: dict[str, dict[str, Any]] = {
    **SEARCHES,
    "no repetition": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "at least": {"num_beams": 3, "min_new_tokens": 7},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_captions_and_scores_are_those_without_sharing(
    captioner: Captioner, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GenerateOptions(**OPTIONS[name], max_new_tokens=9)
    states = captioner.encode(pixel_values(captioner, 4)).detach()
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    found = captioner.caption_states(states, options)
    monkeypatch.setattr(captioner, "generate", captioner.plain_generate)
    expected = captioner.caption_states(states, options)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.text for one in ours] == [one.text for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.score == (None if other.score is None else pytest.approx(other.score, rel=1e-5))


def test_an_image_is_kept_once_whatever_its_beams(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[tuple[int, int]] = set()
    plain = sdpa_attention_forward

    def watched(attention: Any, query: torch.Tensor, key: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if named.get("is_causal") is False and key.shape[2] > 1:
            sizes.add((query.shape[0], key.shape[0]))
        return plain(attention, query, key, *rest, **named)

    monkeypatch.setattr(module, "sdpa_attention_forward", watched)
    monkeypatch.setattr(captioner, "generate", captioner.fast_generate)
    states = captioner.encode(pixel_values(captioner, 2)).detach()
    captioner.caption_states(states, GenerateOptions(num_beams=3, max_new_tokens=4))
    assert sizes == {(2, 2)}
