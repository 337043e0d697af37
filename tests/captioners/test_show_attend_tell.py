"""Show, Attend and Tell against the paper's equations, torch's own cells and a beam search written out here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfcap.captioners.published.modeling_show_attend_tell import RecurrentState
from hfcap.captioners.shared.pretrained import load_image_processor
from hfcap.captioners.show_attend_tell import CaptionRows, doubly_stochastic_penalty
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.errors import UserError
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import PackedCaptions
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.captioners.backbones import ENCODERS
from tests.captioners.helpers import PROMPT, build, gradients, packed, pixel_values, random_captions
from tests.captioners.plain_show_attend_tell import PlainCaption
from tests.rounding import assert_equal_to_rounding

COUNTS = (3, 1, 2)


@pytest.fixture(scope="module", params=[("lstm", True), ("gru", True), ("lstm", False)], ids=["lstm", "gru", "raw"])
def captioner(request: pytest.FixtureRequest) -> Any:
    cell, feature_norm = request.param
    return build("show_attend_tell", cell=cell, feature_norm=feature_norm)


def plain_captions(captioner: Any, states: torch.Tensor, captions: list[list[list[int]]]) -> list[PlainCaption]:
    start = captioner.start_token_ids()
    return [
        PlainCaption(captioner, states[image], start, caption)
        for image, of_image in enumerate(captions)
        for caption in of_image
    ]


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_training_loss_is_equation_14_of_every_caption_alone(captioner: Any, prompt: str) -> None:
    captioner.prompt = prompt
    pixels = pixel_values(captioner, len(COUNTS))
    captions = random_captions(captioner, COUNTS)

    plain = plain_captions(captioner, captioner.encode(pixels), captions)
    negative_log_likelihood = sum((caption.loss for caption in plain), torch.zeros(()))
    regulariser = sum((caption.penalty for caption in plain), torch.zeros(()))
    (negative_log_likelihood + regulariser).backward()
    expected = gradients(captioner.model)

    rows = packed(captioner, captions)
    objective = CrossEntropy(captioner, 0.0)
    objective.training = True  # the loss of training, without dropout
    found = objective(CaptionBatch(pixels, False, rows, sum(COUNTS)))
    found.backward()
    assert float(found) == pytest.approx(float(negative_log_likelihood + regulariser), rel=1e-5)
    assert float(regulariser.detach()) > 0.5
    assert_equal_to_rounding(gradients(captioner.model), expected)
    captioner.prompt = ""


def test_regulariser_by_hand() -> None:
    """Two captions of one image with two cells; the prompt's position and the padding do not count."""
    rows = pack_captions([[[7], [8, 8]]], [1, 5], 2, 0)
    assert rows.labels[0].tolist() == [-100, 7, 2, -100, 8, 8, 2]
    weights = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.5, 0.5], [9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    # First caption: cells sum to 1.5 and 0.5; second: 2 and 1.
    assert float(doubly_stochastic_penalty(weights, rows)) == pytest.approx(0.25 + 0.25 + 1.0 + 0.0, rel=1e-5)


def test_penalty_is_off_at_zero_and_out_of_validation(captioner: Any) -> None:
    pixels = pixel_values(captioner, 2)
    rows = packed(captioner, random_captions(captioner, [2, 1]))
    batch = CaptionBatch(pixels, False, rows, 3)
    objective = CrossEntropy(captioner, 0.0).eval()
    with torch.no_grad():
        validation = float(objective(batch))
        objective.training = True
        assert float(objective(batch)) > validation + 0.1
        captioner.model.config.attention_penalty = 0.0
        try:
            assert float(objective(batch)) == pytest.approx(validation, rel=1e-6)
        finally:
            captioner.model.config.attention_penalty = 1.0


CAPTIONS = st.lists(st.lists(st.lists(st.integers(3, 9), max_size=5), min_size=1, max_size=4), min_size=1, max_size=4)


@given(CAPTIONS, st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_rows_advance_step_by_step_and_come_back(captions: list[list[list[int]]], n_start: int) -> None:
    rows = pack_captions(captions, list(range(1, n_start + 1)), 2, 0)
    plan = CaptionRows.of(rows)
    longest = max(len(caption) for of_image in captions for caption in of_image) + n_start
    assert len(plan.counts) == longest
    assert plan.counts == sorted(plan.counts, reverse=True)
    # No slot is kept for rows that have ended everywhere.
    assert plan.counts == [
        max(sum(len(caption) + n_start > step for caption in of_image) for of_image in captions)
        for step in range(longest)
    ]
    inside = rows.caption_index >= 0
    marks = torch.arange(inside.numel()).view_as(inside)[..., None]
    steps = plan.to_steps(marks)
    assert torch.equal(plan.to_packed(torch.cat(steps, 1))[inside], marks[inside])
    _each_row_stays_in_its_slot(rows, steps, plan)


def _each_row_stays_in_its_slot(rows: PackedCaptions, steps: tuple[torch.Tensor, ...], plan: CaptionRows) -> None:
    positions, index = rows.position_ids.flatten(), rows.caption_index.flatten()
    first = [sum(plan.counts[:step]) for step in range(len(plan.counts))]
    for image in range(rows.input_ids.shape[0]):
        for slot in range(plan.counts[0]):
            owners = set()
            for step, marks in enumerate(steps):
                if slot < marks.shape[1]:
                    mark = int(marks[image, slot, 0])
                    if int(plan.place.flatten()[mark]) == first[step] + slot and index[mark] >= 0:
                        assert int(positions[mark]) == step
                        owners.add(int(index[mark]))
            assert len(owners) <= 1


def naive_beam_search(captioner: Any, states: torch.Tensor, n_beams: int, length: int) -> list[tuple[list[int], float]]:
    """Keep the best prefixes of exactly `length` words; every prefix is read again from the start, without a cache."""
    beams = [([captioner.start_token_id], 0.0)]
    for _ in range(length):
        longer = []
        for words, score in beams:
            cells = captioner.model.decoder.cells(states)
            logits = captioner.model.decoder(input_ids=torch.tensor([words]), image_states=cells).logits[0, -1]
            logarithms = logits.log_softmax(-1)
            logarithms[captioner.end_token_id] = -torch.inf
            values, tokens = logarithms.topk(2 * n_beams)
            longer += [
                ([*words, token], score + value) for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
            ]
        beams = sorted(longer, key=lambda beam: -beam[1])[:n_beams]
    return [(words, score / length) for words, score in beams]


def _beam_search(captioner: Any, states: torch.Tensor, n_beams: int, length: int) -> Any:
    options = GenerateOptions(
        num_beams=n_beams, num_return_sequences=n_beams, max_new_tokens=length, min_new_tokens=length
    )
    config = captioner.generation_config(options)
    config.return_dict_in_generate = config.output_scores = True
    start = torch.full((states.shape[0], 1), captioner.start_token_id)
    return captioner.generate(states, start, config)


@torch.no_grad()
def test_beam_search_moves_the_states_with_the_beams(captioner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states = captioner.encode(pixel_values(captioner, 3))
    expected = [beam for image in range(3) for beam in naive_beam_search(captioner, states[image : image + 1], 4, 7)]
    output = _beam_search(captioner, states, 4, 7)
    assert output.sequences.tolist() == [words for words, _ in expected]
    assert output.sequences_scores.tolist() == pytest.approx([score for _, score in expected], abs=1e-4)

    # The comparison can fail: without reordering, states stay with the wrong beams.
    monkeypatch.setattr(RecurrentState, "reorder_cache", lambda self, beam_idx: None)
    assert _beam_search(captioner, states, 4, 7).sequences.tolist() != output.sequences.tolist()


def test_reordering_picks_rows() -> None:
    state = RecurrentState(torch.arange(6.0).view(3, 2), length=4)
    state.reorder_cache(torch.tensor([2, 0, 0]))
    assert state.value.tolist() == [[4, 5], [0, 1], [0, 1]]
    assert state.get_seq_length() == 4


@torch.no_grad()
def test_word_attention_is_the_paper_s_alpha(captioner: Any) -> None:
    states = captioner.encode(pixel_values(captioner, 2))
    caption = [7, 9, 11]
    ids = torch.tensor([[captioner.start_token_id, *caption]])
    maps = captioner.word_attention(states[1:], ids)
    assert maps.shape == (3, 2, 2)
    plain = PlainCaption(captioner, states[1], [captioner.start_token_id], caption)
    torch.testing.assert_close(maps.flatten(1), torch.stack(plain.alphas)[:3])


def test_states_that_are_no_grid_have_no_map(captioner: Any) -> None:
    grid, captioner.model.config.vision_grid = captioner.model.config.vision_grid, None
    with pytest.raises(UserError, match="no grid"):
        captioner.word_attention(torch.zeros(1, 4, 64), torch.tensor([[captioner.start_token_id, 5]]))
    captioner.model.config.vision_grid = grid


def test_frozen_batch_norm_does_not_learn_and_a_trained_one_does() -> None:
    """ResNet's running statistics move only where the encoder is trained."""
    captioner = build("show_attend_tell", vision_config=ENCODERS["resnet"])
    norm = next(module for module in captioner.model.vision_model.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    captioner.encode(pixel_values(captioner, 2))
    assert torch.equal(norm.running_mean, before)
    captioner.model.train()
    captioner.encode(pixel_values(captioner, 2))
    assert not torch.equal(norm.running_mean, before)


def test_network_that_needs_a_missing_package_says_so(tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is installed; with it: test_timm.py")
    with pytest.raises(UserError, match=r"model\.vision_config: .*timm"):
        build("show_attend_tell", vision_config={"model_type": "timm_wrapper", "architecture": "vgg16"})
    config = {"architecture": "vgg16", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = r"model\.vision: .*requires the timm library .*`pip install timm`\.$"
    with pytest.raises(UserError, match=message):
        build("show_attend_tell", vision=str(tmp_path), vision_config=None)
    with pytest.raises(UserError, match=message):
        load_image_processor(str(tmp_path), "model.vision", None, False)
