"""Another attention kernel than the one transformers chooses, for a whole captioner or for parts of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hfcap.captioners.base import Captioner
from hfcap.errors import UserError

_KEY = "model.attn_implementation"


def choose_attention(captioner: Captioner, choice: str | Mapping[str, str]) -> None:
    """Let the captioner compute attention by the kernel of this name, or each part by that of its name.

    Raises:
        UserError: there is no such part, or model, mask or machine cannot take the kernel.
    """
    title = captioner.card_facts.title
    captioner.verdicts.clear()  # they were found with another kernel
    if not captioner.trains_by_gradients or captioner.attention_is_fixed:
        raise UserError(f"{_KEY}: {title} does not support attn_implementation; leave the key out")
    if isinstance(choice, str):
        _require_masks(captioner, choice, "text")
        _set([captioner.model], choice, title)
        return
    parts = captioner.part_modules()
    for part, kernel in choice.items():
        if part not in parts:
            raise UserError(f"{_KEY}: {title} has no part {part!r}; choose one of {', '.join(parts)}")
        _require_masks(captioner, kernel, part)
        models = [model for module in parts[part] for model in _outermost(module)]
        if not models:
            raise UserError(
                f"{_KEY}: the {part} part of {title} has no kernel of its own; name one for the whole model"
            )
        _set(models, kernel, f"the {part} part of {title}")


def _require_masks(captioner: Captioner, kernel: str, part: str) -> None:
    if kernel.startswith("flash") and part == "text" and captioner.packs_captions:
        raise UserError(
            f"{_KEY}: {kernel} cannot take the mask that keeps the packed captions of an image apart; name it for the "
            f"image encoder alone: {{vision: {kernel}}}"
        )


def _set(models: list[Any], kernel: str, name: str) -> None:
    for model in models:
        fixed = next((type(inner).__name__ for inner in model.modules() if _is_fixed(inner)), None)
        if fixed is not None:
            raise UserError(f"{_KEY}: {fixed} in {name} cannot change its attention; leave the key out")
        try:
            model.set_attn_implementation(kernel)
        except (ImportError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{_KEY}: {name} cannot use {kernel} here: {reason} (leave the key out, name it for another part, or "
                "install what is missing)"
            ) from error
        # Attention modules inside a VisionEncoderDecoderModel may hold copies of the configuration that was changed.
        for config in _configs(model):
            config._attn_implementation = kernel


def _is_fixed(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel) and not module._can_set_attn_implementation()


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    found = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values())


def _outermost(module: nn.Module) -> Iterator[Any]:
    """Give the transformers models in a module that are not inside one another."""
    if isinstance(module, PreTrainedModel):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)
