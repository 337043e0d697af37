"""Captioners that learn nothing by gradients: they are fitted to the training data in one pass (indexes, ensembles)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from hfcap.captioners.base import Captioner
from hfcap.schema import CaptionedImage


@dataclass(frozen=True, slots=True)
class FittingData:
    """What `NonparametricCaptioner.fit` learns from.

    Attributes:
        records: the training images with their captions.
        image_states: batches of what `encode` says about the records, (B, S, D) each, in their order; None where the
            family does not look at training images (`fits_on_images`).
        batch_size: images or captions at a time.
        folder: where unfinished work is kept, so that a killed run continues; removed when the model is saved.
    """

    records: Sequence[CaptionedImage]
    image_states: Iterator[torch.Tensor] | None
    batch_size: int
    folder: Path


class NonparametricCaptioner(Captioner):
    """A captioner whose training is one call of `fit`; it has no loss, no trained weight and nothing for LoRA."""

    trains_by_gradients = False
    lora_target_modules = r"(?!)"
    keeps_features: ClassVar[bool] = True
    """Whether the feature store may keep what `encode` says (False where it is not an encoder's output)."""

    @property
    def fits_on_images(self) -> bool:
        """Whether `fit` looks at the training images, besides their captions."""
        return False

    def fitted_facts(self) -> dict[str, Any]:
        """Return what training_summary.json says beyond the usual, as JSON values; for the card."""
        return {}

    @abstractmethod
    def fit(self, data: FittingData) -> None:
        """Take in the training data; called in the main process alone.

        Raises:
            UserError: the data cannot be used, for example because no caption is left.
        """

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Not there: nothing that is shared asks a family without `trains_by_gradients` for logits."""
        raise AssertionError(f"{type(self).__name__} has no logits")
