"""Generated images of coloured shapes with five true captions each: nothing to download, any number of them."""

from __future__ import annotations

import hashlib
import random
from typing import Annotated, Literal

from pydantic import Field

from hfcap.data.scenes.captions import captions_of
from hfcap.data.scenes.layout import Scene, draw_scene
from hfcap.data.scenes.rendering import SceneImage
from hfcap.data.source import NoSuchSplitError, Source
from hfcap.recipe.block_base import NonNegativeInt
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage

_HELD_OUT_SHARE = {"validation": 0.1, "test": 0.1}
"""Share of all possible scene contents that only this split may show."""


class ScenesOptions(DataOptions):
    """Keys of `data` for source scenes."""

    source: Literal["scenes"] = Field("scenes", description="images drawn by hfcap, with captions")
    n_train: NonNegativeInt = Field(6000, description="training images")
    n_validation: NonNegativeInt = Field(300, description="validation images")
    n_test: NonNegativeInt = Field(500, description="test images")
    image_size: Annotated[int, Field(ge=32, le=1024)] = Field(96, description="side of the square images, pixels")
    seed: int = Field(0, description="another seed draws other images")

    def to_score_more(self, split: str) -> str:
        """Say which number to raise."""
        return f"raise data.n_{split}"


def load(options: ScenesOptions, split_name: str) -> list[CaptionedImage]:
    """Return the generated records of a split.

    What a validation or test image shows (objects, counts, colours, sizes and how they lie) is shown by no image of
    another split. Scene number i of a split doesn't depend on how many there are.

    Raises:
        NoSuchSplitError: not one of train, validation and test, or its number of images is 0.
    """
    counts = {"train": options.n_train, "validation": options.n_validation, "test": options.n_test}
    if not counts.get(split_name):
        existing = [name for name, count in counts.items() if count]
        raise NoSuchSplitError(
            "generated scenes", split_name, existing, "data.n_train, n_validation, n_test say how many"
        )
    return [_record(options, split_name, number) for number in range(counts[split_name])]


def _record(options: ScenesOptions, split: str, number: int) -> CaptionedImage:
    source = random.Random(f"{options.seed}/{split}/{number}")
    scene = draw_scene(source)
    while _owner(scene) != split:
        scene = draw_scene(source)
    name = f"{split}-{number:06d}"
    return CaptionedImage(name, f"{name}.png", captions_of(scene), SceneImage(scene, options.image_size, name))


def _owner(scene: Scene) -> str:
    digest = hashlib.sha256(scene.meaning().encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in _HELD_OUT_SHARE.items():
        if position < share:
            return split
        position -= share
    return "train"


REGISTERED = Source(
    options=ScenesOptions,
    load=load,
    description="generated images of coloured shapes; nothing to download",
    about="The images are drawn by hfcap, their captions come from a small grammar: coloured shapes and where they "
    "stand, no photographs and no people. A model trained on them knows nothing else.",
)
