"""Beam search keeps the scores of captions and lets those of every step and word go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfcap.captioners import vit_gpt2
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared import encoder_decoder
from hfcap.generation import shared_prefix
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, pixel_values
from tests.captioners.itt_models import itt

pytestmark = pytest.mark.speed

KINDS = ("git", "florence2", "qwen2_vl")
SHARING: dict[str, Any] = {"vit_gpt2": vit_gpt2, "cnn_transformer": encoder_decoder, "clip_prefix": shared_prefix}
"""Families whose beams share their image, and the module that asks whether they can."""


def _generate(captioner: Captioner, num_beams: int, way: str) -> Any:
    options = GenerateOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=5)
    config = captioner.generation_config(options)
    config.return_dict_in_generate, config.output_scores = True, True
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 2))
        start = torch.tensor([captioner.start_token_ids()]).expand(2, -1)
        return getattr(captioner, f"{way}_generate")(states, start, config)


@pytest.mark.parametrize("name", [*KINDS, *SHARING])
def test_scores_of_captions_stay_and_those_of_steps_go(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = itt(name) if name in KINDS else build(name)
    if name in SHARING:
        # The way of decoders whose attention cannot be shared.
        monkeypatch.setattr(SHARING[name], "can_share", lambda decoder: False)
    found, expected = _generate(captioner, 2, "fast"), _generate(captioner, 2, "plain")
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)
    assert len(found.scores) == len(expected.scores) > 0
    assert sum(step.untyped_storage().nbytes() for step in found.scores) == 0
    assert all(step.numel() > 0 for step in expected.scores)


def test_greedy_search_keeps_the_steps_it_is_asked_for() -> None:
    assert all(step.numel() > 0 for step in _generate(itt("git"), 1, "fast").scores)
