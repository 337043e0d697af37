"""Captioning without warnings that nobody needs to act on."""

from __future__ import annotations

import warnings
from itertools import pairwise

from hfcap.caption_batch import generate_captions
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, pixel_values


def test_penalties_of_a_captioner_with_a_prefix() -> None:
    """transformers warns that penalties leave the prompt alone, which is what a caption needs."""
    captioner = build("clip_prefix")
    captioner.model.eval()
    options = GenerateOptions(num_beams=2, max_new_tokens=6, repetition_penalty=1.5, no_repeat_ngram_size=2)
    with warnings.catch_warnings(action="error"):
        [[caption]] = generate_captions(captioner, pixel_values(captioner, 1), options)
    words = caption.text.split()
    assert len(set(pairwise(words))) == max(0, len(words) - 1)
