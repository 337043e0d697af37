"""Which image comes first changes no caption and no score: a captioning that goes on begins with any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hfcap.generation import verdicts
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, pixel_values

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("family", ["vit_gpt2", "blip", "clip_prefix", "image_text_to_text"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_of_an_image_are_those_after_any_other(
    family: str, num_beams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = build(family)
    options = GenerateOptions(num_beams=num_beams, max_new_tokens=8)
    pixels = pixel_values(captioner, 5)

    def captions(places: list[int], cache: str) -> list[tuple[str, float | None]]:
        """Caption one image after another as a process that nothing is known to."""
        monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / cache))
        verdicts.forget_verdicts()
        captioner.verdicts = {}
        with torch.inference_mode():
            states = captioner.encode(pixels)
            found = [captioner.caption_states(states[[place]], options)[0][0] for place in places]
        answers.append(dict(captioner.verdicts))
        return [(caption.text, caption.score) for caption in found]

    answers: list[dict[str, bool]] = []
    whole = captions([0, 1, 2, 3, 4], "whole")
    for first in range(1, 5):
        assert captions([first], f"from {first}") == [whole[first]]
    verdicts.forget_verdicts()
    assert all(answer == answers[0] for answer in answers) and answers[0]
