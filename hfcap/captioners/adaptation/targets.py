"""Which layers LoRA adapts, and how much of the language model that is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.linear_layers import heads, is_linear, is_router
from hfcap.errors import UserError
from hfcap.recipe.blocks import LoraOptions

ENOUGH = 0.9
"""Share of the language model's linear weights below which a run and the doctor warn."""


FROM_WEIGHTS = ("pissa", "olora")
"""Starts of adapters that are taken out of the layers' weights: both together compute what the layer did."""

_TAKEN_FOR_EXPERTS = dict.fromkeys(("glm4v_moe", "qwen3_omni_moe_thinker"), ("gate_proj", "up_proj", "down_proj"))
"""Model type -> endings of layers for which peft would adapt the weights of experts, whose names they were once.

Of what it adapts instead it refuses any dropout, and the layers themselves it leaves out.
"""


def adapted_modules(captioner: Captioner, options: LoraOptions) -> list[str]:
    """Return the names of the modules LoRA will adapt.

    Raises:
        UserError: a target, or a module to train in full, matches nothing (the message lists names that exist), or
            lora.init_lora_weights does not know a layer.
    """
    every = [name for name, _ in captioner.model.named_modules() if name]
    for ending in options.modules_to_save or []:
        if not ending or not any(name.endswith(ending) for name in every):  # as PEFT looks
            raise UserError(
                f"lora.modules_to_save: {ending!r} matches no module of this model; choose from {_endings(every)}"
            )
    found = _matching_layers(captioner, options)
    _require_start(captioner, options, found)
    return found


def _matching_layers(captioner: Captioner, options: LoraOptions) -> list[str]:
    names = [name for name, module in captioner.model.named_modules() if is_linear(module)]
    targets = options.target_modules
    if isinstance(targets, str):
        found = _named_by(targets, captioner, names)
        if not found:
            raise UserError(
                f"lora.target_modules: {targets} matches no layer of this model; give a list of {_endings(names)}"
            )
        return found
    found = []
    for target in targets:
        matches = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matches:
            raise UserError(
                f"lora.target_modules: {target!r} matches no linear layer of this model; choose from {_endings(names)}"
            )
        found += matches
    return list(dict.fromkeys(found))


def _require_start(captioner: Captioner, options: LoraOptions, names: list[str]) -> None:
    """Refuse starts of adapters that PEFT cannot compute for a layer; it fails later, or cannot load what it saved."""
    start = options.init_lora_weights
    if start not in FROM_WEIGHTS:
        return
    if start == "pissa" and options.load_in_4bit:
        raise UserError(
            "lora.init_lora_weights: pissa needs full weights, and load_in_4bit stores few bits; leave one out"
        )
    for name in names:
        layer = captioner.model.get_submodule(name)
        if start == "olora" and type(layer).__name__ == "Conv1D":
            raise UserError(
                f"lora.init_lora_weights: olora takes no layers of GPT-2's kind (Conv1D: {name}); choose pissa, "
                "gaussian or true, or other layers in lora.target_modules"
            )
        weight: Any = layer.weight
        if options.r > min(weight.shape):
            raise UserError(
                f"lora.r: {options.r} is more than lora.init_lora_weights: {start} finds in {name} "
                f"({' x '.join(map(str, weight.shape))}); set it to at most {min(weight.shape)}"
            )


def _named_by(targets: str, captioner: Captioner, names: list[str]) -> list[str]:
    """Return what a word or a regular expression means."""
    if targets == "auto":
        left_out = _TAKEN_FOR_EXPERTS.get(captioner.model.config.model_type, ())
        return [name for name in captioner.lora_layers() if name.rpartition(".")[2] not in left_out]
    if targets == "all-linear":  # as peft means it
        without = {id(head) for head in heads(captioner.model)}
        return [name for name in names if id(captioner.model.get_submodule(name)) not in without]
    return [name for name in names if re.fullmatch(targets, name)]


def _endings(names: list[str]) -> str:
    counts = Counter(name.rsplit(".", 1)[-1] for name in names)
    return ", ".join(f"{ending} ({count})" for ending, count in counts.most_common(12))


def require_parameters(captioner: Captioner, options: LoraOptions) -> None:
    """Refuse `target_parameters` that name no weight, or that stand with what peft cannot give to weights alone.

    Raises:
        UserError: names the key and what exists.
    """
    targets = options.target_parameters or []
    names = [name for name, parameter in captioner.model.named_parameters() if parameter.ndim >= 2]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            fused = Counter(_ending(name) for name, _ in _fused(captioner.model))
            known = ", ".join(fused) or "none: this model has no experts whose weights lie in one tensor"
            raise UserError(f"lora.target_parameters: {target!r} matches no weight of this model; there are {known}")
    refused = {"lora_dropout": options.lora_dropout != 0, "use_dora": options.use_dora}
    if targets and any(refused.values()):
        key = next(name for name, given in refused.items() if given)
        raise UserError(
            f"lora.target_parameters: peft adapts weights without layers only with lora_dropout: 0 and use_dora: "
            f"false; change lora.{key}"
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the language model's linear weights LoRA trains; heads, embeddings and routers are not counted.

    Attributes:
        reached, weights: numbers of weights. missed: ending of the names of what is not reached -> how many of
            it, those with the most weights first.
        parameters: those of `missed` that are weights without a layer of their own (fused experts).
    """

    reached: int
    weights: int
    missed: dict[str, int]
    parameters: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the weights, 0 to 1."""
        return self.reached / self.weights if self.weights else 1.0

    @property
    def enough(self) -> bool:
        """Whether nobody has to be warned."""
        return self.share >= ENOUGH

    def sentence(self) -> str:
        """Return one line for people."""
        missed = ", ".join(f"{ending} ({count})" for ending, count in list(self.missed.items())[:8])
        # Rounded down: 100 % is said of everything only.
        share = f"LoRA reaches {int(self.share * 100)} % of the language model's linear weights"
        return f"{share}; not: {missed}" if missed else share

    def remedy(self) -> str:
        """Return what to do where it is too little."""
        if self.parameters:
            listed = ", ".join(self.parameters)
            return f"add lora.target_parameters: [{listed}] (with lora_dropout: 0) for the experts' weights"
        return "set lora.target_modules: auto, or add these endings to the list"


def lora_coverage(captioner: Captioner) -> Coverage:
    """Return how much of the language model the adapters of a captioner reach."""
    reached = total = 0
    missed: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    fused: dict[str, None] = {}
    for name, count, is_reached, is_parameter in _weights(captioner):
        total += count
        reached += count * is_reached
        if not is_reached:
            ending = _ending(name) if is_parameter else name.rsplit(".", 1)[-1]
            missed[ending] += 1
            sizes[ending] += count
            if is_parameter:
                fused[ending] = None
    return Coverage(reached, total, {ending: missed[ending] for ending, _ in sizes.most_common()}, tuple(fused))


def _weights(captioner: Captioner) -> Iterator[tuple[str, int, bool, bool]]:
    """Yield name, size, whether it is trained, whether it is a bare parameter, of each linear weight."""
    model = captioner.model
    inside = {id(module) for root in captioner.language_modules() for module in root.modules()}
    apart = {id(head) for head in heads(model)}
    # What an adapter or a copy holds belongs to the layer that it wraps.
    wrapped: set[int] = set()
    for name, module in model.named_modules():
        if id(module) not in inside or id(module) in wrapped:
            continue
        if isinstance(module, ModulesToSaveWrapper):
            wrapped |= {id(part) for part in module.modules()}
            yield from (
                (f"{name}.{inner}", _size(layer), True, False)
                for inner, layer in module.original_module.named_modules()
                if is_linear(layer) and id(layer) not in apart
            )
            continue
        layer: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
        if isinstance(module, LoraLayer):
            own = {id(part) for part in module.modules()} - {id(part) for part in layer.modules()}
            wrapped |= own | {id(layer)} if is_linear(layer) else own - {id(module)}
        if is_linear(layer) and id(layer) not in apart and not is_router(model, name):
            yield name, _size(layer), layer is not module, False
    adapted = {
        f"{name.removesuffix('.base_layer')}.{module.parameter_name}"
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and hasattr(module, "parameter_name")
    }
    for name, parameter in _fused(model):
        owner = model.get_submodule(name.rpartition(".")[0])
        if id(owner) in inside:
            plain = name.replace(".base_layer", "")
            yield plain, parameter.numel(), any(plain == known.replace(".base_layer", "") for known in adapted), True


def _size(layer: Any) -> int:
    # Weights in few bits are packed: only their layer knows how many they are.
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return int(layer.weight.numel())


def _fused(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights of experts that lie in one tensor (experts, in, out)."""
    for name, module in model.named_modules():
        if name.replace(".base_layer", "").rpartition(".")[2].endswith("experts"):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    yield f"{name}.{own}", parameter


def _ending(name: str) -> str:
    """Return the last two parts of a parameter's name, as `target_parameters` takes them."""
    return ".".join(name.replace(".base_layer", "").rsplit(".", 2)[-2:])
