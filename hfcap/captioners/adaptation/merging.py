"""Folding an adapter into the weights, also into weights that the model shares, and the proof that nothing changed.

A decoder's head often shares its weight with the word embeddings. An update that was trained for one of the two must
not reach the other: such weights are copied first, and the model's configuration says that they are no longer tied.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcap.captioners.base import Captioner
from hfcap.captioners.quiet import quiet_peft
from hfcap.errors import UserError, WorkError
from hfcap.schema import PackedCaptions

_TEXT = "a photo of two dogs"
_ROUNDINGS, _ROUNDINGS_HALF = 1024, 16
"""Merging rounds each adapted weight once, and the products after it are summed in another order: a sum of n float32
products rounds by up to n units in the last place (widths of models are some thousand), while half types are summed in
float32. Measured over 12 to 48 layers: 11 units at most of float32, 3 of bfloat16 and float16; an update that reaches a
tied weight as well changes logits by a third of the largest.
"""


def merge_adapter(captioner: Captioner, peft_model: Any) -> Captioner:
    """Fold the adapter into the weights; afterwards `captioner.model` is a plain transformers model.

    Raises:
        WorkError: the merged model gives other logits than the adapter did.
    """
    before = probe_logits(captioner)
    flags = [(config, config.tie_word_embeddings) for config in _tying_configs(captioner.model)]
    _separate_adapted(captioner.model)
    with quiet_peft():
        model = peft_model.merge_and_unload()
    for config, value in flags:  # PEFT changes the outermost one alone
        config.tie_word_embeddings = value
    if all(torch.equal(*pair) for pair in _tied_pairs(model)):
        model.tie_weights()
    else:
        _untie(model)
    captioner.model = model
    # PEFT froze the base; a plain model can be trained again.
    model.requires_grad_(True)
    require_same_logits(before, probe_logits(captioner), model, "the merged model", "the adapter")
    return captioner


def is_quantized(model: Any) -> bool:
    """Whether weights are stored in 4 or 8 bits, into which no update can be folded without rounding them again."""
    return bool(getattr(model, "is_quantized", False))


def require_merged(captioner: Captioner, location: str) -> None:
    """Refuse a captioner whose adapter stayed separate, where whole weights are needed.

    Raises:
        UserError: names the way out.
    """
    if any(_is_adapted(module) for module in captioner.model.modules()):
        raise UserError(
            f"{location}: the weights of its base model are stored in few bits, and merging its adapter would round "
            "all of them again; publish the adapter itself, or name the base in full precision as "
            "base_model_name_or_path in its adapter_config.json"
        )


@torch.no_grad()
def probe_logits(captioner: Captioner) -> torch.Tensor:
    """Return the logits (T, V) of a short caption of a small drawn image; the model is put into evaluation mode."""
    captioner.model.eval()
    ramp = Image.linear_gradient("L")
    image = Image.merge("RGB", (ramp, Image.radial_gradient("L"), ramp.rotate(90))).resize((96, 64))
    pixels = captioner.image_processor(images=image, return_tensors="pt")["pixel_values"].to(captioner.device)
    # A slice to None is the whole list: some text models have no limit.
    ids = [*captioner.start_token_ids(), *captioner.caption_token_ids([_TEXT], 8)[0]][: captioner.max_text_tokens]
    row = torch.tensor([ids])
    packed = PackedCaptions(row, torch.arange(len(ids))[None], torch.zeros_like(row), row).to(captioner.device)
    return captioner.logits(captioner.encode(pixels), packed)[0].float()


def require_same_logits(expected: torch.Tensor, found: torch.Tensor, model: Any, what: str, other: str) -> None:
    """Refuse logits that differ by more than the model's coarsest numbers round.

    Args:
        what, other: what gave `found` and `expected`, for the message.

    Raises:
        WorkError: they differ, or some are not numbers.
    """
    if not bool(expected.isfinite().all()):
        raise WorkError(
            f"{other} predicts what are no numbers for a drawn image; check the model's weights, and image_mean and "
            "image_std in its processor_config.json or preprocessor_config.json"
        )
    types = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
    coarsest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = (_ROUNDINGS if coarsest == torch.float32 else _ROUNDINGS_HALF) * torch.finfo(coarsest).eps
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    if not difference <= tolerance:  # also where it is not a number
        raise WorkError(
            f"{what} predicts otherwise than {other}: logits differ by {difference:.2g} of the largest one, and "
            f"rounding of {str(coarsest).removeprefix('torch.')} explains {tolerance:.2g} at most; it is not what was "
            "trained. Publish the adapter itself, or train with lora.target_modules: auto"
        )


def require_mergeable(captioner: Captioner, adapted: Collection[str], whole: Collection[str]) -> None:
    """Refuse, before anything is trained, an adapter that could not be merged into shared weights.

    Args:
        adapted: names of the layers to adapt. whole: endings of names of modules to train in full.

    Raises:
        UserError: a weight of them is shared in a way that the configuration cannot switch off, or the model computes
            otherwise without the sharing.
    """
    model = captioner.model
    chosen = {
        name
        for name, _ in model.named_modules(remove_duplicate=False)
        if name in adapted or name.endswith(tuple(whole))
    }
    declared = {frozenset(pair) for pair in _declared_ties(model).items()}
    tied = set()
    for names in _shared(model):
        touched = sorted(name for name in names if name.rpartition(".")[0] in chosen)
        if not touched:
            continue
        for name, other in itertools.combinations(names, 2):
            linked = any({name, other} <= link for link in _closure(declared))
            if not linked and {name, other} & set(touched):
                raise UserError(
                    f"lora: {touched[0]} is the same weight as {other if other != touched[0] else name}, which this "
                    "model always shares, so that what is trained for one would change the other; choose other layers "
                    "in lora.target_modules or lora.modules_to_save"
                )
        tied.update(touched)
    if tied:
        _require_same_without_ties(captioner, sorted(tied))


def _require_same_without_ties(captioner: Captioner, names: list[str]) -> None:
    """Refuse models that compute otherwise where their configuration says that nothing is tied (T5 scales states)."""
    expected = probe_logits(captioner)
    configs = list(_tying_configs(captioner.model))
    for config in configs:
        config.tie_word_embeddings = False
    try:
        require_same_logits(expected, probe_logits(captioner), captioner.model, "without ties", "with them")
    except WorkError as error:
        raise UserError(
            f"lora: {names[0]} shares its weight with other layers, and this model computes otherwise where they have "
            "weights of their own, so that the adapter could never be merged; choose other layers in "
            "lora.target_modules or lora.modules_to_save"
        ) from error
    finally:
        for config in configs:
            config.tie_word_embeddings = True


# ---- which weights are shared --------------------------------------------------------------------------------------


def _shared(model: nn.Module) -> list[list[str]]:
    """Return groups of names that mean one parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _declared_ties(model: Any) -> dict[str, str]:
    """Return target -> source of the weights that the model's configuration ties."""
    ties: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    return ties


def _closure(pairs: Collection[frozenset[str]]) -> list[set[str]]:
    """Join pairs that have a name in common."""
    groups: list[set[str]] = []
    for pair in pairs:
        joined = [group for group in groups if group & pair]
        groups = [group for group in groups if not group & pair] + [set(pair).union(*joined)]
    return groups


def _tied_pairs(model: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for target, source in _declared_ties(model).items():
        yield model.get_parameter_or_buffer(target), model.get_parameter_or_buffer(source)


def _tying_configs(model: nn.Module) -> Iterator[Any]:
    """Yield each configuration of the model and of its parts that ties word embeddings."""
    seen: set[int] = set()
    waiting: list[Any] = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while waiting:
        config = waiting.pop()
        if id(config) in seen:
            continue
        seen.add(id(config))
        waiting += [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
        if getattr(config, "tie_word_embeddings", False):
            yield config


def _is_adapted(module: nn.Module) -> bool:
    """Whether PEFT wraps a layer; its import takes seconds and is left to those that have an adapter."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _separate_adapted(model: nn.Module) -> None:
    """Give layers that an adapter changes, and those that share weights with them, weights of their own."""
    adapted = {id(inner) for layer in model.modules() if _is_adapted(layer) for inner in layer.modules()}
    for names in _shared(model):
        owners = [model.get_submodule(name.rpartition(".")[0]) for name in names]
        if any(id(owner) in adapted for owner in owners):
            for owner, name in zip(owners[1:], names[1:], strict=True):
                _copy_parameter(owner, name)


def _copy_parameter(owner: nn.Module, name: str) -> None:
    attribute = name.rpartition(".")[2]
    parameter = getattr(owner, attribute)
    setattr(owner, attribute, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


def _untie(model: Any) -> None:
    """Give each tied weight its own tensor, and write that into every configuration that is saved."""
    for target, source in _declared_ties(model).items():
        if model.get_parameter_or_buffer(target) is model.get_parameter_or_buffer(source):
            _copy_parameter(model.get_submodule(target.rpartition(".")[0]), target)
    for config in list(_tying_configs(model)):
        config.tie_word_embeddings = False
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            # What save_pretrained leaves out.
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)
