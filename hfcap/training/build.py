"""From a recipe to a captioner that is ready to train: built, frozen, adapted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed

from hfcap import registry
from hfcap.captioners.base import Captioner
from hfcap.captioners.lora import add_lora
from hfcap.errors import UserError
from hfcap.recipe import Recipe
from hfcap.schema import CaptionedImage
from hfcap.training.optimization import freeze_parts


@dataclass
class TrainableCaptioner:
    """A captioner and, for LoRA, the PEFT wrapper that saves its adapter."""

    captioner: Captioner
    peft_model: Any | None


def build_captioner(recipe: Recipe, train_records: Sequence[CaptionedImage]) -> Captioner:
    """Build the recipe's captioner with seeded random weights where it has no pretrained ones."""
    set_seed(recipe.train.seed)
    family: type[Captioner] = registry.load("captioners", recipe.captioner).REGISTERED
    captions = (caption for record in train_records for caption in record.captions)
    return family.build(recipe.model, captions)


def make_trainable(captioner: Captioner, recipe: Recipe) -> TrainableCaptioner:
    """Add LoRA or freeze parts, and switch on gradient checkpointing, as the recipe says.

    Raises:
        UserError: nothing is left to train, or the model cannot do gradient checkpointing.
    """
    peft_model = None
    if recipe.lora is not None:
        peft_model = add_lora(captioner, recipe.lora)
    freeze_parts(captioner, recipe.train)
    if recipe.train.gradient_checkpointing:
        try:
            captioner.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"train.gradient_checkpointing: {error}; set it to false") from error
    return TrainableCaptioner(captioner, peft_model)
