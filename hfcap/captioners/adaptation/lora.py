"""LoRA (Hu et al. 2021, arXiv:2106.09685) on any captioner through PEFT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper

from hfcap.captioners.adaptation.merging import probe_logits, require_mergeable, require_same_logits
from hfcap.captioners.adaptation.quantization import quantize_linear_layers, require_bitsandbytes
from hfcap.captioners.adaptation.targets import FROM_WEIGHTS, adapted_modules, require_parameters
from hfcap.captioners.base import Captioner
from hfcap.captioners.quiet import quiet_peft
from hfcap.captioners.shared.pretrained import unreadable_files
from hfcap.errors import UserError, WorkError, reason_of
from hfcap.recipe.blocks import LoraOptions


def add_lora(captioner: Captioner, options: LoraOptions) -> PeftModel:
    """Inject LoRA layers into the captioner's model; everything else is frozen.

    With `load_in_4bit` the adapted layers are quantised first; what is saved, the adapter, goes onto the full base.
    The family's randomly started modules (`lora_modules_to_save`) are trained in full besides the adapters.

    Raises:
        UserError: a target matches nothing, its start changes what the model says, or the adapter could never be
            merged (`require_mergeable`).
    """
    names = adapted_modules(captioner, options)
    require_parameters(captioner, options)
    modules_to_save = sorted({*(options.modules_to_save or []), *captioner.lora_modules_to_save})
    require_mergeable(captioner, names, modules_to_save)
    if options.load_in_4bit:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bitsandbytes = require_bitsandbytes("lora.load_in_4bit", "true", "false", device)
        # What is trained in full keeps its precision.
        frozen = [name for name in names if not set(modules_to_save).intersection(name.split("."))]
        quantize_linear_layers(captioner, frozen, bitsandbytes)
    config = LoraConfig(
        target_modules=_targets(captioner, options, names),
        modules_to_save=modules_to_save or None,
        # GPT-2's layers keep their weight transposed. Where a model has layers of both kinds, PEFT sets it for each.
        fan_in_fan_out=all(type(captioner.model.get_submodule(name)).__name__ == "Conv1D" for name in names),
        # With a larger share EVA moves ranks between layers, and what `r` says would hold for none of them.
        eva_config=EvaConfig(rho=1.0) if options.init_lora_weights == "eva" else None,
        **options.model_dump(exclude={"target_modules", "modules_to_save", "load_in_4bit"}),
    )
    starts_as_before = options.init_lora_weights in FROM_WEIGHTS and not options.load_in_4bit
    before = probe_logits(captioner) if starts_as_before else None
    try:
        with quiet_peft():
            peft_model = get_peft_model(captioner.model, config)
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"lora: peft refuses these options: {' '.join(str(error).split())[:300]}; change them"
        ) from error
    _require_apart(captioner, options)
    if before is not None:
        _require_same_start(captioner, options, before)
    return peft_model


def _require_same_start(captioner: Captioner, options: LoraOptions, before: torch.Tensor) -> None:
    try:
        require_same_logits(before, probe_logits(captioner), captioner.model, "the adapted model", "the base model")
    except WorkError as error:
        raise UserError(
            f"lora.init_lora_weights: {options.init_lora_weights} changes weights of the base model that other layers "
            "share (an output layer with the word embeddings); choose gaussian or true, or other layers in "
            "lora.target_modules"
        ) from error


def _require_apart(captioner: Captioner, options: LoraOptions) -> None:
    """Refuse a module trained in full that has adapters inside: PEFT would save it in a form that it cannot load."""
    for name, module in captioner.model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and any(isinstance(m, BaseTunerLayer) for m in module.modules()):
            raise UserError(
                f"lora.modules_to_save: {', '.join(options.modules_to_save or [])} means {name} (names are endings), "
                "and lora.target_modules adapts layers inside it; write more of the name that is meant, or choose "
                "other target_modules"
            )


def _targets(captioner: Captioner, options: LoraOptions, names: list[str]) -> str | list[str]:
    """Return what PEFT shall adapt: a regular expression over names, or endings of names."""
    if options.target_modules == "auto" and captioner.lora_target_modules:
        return captioner.lora_target_modules
    if options.target_modules in ("auto", "all-linear"):
        return names
    if isinstance(options.target_modules, str):
        # Of an expression that also matches blocks PEFT would refuse the whole.
        return "|".join(map(re.escape, names))
    endings = list(options.target_modules)
    matched = {
        name
        for name, _ in captioner.model.named_modules()
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
    }
    # An ending may be that of blocks as well ("output" in GIT and BERT), which PEFT would try to adapt.
    return endings if matched == set(names) else "|".join(map(re.escape, names))


def save_adapter(peft_model: Any, base_location: str, folder: Path, revision: str | None = None) -> None:
    """Write adapter_config.json and adapter_model.safetensors; the config names the base model and its commit."""
    for config in peft_model.peft_config.values():
        config.base_model_name_or_path = base_location
        config.revision = revision
    # PEFT would ask the Hub whether the vocabulary grew (no recipe can do that), and copy a whole adapted head.
    peft_model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    # PEFT writes a card of its own that lacks the base model; hfcap writes the real one.
    (folder / "README.md").unlink(missing_ok=True)


def load_adapter(captioner: Captioner, folder: Path | str) -> PeftModel:
    """Put a saved adapter onto a captioner that holds the base weights.

    Raises:
        UserError: no adapter as safetensors, or it fits another model.
    """
    if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():
        # PEFT would read adapter_model.bin, a pickle, or ask the Hub for a repository of this name.
        raise UserError(f"{folder}: holds no {SAFETENSORS_WEIGHTS_NAME}; save the adapter with safetensors")
    fault = unreadable_files(lambda error: f"{folder}: the adapter does not fit its base model: {reason_of(error)}")
    with fault, quiet_peft():
        peft_model = PeftModel.from_pretrained(captioner.model, str(folder))
    if peft_model.active_peft_config.is_prompt_learning:
        raise UserError(
            f"{folder}: an adapter of the kind {peft_model.active_peft_config.peft_type}, which puts learned states in "
            "front of the text instead of changing layers; hfcap captions with adapters such as LoRA"
        )
    return peft_model
