"""Body and head of language models apart, against the models' own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hfcap.generation.language_head import body_states, head_logits
from tests.captioners.backbones import LANGUAGE_MODELS, SMALL_LANGUAGE_MODEL
from tests.captioners.helpers import make_lively

pytestmark = pytest.mark.speed

# Each does something else between the last state and the logits.
HEADS: dict[str, dict[str, Any]] = {
    **LANGUAGE_MODELS,
    "gemma2 (soft cap)": {"model_type": "gemma2", **SMALL_LANGUAGE_MODEL, "final_logit_softcapping": 0.7},
    "cohere (scale)": {"model_type": "cohere", **SMALL_LANGUAGE_MODEL, "logit_scale": 0.1},
    "granite (divisor)": {"model_type": "granite", **SMALL_LANGUAGE_MODEL, "logits_scaling": 3.0},
    "gptj (bias)": {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "bert (transform)": {"model_type": "bert", **SMALL_LANGUAGE_MODEL, "is_decoder": True},
    "roberta (transform)": {"model_type": "roberta", **SMALL_LANGUAGE_MODEL, "is_decoder": True},
    "opt (projection)": {**LANGUAGE_MODELS["opt"], "word_embed_proj_dim": 16},
}


def _language_model(values: dict[str, Any]) -> Any:
    remaining = {**values, "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(remaining.pop("model_type"), **remaining))
    make_lively(model, seed=0)
    return model.eval()


@pytest.mark.parametrize("name", HEADS)
def test_head_of_states_is_the_models_own_logits(name: str) -> None:
    model = _language_model(HEADS[name])
    ids = torch.arange(3, 15).reshape(2, 6)
    expected = model(input_ids=ids).logits
    expected.square().sum().backward()
    expected_gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()

    states = body_states(model, input_ids=ids)
    found = head_logits(model, states)
    found.square().sum().backward()

    assert float(expected.detach().std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head_logits(model, states[1, 2]), expected[1, 2], rtol=1e-5, atol=1e-6)
    assert {key for key, value in model.named_parameters() if value.grad is not None} == set(expected_gradients)
    for key, gradient in expected_gradients.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, rtol=1e-4, atol=1e-5, msg=key)
