"""Linear layers of a model, told apart by what they are for: words, routing between experts, everything else."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def is_linear(module: nn.Module) -> bool:
    """Return whether a module multiplies by a matrix; GPT-2's Conv1D does."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def heads(model: Any) -> list[nn.Module]:
    """Return the layers that turn states into words, of the model and of models inside it."""
    found = []
    for module in model.modules():
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        # An adapter around a head gives way to the head.
        head = getattr(head, "base_layer", head)
        if isinstance(head, nn.Module):
            found.append(head)
    return found


def is_router(model: Any, name: str) -> bool:
    """Return whether a linear layer chooses or weighs experts: it stands next to them, or in a router's own module."""
    parent = model.get_submodule(name.rpartition(".")[0])
    siblings = dict(parent.named_children())
    return any(child.endswith("experts") for child in siblings) or "Router" in type(parent).__name__


def layers_below(model: Any, roots: list[nn.Module]) -> list[str]:
    """Return the names of the linear layers inside `roots`, without heads and routers."""
    inside = {id(module) for root in roots for module in root.modules()} - {id(head) for head in heads(model)}
    return [
        name
        for name, module in model.named_modules()
        if id(module) in inside and is_linear(module) and not is_router(model, name)
    ]
