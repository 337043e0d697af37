"""The loss in parts against torch's over all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hfcap.schema import IGNORED_LABEL
from hfcap.training.objectives.token_loss import supervised_loss


def _problem() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    states = torch.randn(3, 7, 5, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7))
    labels[torch.rand(3, 7) < 0.4] = IGNORED_LABEL
    return nn.Linear(5, 11), states, labels


@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_equal_those_over_all_logits(at_once: int, smoothing: float, weighted: bool) -> None:
    head, states, labels = _problem()
    weights = torch.rand(3, 7) if weighted else None

    each = nn.functional.cross_entropy(
        head(states).flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none"
    )
    expected = (each if weights is None else each * weights.flatten()).sum()
    wanted = torch.autograd.grad(expected, [states, head.weight, head.bias])
    found = supervised_loss(head, states, labels, smoothing, weights, positions_at_once=at_once)
    got = torch.autograd.grad(found, [states, head.weight, head.bias])

    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


def test_logits_of_all_positions_never_exist() -> None:
    head, states, labels = _problem()
    sizes: list[int] = []

    def counted(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return head(part)

    supervised_loss(counted, states, labels, positions_at_once=4).backward()
    n_supervised = int((labels != IGNORED_LABEL).sum())
    assert max(sizes) == 4
    assert sum(sizes) == 2 * n_supervised  # once forward, once again in the backward pass


def test_half_precision_logits_are_summed_in_float32() -> None:
    head, states, labels = _problem()
    loss = supervised_loss(lambda part: head(part).bfloat16(), states, labels, positions_at_once=4)
    assert loss.dtype == torch.float32
    expected = nn.functional.cross_entropy(
        head(states).bfloat16().float().flatten(0, 1), labels.flatten(), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)


def test_a_batch_without_any_label_gives_zero() -> None:
    head, states, labels = _problem()
    assert float(supervised_loss(head, states, torch.full_like(labels, IGNORED_LABEL))) == 0.0


@pytest.mark.parametrize(("at_once", "gradients", "calls"), [(3, True, 2), (2, True, 4), (2, False, 2), (3, False, 1)])
def test_logits_are_computed_again_only_where_they_were_not_kept(at_once: int, gradients: bool, calls: int) -> None:
    """Three labels: in one piece they are kept; without gradients nothing has to be."""
    head, states, _ = _problem()
    labels = torch.full((3, 7), IGNORED_LABEL)
    labels[0, 2], labels[1, 0], labels[2, 6] = 4, 0, 10
    sizes: list[int] = []

    def counted(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return head(part)

    with torch.set_grad_enabled(gradients):
        loss = supervised_loss(counted, states, labels, positions_at_once=at_once)
    if gradients:
        loss.backward()
    assert len(sizes) == (calls if at_once == 2 or not gradients else 1)
    assert sizes[: -(-3 // at_once)] == ([3] if at_once == 3 else [2, 1])
    chosen = torch.stack([states[0, 2], states[1, 0], states[2, 6]])
    expected = nn.functional.cross_entropy(head(chosen), torch.tensor([4, 0, 10]), reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_weights_belong_to_their_positions() -> None:
    head, states, labels = _problem()
    each = nn.functional.cross_entropy(head(states).flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    chosen = [(row, column) for row in range(3) for column in range(7) if labels[row, column] != IGNORED_LABEL]
    assert len(chosen) > 6
    for row, column in chosen:
        weights = torch.zeros(3, 7)
        weights[row, column] = 2.0
        for at_once in (2, 100):
            found = supervised_loss(head, states, labels, weights=weights, positions_at_once=at_once)
            torch.testing.assert_close(found, 2.0 * each[row, column])
