"""Beam search keeps the scores of captions and lets those of every step and word go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfcap.captioners import (
    _itt_blip2,
    _itt_florence2,
    _itt_git,
    _itt_rows,
    blip,
    clip_prefix,
    encoder_decoder,
    shared_prefix,
    vit_gpt2,
)
from hfcap.captioners.base import Captioner
from hfcap.recipe import GenerateOptions
from tests.captioners.helpers import build, pixel_values
from tests.captioners.itt_models import itt

KINDS: dict[str, Any] = {
    "git": _itt_git,
    "blip-2": _itt_blip2,
    "florence2": _itt_florence2,
    "qwen2_vl": _itt_rows,
}
SHARING: dict[str, Any] = {
    "blip": blip,
    "vit_gpt2": vit_gpt2,
    "cnn_transformer": encoder_decoder,
    "clip_prefix": clip_prefix,
}


def _generate(captioner: Captioner, num_beams: int) -> Any:
    options = GenerateOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=5)
    config = captioner.generation_config(options)
    config.return_dict_in_generate, config.output_scores = True, True
    with torch.inference_mode():
        states = captioner.encode(pixel_values(captioner, 2))
        start = torch.tensor([captioner.start_token_ids()]).expand(2, -1)
        return captioner.generate(states, start, config)


@pytest.mark.parametrize("name", [*KINDS, *SHARING])
def test_scores_of_captions_stay_and_those_of_steps_go(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = {**KINDS, **SHARING}[name]
    captioner = itt(name) if name in KINDS else build(name)
    # The way of decoders whose attention cannot be shared.
    if name in ("clip_prefix", "blip-2"):
        monkeypatch.setattr(shared_prefix, "can_share", lambda decoder: False)
    elif name in SHARING:
        monkeypatch.setattr(user, "can_share", lambda decoder: False)
    if name == "blip":
        monkeypatch.setattr(user, "is_replaced", lambda decoder: False)
    found = _generate(captioner, 2)
    monkeypatch.setattr(user, "without_steps", lambda config: {})
    expected = _generate(captioner, 2)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)
    assert len(found.scores) == len(expected.scores) > 0
    assert sum(step.untyped_storage().nbytes() for step in found.scores) == 0
    assert all(step.numel() > 0 for step in expected.scores)


def test_greedy_search_keeps_the_steps_it_is_asked_for() -> None:
    assert all(step.numel() > 0 for step in _generate(itt("git"), 1).scores)
