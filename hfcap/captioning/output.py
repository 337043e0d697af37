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
    """Write rows as in predictions/<split>.jsonl, or, under a name that ends in .csv, a table for spreadsheets."""
    if path.suffix.lower() == ".csv":
        write_text(path, _csv(predictions))
    else:
        write_json_lines(path, (prediction.as_row() for prediction in predictions))


def caption_table(predictions: Sequence[Prediction]) -> Table:
    """Return a table for the screen."""
    table = Table("picture", "caption")
    for prediction in predictions:
        # Text, not str: file names and captions may contain rich's markup.
        table.add_row(Text(printable(prediction.file_name)), Text("\n".join(map(printable, prediction.candidates))))
    return table


def _csv(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "caption", "score"])
    for prediction in predictions:
        writer.writerow([inert(prediction.file_name), inert(prediction.caption), prediction.score])
    return text.getvalue()
