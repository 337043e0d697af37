"""DeepSpeed's ZeRO-2, by Accelerate: a recipe's numbers in its configuration, whole tensors from its pieces.

Rajbhandari et al. 2020 (arXiv:1910.02054): each process keeps a piece of the optimiser's state and of the gradients.
Checkpoints are hfcap's own, with whole tensors: DeepSpeed's are pickled.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.training.optimization import trained_parameters

_STAGE = 2
"""ZeRO-3 gathers weights module by module, and waits for ever where processes run a module in other numbers: the head
runs once for each 1,024 tokens of a batch. FSDP2 cuts weights as well, and gathers them by layers."""
_STEP = "step"
"""What torch's optimisers keep as one number for a whole piece."""

_SAID_BY_HFCAP = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "steps_per_print",
)
_TAKEN = (*_SAID_BY_HFCAP, "gradient_clipping", "zero_optimization", "fp16", "bf16", "zero_allow_untested_optimizer")
"""Keys of DeepSpeed's configuration that may be there."""


class ZeroAccelerator(Accelerator):
    """An Accelerator with DeepSpeed that computes in the recipe's precision and gathers gradients as others do.

    DeepSpeed's own bf16 would round weights and sums of gradients; here weights stay float32 and products are rounded,
    as in data-parallel training.

    Attributes:
        products: number type of products; None = that of the weights.
        engine: DeepSpeed's, once an objective is prepared.
    """

    def __init__(self, products: torch.dtype | None, **arguments: Any) -> None:
        super().__init__(mixed_precision="no", **arguments)
        self.products = products
        self.engine: Any = None

    @contextlib.contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        """Compute products in the recipe's number type."""
        if self.products is None:
            yield
        else:
            with torch.autocast(self.device.type, dtype=self.products):
                yield

    @contextlib.contextmanager
    def no_sync(self, model: nn.Module) -> Iterator[None]:
        """Add up gradients in the block, where `backward` otherwise makes the update that DeepSpeed ties to it."""
        self.sync_gradients = False
        try:
            yield
        finally:
            self.sync_gradients = True

    def clip_grad_norm_(self, *arguments: Any, **named: Any) -> float | None:
        """Return the norm of the gradient of the last update; infinite where numbers in it are none."""
        norm: float | None = super().clip_grad_norm_(*arguments, **named)
        # DeepSpeed says -1 then.
        return math.inf if norm is not None and norm < 0 else norm


class _InPrecision(nn.Module):
    """An objective whose products are in the Accelerator's number type; DeepSpeed ends any autocast around itself."""

    accelerator: ZeroAccelerator
    objective: nn.Module

    def __init__(self, objective: nn.Module, accelerator: ZeroAccelerator) -> None:
        super().__init__()
        self.objective = objective
        object.__setattr__(self, "accelerator", accelerator)

    def forward(self, batch: Any) -> Any:
        """Give what the objective gives."""
        with self.accelerator.autocast():
            return self.objective(batch)


def new_zero_accelerator(products: torch.dtype | None, **arguments: Any) -> ZeroAccelerator:
    """Create an Accelerator with DeepSpeed, as the accelerate configuration says.

    Raises:
        UserError: the configuration asks for what hfcap does not do.
    """
    accelerator = ZeroAccelerator(products, **arguments)
    # Models are read whole and cut afterwards; transformers would cut while it reads, and generate in step.
    unset_hf_deepspeed_config()
    if accelerator.distributed_type != DistributedType.DEEPSPEED or accelerator.state.backend is None:
        raise UserError(
            "the accelerate configuration asks for DeepSpeed, which Accelerate does with GPUs alone, and here it has "
            f"{accelerator.device.type}; use recipes/accelerate/cpu.yaml"
        )
    require_plain(accelerator.deepspeed_plugin)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return accelerator


def require_plain(plugin: Any) -> None:
    """Refuse a configuration of DeepSpeed that would train otherwise than the recipe.

    Args:
        plugin: Accelerate's DeepSpeedPlugin.

    Raises:
        UserError: names the key.
    """
    config = plugin.deepspeed_config
    if plugin.zero_stage != _STAGE:
        raise UserError(
            f"the accelerate configuration asks for ZeRO of stage {plugin.zero_stage}; set zero_stage: 2 "
            "(recipes/accelerate/deepspeed_zero2.yaml), or cut weights as well with recipes/accelerate/fsdp2.yaml"
        )
    others = sorted(config.keys() - _TAKEN)
    others += [name for name in ("fp16", "bf16") if config.get(name, {}).get("enabled") is True]
    if others:
        raise UserError(
            f"the accelerate configuration: DeepSpeed's {', '.join(others)} may train otherwise than the recipe says; "
            "take it out of deepspeed_config_file (precision, optimiser and schedule are the recipe's)"
        )
    for name in ("offload_optimizer", "offload_param"):
        device = (config["zero_optimization"].get(name) or {}).get("device") or "none"
        if device != "none":
            raise UserError(
                f"the accelerate configuration: {name}_device: {device} replaces the recipe's optimiser by one of "
                f"DeepSpeed's; set {name}_device: none"
            )


def require_zero(recipe: Recipe, accelerator: ZeroAccelerator) -> None:
    """Give DeepSpeed the recipe's numbers.

    Raises:
        UserError: the configuration has another number.
    """
    options = recipe.train
    config, clip = accelerator.deepspeed_plugin.deepspeed_config, options.max_grad_norm or 0.0
    asked = accelerator.deepspeed_plugin.gradient_clipping
    if asked not in (None, "auto", clip):
        raise UserError(
            f"the accelerate configuration: gradient_clipping is {asked}, and train.max_grad_norm of the recipe "
            f"{options.max_grad_norm}; leave gradient_clipping out, since the recipe counts"
        )
    size = options.per_device_train_batch_size
    config |= {
        "gradient_clipping": clip,
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": size,
        "train_batch_size": size * accelerator.num_processes,
    }


def prepared_by_zero(
    accelerator: ZeroAccelerator, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Any, Any]:
    """Let DeepSpeed take an objective and its optimiser."""
    both: tuple[Any, Any] = accelerator.prepare(_InPrecision(objective, accelerator), optimizer)
    accelerator.engine = both[0]
    return both


@torch.no_grad()
def optimizer_tensors(model: nn.Module, accelerator: ZeroAccelerator) -> dict[str, torch.Tensor]:
    """Return the optimiser's state of each trained weight, whole, as `weight|entry`; every process must call this.

    The state lies in flat pieces as the float32 weights do. DeepSpeed 0.19 finds the state of the first group of
    weights alone, but all weights: so each entry of the state takes the weights' place while it is read.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    state, pieces = _state(accelerator), _pieces(accelerator)
    tensors = {}
    with _lent(pieces):
        for key, first in state.get(pieces[0], {}).items():
            if key != _STEP:
                for piece in pieces:
                    piece.copy_(state[piece][key])
            for name, parameter in trained_parameters(model).items():
                value = first if key == _STEP else safe_get_full_fp32_param(parameter)
                if accelerator.is_main_process:
                    tensors[f"{name}|{key}"] = value.cpu()
    return tensors


@torch.no_grad()
def restore_optimizer(tensors: dict[str, torch.Tensor], model: nn.Module, accelerator: ZeroAccelerator) -> None:
    """Cut the optimiser's state that `optimizer_tensors` gave, and the weights that DeepSpeed updates like the model's.

    Every process must call this, with whole tensors.
    """
    from deepspeed.utils import safe_set_full_fp32_param

    state, pieces, parameters = _state(accelerator), _pieces(accelerator), trained_parameters(model)
    entries: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        weight, key = name.rsplit("|", 1)
        entries.setdefault(key, {})[weight] = value
    with _lent(pieces):
        for key, values in entries.items():
            # Weights that never got a gradient have no state elsewhere.
            for piece in pieces:
                piece.zero_()
            if key != _STEP:
                for name, value in values.items():
                    safe_set_full_fp32_param(parameters[name], value.to(accelerator.device, torch.float32))
            number = next(iter(values.values()))
            for piece in pieces:
                state[piece][key] = number.to(piece.device, copy=True) if key == _STEP else piece.clone()
    for parameter in parameters.values():
        safe_set_full_fp32_param(parameter, parameter)


@contextlib.contextmanager
def _lent(pieces: list[torch.Tensor]) -> Iterator[None]:
    """Give the float32 pieces of the weights back their numbers after the block."""
    kept = [piece.clone() for piece in pieces]
    try:
        yield
    finally:
        for piece, numbers in zip(pieces, kept, strict=True):
            piece.copy_(numbers)


def _state(accelerator: ZeroAccelerator) -> Any:
    """The state of torch's optimiser, which holds flat pieces of many weights."""
    return accelerator.engine.optimizer.optimizer.state


def _pieces(accelerator: ZeroAccelerator) -> list[torch.Tensor]:
    """The flat pieces of this process, one for each group of weights."""
    return list(accelerator.engine.optimizer.single_partition_of_fp32_groups)
