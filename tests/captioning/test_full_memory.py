"""Captioning where the memory does not hold a whole batch: the same captions, with fewer images at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hfcap.caption_batch import generate_captions
from hfcap.captioners.base import Captioner
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, pixel_values


def hold(images: int, captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the memory hold so many images; return what sizes are asked for."""
    sizes: list[int] = []
    encode = captioner.encode

    def limited(pixels: Any) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(pixels)

    monkeypatch.setattr(captioner, "encode", limited)
    return sizes


def test_the_same_captions_in_smaller_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = build("vit_gpt2")
    captioner.model.eval()
    pixels = pixel_values(captioner, 7)
    options = GenerateOptions(num_beams=2, max_new_tokens=6)
    whole = generate_captions(captioner, pixels, options)
    sizes = hold(2, captioner, monkeypatch)
    parts = generate_captions(captioner, pixels, options)
    assert [one.text for [one] in parts] == [one.text for [one] in whole]
    assert [one.score for [one] in parts] == pytest.approx([one.score for [one] in whole], rel=1e-5)
    assert sizes == [7, 4, 2, 2, 2, 1]
    said = " ".join(capsys.readouterr().err.split())
    assert "too small to caption 7 images at once: it goes on with 4 at a time" in said
    sizes.clear()
    assert generate_captions(captioner, pixels[:3], options) == parts[:3]
    assert sizes == [2, 1] and capsys.readouterr().err == "", "the next batch knows"


def test_samples_are_those_of_the_smaller_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = build("vit_gpt2")
    captioner.model.eval()
    pixels = pixel_values(captioner, 4)
    options = GenerateOptions(do_sample=True, num_beams=1, max_new_tokens=6, seed=3)
    small = [generate_captions(captioner, pixels[at : at + 2], options, place=8 + at) for at in (0, 2)]
    hold(2, captioner, monkeypatch)
    assert generate_captions(captioner, pixels, options, place=8) == small[0] + small[1]


def test_one_image_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = build("vit_gpt2")
    captioner.model.eval()
    hold(0, captioner, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        generate_captions(captioner, pixel_values(captioner, 2), GenerateOptions())
