"""The loss against torch's on hand-built input."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.training.objectives.cross_entropy import CrossEntropy

START, END, PAD, PROMPT = 1, 2, 0, 5
VOCABULARY = 9


def batch_and_objective(smoothing: float) -> tuple[CaptionBatch, CrossEntropy, torch.Tensor]:
    """Two images with two captions and one, a prompt of one token, and fixed logits."""
    captions = [[[6, 7], [8]], [[7, 7, 8]]]
    packed = pack_captions(captions, [START, PROMPT], END, PAD)
    logits = torch.randn(*packed.labels.shape, VOCABULARY, generator=torch.Generator().manual_seed(0))
    captioner: Any = SimpleNamespace(
        model=nn.Linear(1, 1),
        encode=lambda images: images,
        decoder_states=lambda states, packed: logits,
        head=lambda states: states,
    )
    captioner.states_and_penalty = lambda states, packed: (captioner.decoder_states(states, packed), None)
    return CaptionBatch(torch.zeros(2, 3, 4, 4), False, packed, 3), CrossEntropy(captioner, smoothing), logits


def by_hand(logits: torch.Tensor, smoothing: float) -> float:
    """Row by row: start, prompt, words; the label of a position is the next token, the last one's the end token."""
    # (row, position) -> label; the start token's label would be the prompt, which is not trained.
    labels = {(0, 1): 6, (0, 2): 7, (0, 3): END, (0, 5): 8, (0, 6): END, (1, 1): 7, (1, 2): 7, (1, 3): 8, (1, 4): END}
    total = 0.0
    for (row, position), label in labels.items():
        log_probabilities = logits[row, position].log_softmax(-1)
        total += float(-(1 - smoothing) * log_probabilities[label] - smoothing * log_probabilities.mean())
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sum_over_supervised_tokens(smoothing: float) -> None:
    batch, objective, logits = batch_and_objective(smoothing)
    assert batch.packed.n_labels == 9
    assert float(objective.train()(batch)) == pytest.approx(by_hand(logits, smoothing), rel=1e-6)
    mean = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits.flatten(0, 1), batch.packed.labels.flatten())
    assert float(objective(batch)) == pytest.approx(9 * float(mean), rel=1e-6)


def test_validation_is_not_smoothed() -> None:
    batch, objective, logits = batch_and_objective(0.1)
    assert float(objective.eval()(batch)) == pytest.approx(by_hand(logits, 0.0), rel=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    batch, objective, logits = batch_and_objective(0.0)
    objective.captioner.decoder_states = lambda states, packed: logits.bfloat16()  # type: ignore[method-assign, assignment, misc]
    loss = objective(batch)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(by_hand(logits.bfloat16().float(), 0.0), rel=1e-6)


def test_the_family_s_penalty_counts_in_training_only() -> None:
    batch, objective, logits = batch_and_objective(0.0)
    objective.captioner.states_and_penalty = lambda states, packed: (logits, torch.tensor(2.5))  # type: ignore[method-assign, assignment]
    assert float(objective.train()(batch)) == pytest.approx(by_hand(logits, 0.0) + 2.5, rel=1e-6)
    assert float(objective.eval()(batch)) == pytest.approx(by_hand(logits, 0.0), rel=1e-6)


def test_stored_states_are_not_encoded_again() -> None:
    batch, objective, logits = batch_and_objective(0.0)
    seen: list[torch.Tensor] = []
    captioner: Any = objective.captioner
    captioner.encode = lambda images: images + 1

    def noted(states: torch.Tensor, packed: Any) -> torch.Tensor:
        assert packed is batch.packed
        seen.append(states)
        return logits

    captioner.decoder_states = noted
    objective.train()(batch)
    objective.eval()(batch)
    objective(replace(batch, encoded=True))
    assert [float(states.mean()) for states in seen] == [1.0, 1.0, 0.0]
    assert objective.units(batch) == 9


def test_sums_for_the_log_start_again_and_go_on() -> None:
    _, objective, _ = batch_and_objective(0.0)
    assert objective.sums == {} and objective.report({"a": 1.0}, 2) == {}
    objective._add(reward=1.5, words=2.0)
    objective._add(reward=0.5, samples=1.0)
    assert list(objective.sums.items()) == [("reward", 2.0), ("words", 2.0), ("samples", 1.0)]
    kept = {"reward": 7.0}
    objective.restart_sums(kept)
    objective._add(reward=1.0)
    assert objective.sums == {"reward": 8.0} and kept == {"reward": 7.0}
    objective.restart_sums({})
    assert objective.sums == {}
    objective.check({"step": 1, "loss": float("nan")})  # nothing to object to in cross-entropy


def test_the_model_is_registered_once() -> None:
    _, objective, _ = batch_and_objective(0.1)
    assert [name for name, _ in objective.named_parameters()] == ["model.weight", "model.bias"]
    assert objective.label_smoothing_factor == 0.1
