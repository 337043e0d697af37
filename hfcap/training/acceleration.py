"""Options that trade time and memory without changing what is trained: checkpointed layers, compiled layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.errors import UserError


def checkpoint_layers(captioner: Captioner, setting: bool | list[str]) -> None:
    """Recompute the layers of all parts (True) or of the parts named, instead of keeping their activations.

    Raises:
        UserError: the model, or a part named, has no layers that transformers can checkpoint.
    """
    if not setting:
        return
    try:
        captioner.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"train.gradient_checkpointing: {error}; set it to false") from error
    if setting is True:
        return
    for part, roots in captioner.part_modules().items():
        layers: list[Any] = [
            module for root in roots for module in root.modules() if getattr(module, "gradient_checkpointing", False)
        ]
        if part in setting and not layers:
            raise UserError(f"train.gradient_checkpointing: part {part!r} has no layers to checkpoint; take it out")
        for layer in layers:
            layer.gradient_checkpointing = part in setting


def compile_layers(model: nn.Module, **arguments: Any) -> int:
    """Compile the repeated layers of a model in place, for any length; return how many.

    Layers of one kind share their compiled code, which takes much less time than compiling the model as a whole; names
    of weights and saved files stay. `arguments` go to torch.compile.

    Raises:
        UserError: this machine cannot compile.
    """
    try:
        torch.compile(torch.sin, **arguments)(torch.zeros(2, device=next(model.parameters()).device))
    except (RuntimeError, ImportError, OSError) as error:
        raise UserError(
            f"train.torch_compile: torch.compile does not work here ({str(error).strip().splitlines()[0]}); it needs a "
            "C++ compiler (and Triton for a GPU). Install them, or set it to false"
        ) from error
    layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    for layer in layers:
        layer.compile(dynamic=True, **arguments)
    return len(layers)
