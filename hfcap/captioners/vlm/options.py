"""Keys of `model` of image-text-to-text models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hfcap.recipe.block_base import PositiveInt
from hfcap.recipe.blocks import ModelOptions


class ImageTextToTextOptions(ModelOptions):
    """Keys of `model`: `pretrained`, or `from_config` (GIT) to train from random weights."""

    from_config: dict[str, Any] | None = Field(
        None, description="GitConfig's keys with model_type: git, for training from scratch"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="number type of the loaded weights; bfloat16 halves the memory of frozen ones (LoRA)"
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None, description="QLoRA: frozen weights in 4 or 8 bits; needs lora, a GPU and the package bitsandbytes"
    )
    image_size: PositiveInt | None = Field(
        None,
        description="side of a square that all images are resized to; null = what the model's own processor does",
    )
    min_pixels: PositiveInt | None = Field(
        None, description="smaller images are enlarged to that many pixels, where the processor has such limits"
    )
    max_pixels: PositiveInt | None = Field(None, description="larger images are shrunk to that many pixels")

    freezing_keys: ClassVar[tuple[str, ...]] = ("quantization",)

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.pretrained is None) == (self.from_config is None):
            raise ValueError("give exactly one of pretrained and from_config")
        return self
