"""From a recipe to a captioner that is ready to train: built, frozen, adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed

from hfcap import registry
from hfcap.captioners.adaptation.lora import add_lora
from hfcap.captioners.adaptation.merging import require_merged
from hfcap.captioners.adaptation.quantization import compute_four_bits_in
from hfcap.captioners.asking.asked import require_askable
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import earlier_base_models, is_run_directory, load_captioner
from hfcap.captioners.shared.attn_implementation import choose_attention
from hfcap.captioners.shared.room import room_for_caption
from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.schema import CaptionedImage
from hfcap.training.acceleration import checkpoint_layers, use_cheap_layers
from hfcap.training.accelerator import AUTOCAST
from hfcap.training.optimization import freeze_parts, require_trained_parts, set_dropout, train_in_float32


@dataclass
class TrainableCaptioner:
    """A captioner and, for LoRA, the PEFT wrapper that saves its adapter."""

    captioner: Captioner
    peft_model: Any | None


def build_captioner(recipe: Recipe, train_records: Sequence[CaptionedImage]) -> Captioner:
    """Build the recipe's captioner with seeded random weights where it has no pretrained ones.

    Where `model.pretrained` names a run directory, training goes on from the captioner of that run.

    Raises:
        UserError: that run has no model yet, or its captioner is of another family or was trained after another
            prompt, or model.attn_implementation names a kernel that it cannot take; or images cannot be asked about.
    """
    set_seed(recipe.train.seed)
    family: type[Captioner] = registry.load("captioners", recipe.captioner).REGISTERED
    require_askable(family, recipe.captioner, recipe.model.prompt, train_records, "train")
    if recipe.model.pretrained is not None and is_run_directory(recipe.model.pretrained):
        captioner = _from_earlier_run(recipe, recipe.model.pretrained, family)
    else:
        captions = (caption for record in train_records for caption in record.captions)
        captioner = family.build(recipe.model, captions)
    if recipe.generate.style is not None:
        _ask_for_style(captioner, recipe)
    if recipe.model.attn_implementation is not None:
        choose_attention(captioner, recipe.model.attn_implementation)
    return captioner


def _ask_for_style(captioner: Captioner, recipe: Recipe) -> None:
    """Let training, too, ask for captions of the style, in the place of a prompt."""
    prompt = captioner.style_prompt(str(recipe.generate.style))
    usual = type(recipe.model).model_fields["prompt"].default
    if recipe.model.prompt not in (usual, prompt):
        raise UserError(
            f"generate.style: {recipe.generate.style} and model.prompt both say what is asked; remove one of them"
        )
    captioner.prompt = prompt


def _from_earlier_run(recipe: Recipe, location: str, family: type[Captioner]) -> Captioner:
    captioner = load_captioner(location, trust_remote_code=recipe.model.trust_remote_code)
    require_merged(captioner, location)
    if type(captioner) is not family:
        raise UserError(
            f"captioner: {location} holds a {captioner.family}, not a {recipe.captioner}; change one of them"
        )
    if captioner.template.strip() != recipe.model.prompt.strip():
        raise UserError(
            f"model.prompt: the captioner in {location} was trained with prompt {captioner.template!r}, not "
            f"{recipe.model.prompt!r}; set model.prompt to the same text"
        )
    captioner.base_models = earlier_base_models(location)
    # No repository holds these weights: adapters trained on them are published merged.
    captioner.assembled = True
    return captioner


def text_without_room(captioner: Captioner, recipe: Recipe, prompt: str | None = None) -> tuple[str, str, str] | None:
    """Return key, problem and remedy where captions of the recipe's length would exceed the text model's positions.

    Training reads start token, prompt and caption; generation reads all it has written but the last token.
    """
    room = room_for_caption(captioner, prompt)
    if room is None:
        return None
    lengths = {
        "data.max_caption_tokens": recipe.data.max_caption_tokens,
        "generate.max_new_tokens": recipe.generate.max_new_tokens - 1,
    }
    for key, length in lengths.items():
        if length <= room.tokens and room.taken <= room.positions:
            continue
        longest = room.new_tokens if key == "generate.max_new_tokens" else room.tokens
        problem = (
            f"a caption of {length} tokens does not fit into the text model: it has {room.positions} positions, of "
            f"which {room.taken} are taken by prefix, start token and prompt"
        )
        prefixed = captioner.positions_before_text > 0
        remedy = "choose a text model with more positions" + (" or a shorter prefix" if prefixed else "")
        return key, problem, f"set {key} to at most {longest}, or {remedy}" if longest else remedy
    return None


def require_room_for_captions(captioner: Captioner, recipe: Recipe, prompt: str | None = None) -> None:
    """Refuse a recipe whose captions may exceed the text model's positions, before anything is computed.

    Args:
        prompt: the longest; None = the captioner's own.

    Raises:
        UserError: names data.max_caption_tokens or generate.max_new_tokens, and what would fit.
    """
    found = text_without_room(captioner, recipe, prompt)
    if found is not None:
        key, problem, remedy = found
        raise UserError(f"{key}: {problem}; {remedy}")


def make_trainable(captioner: Captioner, recipe: Recipe) -> TrainableCaptioner:
    """Add LoRA or freeze parts, set dropout and gradient checkpointing as the recipe says; layers become cheap ones.

    Layers with 4-bit weights, which bring their inputs into a number type of their own, get that of mixed precision.

    Raises:
        UserError: nothing is left to train, weights would be trained in half precision, a part has no dropout to
            change or is frozen, or the model cannot do gradient checkpointing.
    """
    peft_model = None
    set_dropout(captioner, recipe.train)  # before LoRA, whose layers have a key of their own
    if recipe.lora is not None:
        peft_model = add_lora(captioner, recipe.lora)
    if (products := AUTOCAST[recipe.train.mixed_precision]) is not None:
        compute_four_bits_in(captioner.model, products)
    freeze_parts(captioner, recipe.train)
    train_in_float32(captioner, getattr(recipe.model, "dtype", None))
    require_trained_parts(captioner, recipe.train)
    use_cheap_layers(captioner.model)
    checkpoint_layers(captioner, recipe.train.gradient_checkpointing)
    return TrainableCaptioner(captioner, peft_model)
