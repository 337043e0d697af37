"""Keys of `data` that say where in a table the images, captions and splits stand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hfcap.data.splits import SplitShares

CellValue = str | int | float | bool


class TableOptions(SplitShares):
    """Keys of every source that reads rows. Names of columns may be places in a cell, such as `sentences[].raw`."""

    image_column: str | None = Field(
        None, description="column of file names, addresses or images; default: found by type or name"
    )
    caption_columns: list[str] | None = Field(
        None, description="columns that hold captions; default: found by name, if unambiguous"
    )
    image_id_column: str | None = Field(
        None, description="rows with the same id are captions of one image; the id names it in predictions"
    )
    split_column: str | None = Field(
        None, description="column with each row's split; default: 'split', if there is one"
    )
    prompt_column: str | None = Field(
        None, description="column with the prompt that a caption answers; a caption that begins with it loses it"
    )
    own_prompts: bool = Field(
        False,
        description="instruction data: each caption is trained after the prompt that it answers in the data (turns of "
        "`messages` or `conversations`, or prompt_column); of scored images the first prompt is asked",
    )
    filter: dict[str, CellValue | list[CellValue]] = Field(
        default_factory=dict, description="only rows whose column has the value, or one of the values: {lang: en}"
    )
    caption_separator: str | None = Field(
        None,
        description='text between captions in one cell, such as "\\n"; "" = a cell of several lines is one caption',
    )
    group_by: Literal["auto", "content"] = Field(
        "auto",
        description="which rows are captions of one image: auto = those with the same id, or else file name or "
        "address; a warning names data most of whose images are copies of others. content = also those with the same "
        "bytes",
    )
    allow_local_addresses: bool = Field(
        False,
        description="fetch images from addresses in this machine's own network, which a stranger's table may name",
    )
