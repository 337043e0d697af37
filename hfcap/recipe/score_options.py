"""The recipe's `score` block: which split is captioned and scored, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hfcap.places import FrequencyFile
from hfcap.recipe.block_base import Block, NonNegativeInt

FEWEST_PERMUTATIONS = 20
"""With fewer no p-value is below 0.05, so that no slice would ever be found."""


class ScoreOptions(Block):
    """Which split is captioned and scored, and how."""

    split: Literal["train", "validation", "test"] = Field("test", description="which split is captioned and scored")
    language: str | None = Field(
        None,
        description="ISO 639 code of the captions, which chooses how they are split into words; default: that of "
        "publish.language",
    )
    metrics: list[str] = Field(
        default_factory=lambda: ["bleu", "rouge_l", "cider"], description="names of metrics; see 'hfcap list metrics'"
    )
    document_frequencies: FrequencyFile = Field(
        "corpus",
        description="CIDEr-D: corpus (the references that are scored against), coco-train, coco-val, or a file",
    )
    metric_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="options of metrics by metric name, e.g. clip_score: {model: ...}; 'hfcap list metrics' names them",
    )
    confidence_level: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of the intervals")
    n_resamples: NonNegativeInt = Field(1000, description="bootstrap resamples for the intervals; 0 = no intervals")
    seed: NonNegativeInt = Field(0, description="of the bootstrap")
    by: list[str] = Field(
        default_factory=list,
        description="also score apart: group (of layouts that have groups: nocaps' domains), length, people, counts, "
        "colours, relations (of the human captions)",
    )
    find_slices: bool = Field(
        False,
        description="find words, colours, counts, ... of the human captions whose images score significantly worse "
        "than all others; they are on the card",
    )
    baselines: list[Literal["most_frequent_caption", "blank_images"]] = Field(
        default_factory=list, description="also score these, to show what the images contribute"
    )

    @model_validator(mode="after")
    def _permutations_for_slices(self) -> Self:
        if self.find_slices and self.n_resamples < FEWEST_PERMUTATIONS:
            raise ValueError(
                f"find_slices needs permutations: n_resamples must be at least {FEWEST_PERMUTATIONS}, not "
                f"{self.n_resamples}; the default is 1000"
            )
        return self
