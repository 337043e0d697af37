"""BLIP through the attention interface against transformers' own (eager) BLIP."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BlipForConditionalGeneration
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from hfcap.generation.blip_attention import (
    InterfaceTextAttention,
    InterfaceVisionAttention,
    attention_probabilities,
    use_sdpa,
)
from tests.captioners.helpers import build, gradients, make_lively, packed, pixel_values, random_captions

pytestmark = pytest.mark.contract

OURS = (InterfaceTextAttention, InterfaceVisionAttention)


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """Ours, and plain transformers' with the same weights."""
    captioner = build("blip")
    plain: Any = BlipForConditionalGeneration(copy.deepcopy(captioner.model.config))
    make_lively(plain, seed=0)
    plain.load_state_dict(captioner.model.state_dict())
    assert not any(isinstance(module, OURS) for module in plain.modules())
    return captioner, plain.eval()


def test_every_attention_is_replaced_and_no_weight_is_renamed(models: tuple[Any, Any]) -> None:
    captioner, plain = models
    attention = (BlipAttention, BlipTextSelfAttention)
    replaced = [isinstance(module, OURS) for module in captioner.model.modules() if isinstance(module, attention)]
    assert len(replaced) == 2 + 2 * 2 and all(replaced)
    assert list(captioner.model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("filling", [0, 3])
def test_loss_and_gradients_equal_eager(models: tuple[Any, Any], filling: int) -> None:
    captioner, plain = models
    pixels = pixel_values(captioner, 3)
    ids = torch.randint(3, 300, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if filling:
        mask[1, -filling:] = 0
    labels = ids.masked_fill(mask == 0, -100)

    losses, found = [], []
    for model in (captioner.model, plain):
        loss = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
        found.append(gradients(model))

    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_packed_logits_equal_eager(models: tuple[Any, Any]) -> None:
    """The additive mask of packed rows reaches SDPA."""
    captioner, plain = models
    ours, pixels = captioner.model, pixel_values(captioner, 2)
    rows = packed(captioner, random_captions(captioner, [3, 2]))
    with torch.no_grad():
        found = captioner.logits(captioner.encode(pixels), rows)
        captioner.model = plain
        try:
            expected = captioner.logits(captioner.encode(pixels), rows)
        finally:
            captioner.model = ours
    supervised = rows.labels != -100
    torch.testing.assert_close(found[supervised], expected[supervised], rtol=1e-5, atol=1e-5)


def test_probabilities_are_there_when_asked_for(models: tuple[Any, Any]) -> None:
    captioner, plain = models
    states = captioner.encode(pixel_values(captioner, 2)).detach()
    inputs: dict[str, Any] = {"input_ids": torch.tensor([[1, 5, 6]] * 2), "encoder_hidden_states": states}
    with torch.no_grad(), attention_probabilities(captioner.model):
        found = captioner.model.text_decoder(**inputs, output_attentions=True).cross_attentions
    with torch.no_grad():
        expected = plain.text_decoder(**inputs, output_attentions=True).cross_attentions
        again = captioner.model.text_decoder(**inputs, output_attentions=True).cross_attentions
    assert len(found) == 2 and found[0].shape == (2, 2, 3, states.shape[1])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert again == ()  # SDPA has none


def test_dropout_of_attention_is_kept(models: tuple[Any, Any]) -> None:
    captioner, _ = models
    model = copy.deepcopy(captioner.model).train()
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    modules: list[Any] = [module for module in model.modules() if isinstance(module, OURS)]
    for attention in modules:
        calm = attention(states)[0]
        attention.dropout.p = 0.5
        assert not torch.allclose(attention(states)[0], calm)


def test_steps_aside_when_transformers_can_do_it(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = models
    model = copy.deepcopy(plain)
    monkeypatch.setattr(BlipForConditionalGeneration, "_supports_sdpa", True)
    use_sdpa(model)
    assert not any(isinstance(module, OURS) for module in model.modules())
