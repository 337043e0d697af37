"""Captions as a table on screen, as JSON lines or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from hfcap.files import write_json_lines, write_text
from hfcap.schema import Prediction
from hfcap.text import inert, printable

OUTPUT_SUFFIXES = (".jsonl", ".csv")


def write_captions(predictions: Sequence[Prediction], path: Path) -> None:
    """Write rows as in predictions/<split>.jsonl, or, under a name that ends in .csv, a table for spreadsheets.

    The table has a row per image: file_name, caption, score, and where images have several captions the others in
    caption_2, caption_3 and so on.
    """
    if path.suffix.lower() == ".csv":
        write_text(path, _csv(predictions))
    else:
        write_json_lines(path, (prediction.as_row() for prediction in predictions))


def caption_table(predictions: Sequence[Prediction]) -> Table:
    """Return a table for the screen."""
    table = Table("image", "caption")
    for prediction in predictions:
        # Text, not str: file names and captions may contain rich's markup.
        table.add_row(Text(printable(prediction.file_name)), Text("\n".join(map(printable, prediction.candidates))))
    return table


def _csv(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    most = max((len(prediction.candidates) for prediction in predictions), default=1)
    writer.writerow(["file_name", "caption", "score", *(f"caption_{rank}" for rank in range(2, most + 1))])
    for prediction in predictions:
        # The first candidate is the caption. Rows are filled up, so that all have as many cells as the header.
        others = [*prediction.candidates[1:], *[""] * (most - max(1, len(prediction.candidates)))]
        writer.writerow(
            [*map(inert, (prediction.file_name, prediction.caption)), prediction.score, *map(inert, others)]
        )
    return text.getvalue()
