"""Captions from `caption_states` against `generate(pixel_values=...)` of a freshly loaded plain transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hfcap.captioners.base import Captioner
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import FAMILIES, PROMPT, build, packed, pixel_values, plain_processor, random_image

pytestmark = pytest.mark.contract

N_IMAGES = 4


class Saved:
    """A captioner, and the plain model and processor loaded from what it saved."""

    def __init__(self, family: str, folder: Path) -> None:
        self.captioner: Captioner = build(family)
        self.captioner.save(folder, GenerateOptions())
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.processor: Any = plain_processor(folder)
        self.pixels = pixel_values(self.captioner, N_IMAGES)

    def captions(self, prompt: str = "", **options: Any) -> list[list[str]]:
        """What hfcap says."""
        with torch.inference_mode():
            states = self.captioner.encode(self.pixels)
        found = self.captioner.caption_states(states, GenerateOptions(**options), prompt)
        return [[caption.text for caption in of_image] for of_image in found]

    def plain_captions(self, count: int = 1, prompt: str = "", **arguments: Any) -> list[list[str]]:
        """What plain transformers says, the prompt cut off."""
        images = [random_image(number) for number in range(N_IMAGES)]
        inputs = self.processor(images=images, text=[prompt] * N_IMAGES if prompt else None, return_tensors="pt")
        ids = inputs.get("input_ids")
        start = [self.captioner.start_token_id]
        if prompt:
            words = self.processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            assert ids is not None and ids[0, : len(words) + 1].tolist() == [*start, *words]
        sequences = self.model.generate(**inputs, **arguments)
        texts = self.processor.batch_decode(sequences, skip_special_tokens=True)
        texts = [" ".join(text.split()) for text in texts]
        assert all(text.startswith(prompt) for text in texts)
        texts = [text.removeprefix(prompt).strip() for text in texts]
        return [texts[first : first + count] for first in range(0, len(texts), count)]


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_equals_plain_generate(saved: Saved, num_beams: int, prompt: str) -> None:
    found = saved.captions(prompt, num_beams=num_beams, max_new_tokens=9)
    assert found == saved.plain_captions(prompt=prompt, num_beams=num_beams, max_new_tokens=9)
    assert len({caption for [caption] in found}) > 1, "every image got the same caption: the comparison shows little"


def test_n_best_equals_plain_generate_and_is_sorted(saved: Saved) -> None:
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 6}
    assert saved.captions(**options) == saved.plain_captions(count=3, **options)
    found = saved.captioner.caption_states(saved.captioner.encode(saved.pixels), GenerateOptions(**options))
    for of_image in found:
        scores = [caption.score for caption in of_image if caption.score is not None]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)


def test_sampling_equals_plain_generate_under_the_same_seed(saved: Saved) -> None:
    options: dict[str, Any] = {"do_sample": True, "num_beams": 1, "max_new_tokens": 8}
    options |= {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    torch.manual_seed(3)
    found = saved.captions(num_return_sequences=2, **options)
    torch.manual_seed(3)
    assert found == saved.plain_captions(count=2, num_return_sequences=2, **options)
    torch.manual_seed(4)
    assert found != saved.captions(num_return_sequences=2, **options)


def test_greedy_and_samples_have_no_score(saved: Saved) -> None:
    states = saved.captioner.encode(saved.pixels)
    for options in ({"num_beams": 1}, {"num_beams": 1, "do_sample": True}):
        found = saved.captioner.caption_states(states, GenerateOptions(**options, max_new_tokens=3))
        assert all(caption.score is None for of_image in found for caption in of_image)


def test_greedy_follows_the_training_logits(saved: Saved) -> None:
    """Training and generation see the same positions: each greedy token is the argmax of the packed logits."""
    captioner = saved.captioner
    options = GenerateOptions(num_beams=1, max_new_tokens=7)
    with torch.inference_mode():
        states = captioner.encode(saved.pixels)
        start = torch.tensor([captioner.start_token_ids("")]).expand(N_IMAGES, -1)
        sequences = captioner.generate(states, start, captioner.generation_config(options))
        for image, sequence in enumerate(sequences.tolist()):
            words = sequence[1:]
            if captioner.end_token_id in words:
                words = words[: words.index(captioner.end_token_id) + 1]
            logits = captioner.logits(states[image : image + 1], packed(captioner, [[words]]))[0]
            assert logits[: len(words)].argmax(-1).tolist() == words


def _end_always_wins(captioner: Captioner, monkeypatch: pytest.MonkeyPatch, bias: float) -> None:
    vocabulary = len(captioner.tokenizer)
    linear = [module for module in captioner.model.modules() if isinstance(module, torch.nn.Linear)]
    [head] = [module for module in linear if module.out_features == vocabulary]
    forward = head.forward

    def biased(hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(hidden)
        shift = torch.zeros(logits.shape[-1])
        shift[captioner.end_token_id] = bias
        return logits + shift

    monkeypatch.setattr(head, "forward", biased)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_end_token_stops_and_least_and_most_tokens_hold(
    saved: Saved, num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = saved.captioner
    states = captioner.encode(saved.pixels)
    start = torch.tensor([captioner.start_token_ids("")]).expand(N_IMAGES, -1)

    def new_tokens(**options: Any) -> list[list[int]]:
        config = captioner.generation_config(GenerateOptions(num_beams=num_beams, **options))
        rows = captioner.generate(states, start, config)[:, 1:].tolist()
        return [row[: row.index(captioner.end_token_id)] if captioner.end_token_id in row else row for row in rows]

    with monkeypatch.context() as patch:
        _end_always_wins(captioner, patch, 1e4)
        assert all(row == [] for row in new_tokens(max_new_tokens=6))
        # transformers counts the end token among the new ones: four words at least before it.
        assert all(len(row) >= 4 for row in new_tokens(max_new_tokens=9, min_new_tokens=4))
    with monkeypatch.context() as patch:
        _end_always_wins(captioner, patch, -1e4)
        assert all(len(row) == 6 for row in new_tokens(max_new_tokens=6))


def test_no_repeated_words_option_reaches_generation(saved: Saved) -> None:
    captioner = saved.captioner
    states = captioner.encode(saved.pixels)
    start = torch.tensor([captioner.start_token_ids("")]).expand(N_IMAGES, -1)

    def repeats(size: int) -> int:
        config = captioner.generation_config(
            GenerateOptions(num_beams=1, max_new_tokens=16, min_new_tokens=16, no_repeat_ngram_size=size)
        )
        rows = captioner.generate(states, start, config)[:, 1:].tolist()
        return sum(len(row) - len(set(row)) for row in rows)

    assert repeats(1) == 0
    assert repeats(0) > 0


def test_own_prompt_is_used_and_not_part_of_the_caption(saved: Saved) -> None:
    captioner = saved.captioner
    states = captioner.encode(saved.pixels)
    options = GenerateOptions(num_beams=1, max_new_tokens=9)
    captioner.prompt = PROMPT
    try:
        by_default = [found[0].text for found in captioner.caption_states(states, options)]
    finally:
        captioner.prompt = ""
    assert by_default == [caption for [caption] in saved.captions(PROMPT, num_beams=1, max_new_tokens=9)]
    assert by_default != [caption for [caption] in saved.captions("", num_beams=1, max_new_tokens=9)]
    assert not any(text.startswith(PROMPT) for text in by_default)
