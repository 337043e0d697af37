"""A causal language model in two steps: hidden states, then logits of chosen positions.

Training needs logits only where labels are, and a part of them at a time: all logits of a batch would be its largest
tensor (880 supervised positions of BLIP's vocabulary are 107 MB in float32, several times over with gradients).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions


@dataclass
class _Output(BaseModelOutputWithPastAndCrossAttentions):
    """What heads read of a body's output; those of mixtures of experts ask for the routers' logits as well."""

    router_logits: Any = None


class _GivenStates(nn.Module):
    """Stands where a language model's body was and returns the states it is called with."""

    @property
    def decoder(self) -> _GivenStates:
        """OPT-like models call the body's decoder instead of the body."""
        return self

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Return the output of a body whose last states are `inputs_embeds`."""
        output: Any = _Output
        return output(last_hidden_state=inputs_embeds)


def body_states(language_model: Any, **inputs: Any) -> torch.Tensor:
    """Run the body of a causal language model on its forward's inputs: states (B, P, H) that its head reads."""
    body = language_model.base_model
    assert body is not language_model, f"{type(language_model).__name__} is its own body"
    states: torch.Tensor = body(**inputs, use_cache=False).last_hidden_state
    return states


def head_logits(language_model: Any, states: torch.Tensor) -> torch.Tensor:
    """Run what follows the body of a causal language model: (..., H) -> (..., V).

    The model's own forward runs, with a body that returns `states`: whatever it does to logits (a transform before
    the projection, a scale, a soft cap) is done here too.
    """
    # A shallow copy shares every weight; only its table of submodules is its own.
    without_body: Any = copy.copy(language_model)
    without_body._modules = {**language_model._modules, language_model.base_model_prefix: _GivenStates()}
    rows = states.reshape(1, -1, states.shape[-1])
    logits: torch.Tensor = without_body(inputs_embeds=rows, use_cache=False).logits
    return logits.reshape(*states.shape[:-1], logits.shape[-1])
