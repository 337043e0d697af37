"""Rows and captions of a dataset counted, as far as that is cheap, for `hfcap data inspect`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hfcap.data.sources.hub import HubOptions, captions_of_row
from hfcap.data.web.hub_columns import Columns

MAX_ROWS_ON_DISK = 5_000
MAX_ROWS_OF_HUB = 200
"""Streamed rows bring their images along, whatever columns are wanted."""

_N_EXAMPLES = 3


@dataclass
class RowCounts:
    """What the rows of a split hold.

    Attributes:
        complete: the split has no more rows than were looked at.
        examples: id and captions of the first rows with captions.
    """

    rows: int = 0
    captions: int = 0
    without: int = 0
    complete: bool = True
    examples: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def count_rows(options: HubOptions, columns: Columns, split: str, rows: Any, at_most: int) -> RowCounts:
    """Count the captions of a split's first rows; rows without one are counted apart.

    Args:
        rows: a dataset of the `datasets` library, or one that it streams.

    Raises:
        UserError: a cell of captions holds something else.
    """
    counts = RowCounts()
    for number, row in enumerate(rows.select_columns(columns.of_text)):
        if number == at_most:
            counts.complete = False
            break
        where = f"dataset {options.dataset}, split {split}, row {number}"
        captions = tuple(filter(None, captions_of_row(options, columns, row, where)))
        counts.rows += 1
        counts.captions += len(captions)
        counts.without += not captions
        if captions and len(counts.examples) < _N_EXAMPLES:
            image_id = f"{split}-{number}" if columns.image_id is None else str(row[columns.image_id])
            counts.examples.append((image_id, captions))
    return counts
