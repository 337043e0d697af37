"""The recipe's `scst` block: self-critical training and what it rewards."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hfcap.places import FrequencyFile, Location
from hfcap.recipe.block_base import Block, NonNegativeFloat, PositiveInt, Share


class RewardOptions(Block):
    """What self-critical training rewards: a weighted sum over these values of each sampled caption."""

    cider: NonNegativeFloat = Field(1.0, description="CIDEr-D (1.28, not 128)")
    bleu_4: NonNegativeFloat = Field(0.0, description="BLEU-4 of the caption alone (0.38, not 38)")
    length: NonNegativeFloat = Field(
        0.0, description="weight of the length penalty |words - mean| / mean, of the human captions' words; subtracted"
    )
    clip_score: NonNegativeFloat = Field(0.0, description="CLIPScore (0.75) of the model in clip_model")
    clip_model: Location = Field("openai/clip-vit-base-patch32", description="Hub id or folder, for clip_score")

    @model_validator(mode="after")
    def _something_rewarded(self) -> Self:
        if not (self.cider or self.bleu_4 or self.clip_score):
            raise ValueError("rewards nothing; give cider, bleu_4 or clip_score a weight above 0")
        return self


class ScstOptions(Block):
    """Self-critical training: captions are sampled, and those that score above the baseline become more likely.

    It continues from the captioner in `model.pretrained`, one that was trained with cross-entropy.
    """

    baseline: Literal["leave_one_out", "greedy"] = Field(
        "leave_one_out",
        description="what a sample has to beat: the mean of the image's other samples (Luo 2020), or the greedy "
        "caption (Rennie et al. 2017)",
    )
    num_samples: PositiveInt = Field(5, description="sampled captions per image; at most generate.max_new_tokens long")
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="of the distribution that is sampled and trained; below 1 after label smoothing"
    )
    dropout: bool = Field(
        False, description="dropout in the update; off, what is made more likely is exactly what was sampled"
    )
    reward: RewardOptions = Field(default_factory=RewardOptions, description="what a caption is rewarded for")
    document_frequencies: FrequencyFile = Field(
        "corpus", description="CIDEr-D: corpus (the training split), coco-train, coco-val, or a file"
    )
    end_token: bool = Field(
        True,
        description="the end token is a word of every caption inside the reward; false invites unfinished captions",
    )
    kl_weight: NonNegativeFloat = Field(0.0, description="weight of the divergence from the captioner started from")
    max_bad_endings: Share = Field(
        0.25, description="training stops when a larger share of the captions ends in the middle of a phrase"
    )

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.baseline == "leave_one_out" and self.num_samples < 2:
            raise ValueError("baseline: leave_one_out compares samples with one another; set num_samples to 2 or more")
        return self
