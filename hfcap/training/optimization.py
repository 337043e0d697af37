"""Which weights are trained, with which learning rate and dropout, and their moving average."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import Trainer, get_scheduler
from transformers.training_args import OptimizerNames

from hfcap.captioners.adaptation.quantization import require_bitsandbytes
from hfcap.captioners.base import Captioner
from hfcap.errors import UserError
from hfcap.progress import error_console
from hfcap.recipe.blocks import TrainOptions


def freeze_parts(captioner: Captioner, options: TrainOptions) -> None:
    """Stop gradients into the parts named in `train.freeze`.

    Raises:
        UserError: nothing is left to train.
    """
    parts = captioner.part_modules()
    for name in options.freeze:
        for module in parts[name]:
            module.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in captioner.model.parameters()):
        raise UserError(f"train.freeze: {options.freeze} leaves nothing to train; take a part out of the list")


def train_in_float32(captioner: Captioner, chosen: str | None) -> None:
    """Give trained weights that were stored in half precision the float32 that AdamW needs; frozen ones come along.

    In bfloat16 an update below a 256th of a weight is rounded away, and the optimiser's own averages stand still:
    training that seems to run and teaches nothing.

    Args:
        chosen: what `model.dtype` asks for, in families that have this key.

    Raises:
        UserError: the recipe asks for half precision.
    """
    halves = [name for name, weight in trained_parameters(captioner.model).items() if weight.dtype.itemsize < 4]
    if not halves:
        return
    if chosen not in (None, "float32"):
        raise UserError(
            f"model.dtype: AdamW cannot train {chosen} weights ({halves[0]}), it would round their updates away; train "
            "adapters alone (the block lora, without modules_to_save), or set dtype: float32 and train.mixed_precision"
        )
    captioner.model.float()


def set_dropout(captioner: Captioner, options: TrainOptions) -> None:
    """Give the dropout layers of the parts named in `train.dropout` another probability, for this training alone.

    Layers of probability 0 stay off: their model was made without dropout in that place. The configuration that is
    saved with the model stays as it was.

    Raises:
        UserError: a part has no dropout layer that is on.
    """
    parts = captioner.part_modules()
    for part, probability in options.dropout.items():
        layers = [
            layer
            for module in parts[part]
            for layer in module.modules()
            if isinstance(layer, nn.Dropout) and layer.p > 0
        ]
        if not layers:
            raise UserError(
                f"train.dropout.{part}: this part has no dropout layer that is switched on; leave the key out, or "
                "build the model with dropout (resid_pdrop, hidden_dropout_prob, ... in its configuration)"
            )
        for layer in layers:
            layer.p = probability


def require_trained_parts(captioner: Captioner, options: TrainOptions) -> None:
    """Refuse dropout in a part that is not trained: frozen modules stay in evaluation mode, without dropout.

    Raises:
        UserError: `train.dropout` names such a part.
    """
    parts = captioner.part_modules()
    for part in options.dropout:
        if not any(parameter.requires_grad for module in parts[part] for parameter in module.parameters()):
            raise UserError(
                f"train.dropout.{part}: nothing of this part is trained (train.freeze, or LoRA elsewhere), so that it "
                "has no dropout; leave the key out"
            )


def frozen_modules(captioner: Captioner) -> list[nn.Module]:
    """Modules of parts without any trained weight; they stay in evaluation mode (batch norm, dropout)."""
    return [
        module
        for modules in captioner.part_modules().values()
        for module in modules
        if not any(parameter.requires_grad for parameter in module.parameters())
    ]


def encoder_is_frozen(captioner: Captioner) -> bool:
    """Whether no weight of the image encoder is trained, so that its output can be kept."""
    modules = captioner.part_modules()["vision"]
    return not any(parameter.requires_grad for module in modules for parameter in module.parameters())


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that receive gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained weights and persistent buffers by name, as the model holds them: what changes in a training."""
    tensors = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
    persistent = set(model.state_dict())
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


def parameter_groups(captioner: Captioner, options: TrainOptions) -> list[dict[str, Any]]:
    """Optimiser groups per part and per weight decay; biases and norms are not decayed."""
    part_of = {
        id(parameter): part
        for part, modules in captioner.part_modules().items()
        for module in modules
        for parameter in module.parameters()
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in trained_parameters(captioner.model).values():
        key = (part_of[id(parameter)], parameter.ndim >= 2)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "part": part,
            "lr": options.learning_rates.get(part, options.learning_rate),
            "weight_decay": options.weight_decay if decayed else 0.0,
        }
        for (part, decayed), parameters in groups.items()
    ]


_OWN_STEPS = {
    "layerwise": "it steps inside the backward pass, weight by weight",
    "lomo": "it steps inside the backward pass",
    "schedule_free": "it keeps weights apart from those that it trains, outside what checkpoints hold",
}
"""Part of an optimiser's name -> why hfcap's loop cannot use it."""


def build_optimizer(captioner: Captioner, options: TrainOptions) -> torch.optim.Optimizer:
    """Return the optimiser over the trained weights that transformers' Trainer would take for `train.optim`.

    Raises:
        UserError: it needs a package, a device or options that are not there.
    """
    made, arguments = _optimizer_class(options, captioner.model, captioner.device)
    groups = parameter_groups(captioner, options)
    if "params" in arguments:
        groups = _with_low_ranks(groups, arguments.pop("params"))
    if options.optim == "adamw_torch":
        arguments["fused"] = captioner.device.type in ("cpu", "cuda")
    optimizer: torch.optim.Optimizer = made(groups, **arguments)
    return optimizer


def _optimizer_class(options: TrainOptions, model: Any, device: torch.device) -> tuple[Any, dict[str, Any]]:
    for part, reason in _OWN_STEPS.items():
        if part in options.optim:
            raise UserError(f"train.optim: hfcap cannot train with {options.optim}: {reason}; choose another")
    of_bitsandbytes = any(part in options.optim for part in ("bnb", "8bit", "paged", "lion", "ademamix"))
    if of_bitsandbytes and not options.optim.startswith(("adamw_torch", "galore")):
        require_bitsandbytes("train.optim", options.optim, "adamw_torch", device)
    try:
        # Not TrainingArguments themselves: making them resets the state of a run's Accelerator.
        arguments: Any = SimpleNamespace(
            optim=OptimizerNames(options.optim),
            optim_args=options.optim_args,
            optim_target_modules=options.optim_target_modules,
            learning_rate=options.learning_rate,
            adam_beta1=options.adam_beta1,
            adam_beta2=options.adam_beta2,
            adam_epsilon=options.adam_epsilon,
        )
        found: tuple[Any, dict[str, Any]] = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"train.optim: transformers cannot make {options.optim} here: {' '.join(str(error).split())[:300]}"
        ) from error
    return found


def _with_low_ranks(groups: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split groups by what the factory says of some of their weights (ranks of GaLore and APOLLO)."""
    said = {id(weight): values for values in given for weight in values["params"]}
    split: list[dict[str, Any]] = []
    for group in groups:
        kinds: dict[int, list[nn.Parameter]] = {}
        for weight in group["params"]:
            kinds.setdefault(id(said[id(weight)]), []).append(weight)
        for weights in kinds.values():
            split.append({**said[id(weights[0])], **group, "params": weights})
    return split


def build_scheduler(optimizer: torch.optim.Optimizer, options: TrainOptions, total_steps: int) -> Any:
    """Return the learning-rate schedule over optimiser updates, as transformers makes it.

    Raises:
        UserError: `lr_scheduler_kwargs` are not those of this schedule.
    """
    try:
        return get_scheduler(
            options.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_updates(options, total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=dict(options.lr_scheduler_kwargs),
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"train.lr_scheduler_kwargs: not what {options.lr_scheduler_type} takes: {str(error)[:200]}"
        ) from error


def warmup_updates(options: TrainOptions, total_steps: int) -> int:
    """Return how many updates the warm-up has; below 1, `warmup_steps` is a share, as in TrainingArguments."""
    if options.warmup_steps < 1:
        return math.ceil(options.warmup_steps * total_steps) or round(options.warmup_ratio * total_steps)
    return int(options.warmup_steps)


def require_optimization(options: TrainOptions, device: torch.device) -> None:
    """Refuse an optimiser or schedule that cannot be made, before anything is computed; say where a name is old.

    Raises:
        UserError: names the key.
    """
    weight = nn.Linear(1, 1)
    if options.optim_target_modules is None:
        _optimizer_class(options, weight, device)
    build_scheduler(torch.optim.SGD(weight.parameters(), lr=options.learning_rate), options, 10)
    if options.warmup_ratio:
        said = f"note: train.warmup_ratio is called warmup_steps: {options.warmup_ratio:g} since transformers 5"
        error_console.print(said, markup=False, soft_wrap=True)


def _own_piece(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor: what is done number by number needs no more (FSDP)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class MovingAverage:
    """Exponential moving average of the trained weights (Polyak averaging).

    It is kept in float32 whatever the weights' number type: in bfloat16 a step of a thousandth is rounded away, and
    the average would stand still.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = parameters
        self.average = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}
        self.updates = 0

    def update(self) -> None:
        """Take in the current weights; early updates weigh more so that the random start is forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights: list[Any] = [_own_piece(parameter.detach().float()) for parameter in self.parameters.values()]
        # What torch hands to its own AveragedModel; that one would copy the whole model, frozen parts and all.
        get_ema_multi_avg_fn(decay)([_own_piece(average) for average in self.average.values()], weights, 0)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Swap the average, in the weights' number type, into the model for the length of the block."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.copy_(kept[name])
