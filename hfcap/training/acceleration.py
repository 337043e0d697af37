"""What saves time or memory without changing what is trained: cheaper, checkpointed and compiled layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation

from hfcap.captioners.base import Captioner
from hfcap.errors import UserError
from hfcap.generation.verdicts import holds

_LEVELS = 2**16


class CheapDropout(nn.Dropout):
    """Dropout (Srivastava et al. 2014) that on a CPU draws 16 random bits per value, four values at a time.

    torch draws a double for each value, in one thread: a tenth of the time of a profiled LoRA update after a frozen
    encoder. `p` is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded value.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        dropped = round(self.p * _LEVELS)
        if not self.training or dropped in (0, _LEVELS) or input.device.type != "cpu":
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: input.numel()].view(input.shape) >= dropped - _LEVELS // 2
        return input * kept.to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))


def use_cheap_layers(model: nn.Module) -> None:
    """Swap layers of a model for ones that compute the same in fewer passes over memory; names and weights stay.

    GPT-2's "gelu_new" is the tanh approximation written as eight operations; torch has it as one.
    """
    one_gelu = holds("GELU in one operation", {}, _gelus_agree, "transformers' own activation")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, CheapDropout(child.p).train(child.training))
            elif one_gelu and type(child) is NewGELUActivation:
                setattr(parent, name, GELUTanh().train(child.training))


def _gelus_agree() -> bool:
    values = torch.linspace(-6, 6, 97)
    return torch.allclose(GELUTanh()(values), NewGELUActivation()(values), rtol=1e-5, atol=1e-6)


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
    # transformers lets the word embeddings' output require gradients where nothing else would, for reentrant
    # checkpoints. Ours are not, and GIT adds to that output in place, which autograd forbids.
    captioner.model.disable_input_require_grads()
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
