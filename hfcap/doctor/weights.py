"""Which weights are trained: parts, LoRA's hits, and what would be trained in vain."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper

from hfcap.captioners.adaptation.targets import Coverage, lora_coverage
from hfcap.captioners.base import Captioner
from hfcap.doctor.findings import Findings, not_yours
from hfcap.recipe.blocks import Recipe


@dataclass(frozen=True, slots=True)
class PartSize:
    """Parameters of one part; weights shared by two parts count for the first."""

    parameters: int
    trained: int

    @property
    def frozen(self) -> int:
        """Parameters that are not trained."""
        return self.parameters - self.trained


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """What LoRA does.

    Attributes:
        adapted: ending of the module names -> how many layers LoRA adapts.
        in_full: modules trained in full besides the adapters.
        coverage: how much of the language model's linear weights they reach.
    """

    adapted: dict[str, int]
    in_full: list[str]
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """Parameters by part; `weight_bytes` counts buffers too."""

    parts: dict[str, PartSize]
    lora: LoraFacts | None
    weight_bytes: int
    buffer_bytes: int
    dtype: str

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(part.parameters for part in self.parts.values())

    @property
    def trained(self) -> int:
        """Parameters that training changes."""
        return sum(part.trained for part in self.parts.values())


def examine_weights(recipe: Recipe, captioner: Captioner, findings: Findings) -> WeightFacts:
    """Count the weights of a captioner that is ready to train."""
    seen: set[int] = set()
    parts = {}
    for name, modules in captioner.part_modules().items():
        total = trained = 0
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                total += parameter.numel()
                trained += parameter.numel() * parameter.requires_grad
        parts[name] = PartSize(total, trained)
    parameters = list(captioner.model.parameters())
    buffers = sum(_bytes(buffer) for buffer in captioner.model.buffers())
    facts = WeightFacts(
        parts,
        None if recipe.lora is None else _lora(captioner),
        sum(map(_bytes, parameters)) + buffers,
        buffers,
        ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})),
    )
    _report(recipe, captioner, facts, findings)
    return facts


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _lora(captioner: Captioner) -> LoraFacts:
    modules = list(captioner.model.named_modules())
    adapted = Counter(name.rsplit(".", 1)[-1] for name, module in modules if isinstance(module, LoraLayer))
    in_full = [name for name, module in modules if isinstance(module, ModulesToSaveWrapper)]
    return LoraFacts(dict(adapted.most_common()), in_full, lora_coverage(captioner))


def _report(recipe: Recipe, captioner: Captioner, facts: WeightFacts, findings: Findings) -> None:
    covered = sum(part.parameters for part in facts.parts.values())
    everything = sum(parameter.numel() for parameter in captioner.model.parameters())
    if covered != everything:
        findings.error(
            "captioner",
            f"{everything - covered:,} parameters belong to no part, so they get no learning rate",
            not_yours(captioner, "part_modules"),
        )
    trained = {parameter.dtype for parameter in captioner.model.parameters() if parameter.requires_grad}
    half = sorted(str(dtype).removeprefix("torch.") for dtype in trained - {torch.float32, torch.float64})
    if half:
        findings.warning(
            "model",
            f"trained weights are {', '.join(half)}: small updates are rounded away",
            "load the base model in float32 and set train.mixed_precision instead",
        )
    if captioner.assembled and not captioner.base_models:
        untrained = [name for name, part in facts.parts.items() if part.parameters and not part.trained]
        if recipe.lora is not None:
            findings.warning(
                "lora",
                "LoRA adapts random weights, which stay random",
                "train in full (lora: null), or set a base model",
            )
        elif untrained:
            findings.warning(
                "train.freeze",
                f"{', '.join(untrained)}: random weights are frozen and never learn anything",
                "take the part out of train.freeze, or give it a pretrained model",
            )
    if facts.lora is not None:
        if not facts.lora.coverage.enough:
            findings.warning("lora", facts.lora.coverage.sentence(), facts.lora.coverage.remedy())
        inert = [
            name
            for name, module in captioner.model.named_modules()
            if isinstance(module, LoraLayer) and not any(p.requires_grad for p in module.parameters())
        ]
        if inert:
            findings.warning(
                "train.freeze",
                f"{len(inert)} layers adapted by LoRA lie in a frozen part and are not trained (first: {inert[0]})",
                "take the part out of train.freeze, or its layers out of lora.target_modules",
            )
