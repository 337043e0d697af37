"""Finished images leave the batch: the captions, scores and samples are those of transformers' own search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from hfcap.captioners.base import Captioner
from hfcap.generation import early_exit
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import SEARCHES, build, pixel_values

pytestmark = pytest.mark.speed

FAMILIES = ("blip", "clip_prefix", "vit_gpt2", "cnn_transformer", "show_attend_tell")


@pytest.fixture(scope="module", params=FAMILIES)
def captioner(request: pytest.FixtureRequest) -> Captioner:
    """A tiny captioner whose captions end after a few words, some sooner than others."""
    torch.manual_seed(11)
    built = build(request.param)
    head = next(
        module
        for name, module in reversed(list(built.model.named_modules()))
        if getattr(module, "weight", None) is not None and len(module.weight) == len(built.tokenizer)
    )

    direction = 20 * torch.randn(head.weight.shape[1])

    def end_now_and_then(_: Any, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        chance = (inputs[0] @ direction).sin()
        logits[..., built.end_token_id] = logits.amax(-1) + 2 * chance - 0.7
        return logits

    head.register_forward_hook(end_now_and_then)
    return built


OPTIONS: dict[str, dict[str, Any]] = {
    **SEARCHES,
    "constraints": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 2},
    "samples": {"num_beams": 1, "do_sample": True, "top_k": 0, "num_return_sequences": 3},
}


def _search(captioner: Captioner, options: GenerateOptions, early: bool, count: int = 9, way: str = "fast") -> Any:
    """Sequences and scores of generate, each row up to its end."""
    states = captioner.encode(pixel_values(captioner, count)).detach()
    config = captioner.generation_config(options)
    config.return_dict_in_generate, config.output_scores = True, options.num_beams > 1
    config.early_stopping = early
    torch.manual_seed(5)
    start = torch.full((count, 1), captioner.start_token_id)
    output = getattr(captioner, f"{way}_generate")(states, start, config)
    # transformers fills up with the end token where the padding token is number 0.
    rows = [row[1:] for row in output.sequences.tolist()]
    end = captioner.end_token_id
    return [row[: row.index(end)] if end in row else row for row in rows], getattr(output, "sequences_scores", None)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_sequences_and_scores_are_those_of_transformers(captioner: Captioner, name: str, early: bool) -> None:
    options = GenerateOptions(**OPTIONS[name], max_new_tokens=12)
    found, scores = _search(captioner, options, early)
    expected, expected_scores = _search(captioner, options, early, way="plain")
    assert found == expected
    assert len({len(row) for row in found}) > 1
    if options.num_beams > 1:
        torch.testing.assert_close(scores, expected_scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["greedy", "beams"])
def test_images_do_leave(captioner: Captioner, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would say nothing if every image stayed to the end."""
    sizes: list[int] = []
    logits = early_exit._Batch.logits

    def counted(batch: Any, ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch.images))
        assert len(ids) == len(batch.images) * batch.n_rows
        return logits(batch, ids)

    monkeypatch.setattr(early_exit._Batch, "logits", counted)
    _search(captioner, GenerateOptions(**OPTIONS[name], max_new_tokens=40), early=False)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 9 > sizes[-1]


def test_images_leave_when_all_their_samples_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four images end after their second token; samples of the last one are drawn as in the whole batch."""
    kept: list[list[int]] = []
    monkeypatch.setattr(early_exit._Batch, "logits", lambda batch, ids: torch.zeros(len(ids), 7))
    monkeypatch.setattr(early_exit._Batch, "keep", lambda batch, staying: kept.append(staying.tolist()))
    config = GenerationConfig(max_length=6, do_sample=True, num_beams=1, num_return_sequences=2)
    config.return_dict_in_generate = True
    config.pad_token_id = config.eos_token_id = 0
    ends = iter([[False] * 8, [True] * 6 + [False] * 2, [False] * 2, [True] * 2])
    torch.manual_seed(1)
    found = early_exit.early_exit_search(
        None,
        torch.ones(8, 1, dtype=torch.int64),
        lambda ids, logits: logits,
        lambda *_: torch.tensor(next(ends)),
        config,
    )
    torch.manual_seed(1)
    drawn = torch.stack([torch.multinomial(torch.full((8, 7), 1 / 7), 1)[:, 0] for _ in range(4)], dim=1)
    assert isinstance(found, early_exit.FoundCaptions)
    assert kept == [[3]]
    assert found.sequences[:6].tolist() == [[1, *row, 0, 0] for row in drawn[:6, :2].tolist()]
    assert found.sequences[6:, 1:].tolist() == drawn[6:].tolist()


@pytest.mark.parametrize("beams", [1, 2])
def test_sequences_alone_are_given_where_no_more_is_asked(captioner: Captioner, beams: int) -> None:
    config = captioner.generation_config(GenerateOptions(num_beams=beams, max_new_tokens=3))
    states = captioner.encode(pixel_values(captioner, 2)).detach()
    found = captioner.fast_generate(states, torch.full((2, 1), captioner.start_token_id), config)
    assert isinstance(found, torch.Tensor) and len(found) == 2


def test_sampled_beams_stay_with_transformers() -> None:
    captioner = build("vit_gpt2")
    config = captioner.generation_config(GenerateOptions(num_beams=2, do_sample=True, max_new_tokens=4))
    config.return_dict_in_generate = config.output_scores = True
    assert list(early_exit.leaving(config)) == ["stopping_criteria"]
    assert len(_search(captioner, GenerateOptions(num_beams=2, do_sample=True, max_new_tokens=4), False, 3)[0]) == 3
