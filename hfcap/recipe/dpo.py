"""The recipe's `dpo` block: training on pairs of captions, of which a person preferred one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hfcap.places import LocalPath
from hfcap.recipe.block_base import Block


class DpoOptions(Block):
    """Direct preference optimisation (Rafailov et al. 2023): preferred captions become likelier than rejected ones.

    It continues from the captioner in `model.pretrained`, which is also what it is held against.
    """

    pairs: LocalPath = Field(
        description="JSON lines with file_name, chosen and rejected, such as edits.jsonl of hfcap review"
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="how strongly it is held to the captioner started from; smaller moves further away"
    )
    dropout: bool = Field(False, description="dropout in the update; the captioner started from never has any")
