"""Show what a search found: a table on screen, CSV, JSON lines, or a page with small images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hfcap.data.images import UnreadableImageError
from hfcap.errors import UserError
from hfcap.files import write_json_lines, write_text
from hfcap.pages import render_page, thumbnail
from hfcap.search.finding import Hit
from hfcap.text import inert, printable

OUTPUT_SUFFIXES = (".csv", ".jsonl", ".html")


def hit_table(hits: Sequence[Hit], query: str) -> Table:
    """Return the table for the terminal."""
    table = Table(title=Text(printable(f"Images of {query!r}")))
    table.add_column("", justify="right")
    for name in ("score", *_kinds(hits)):
        table.add_column(name, justify="right")
    table.add_column("image", overflow="fold")
    table.add_column("caption", overflow="fold")
    for rank, hit in enumerate(hits, start=1):
        numbers = [f"{hit.score:.3f}", *(f"{value:.3f}" for value in _values(hit, hits))]
        # Text, not str: file names and captions may contain rich's markup.
        table.add_row(str(rank), *numbers, Text(printable(hit.record.file_name)), Text(printable(hit.caption)))
    return table


def write_hits(hits: Sequence[Hit], query: str, path: Path) -> None:
    """Write what was found as .csv, .jsonl or .html (with small copies of the images inside the file).

    Raises:
        UserError: the file name has another ending.
    """
    suffix = path.suffix.lower()
    if suffix not in OUTPUT_SUFFIXES:
        raise UserError(f"{path}: give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    if suffix == ".html":
        write_text(path, _page(hits, query))
        return
    rows = [
        {
            "rank": rank,
            "score": hit.score,
            "cosine": hit.cosine,
            "words": hit.words,
            "image_id": hit.record.image_id,
            "file_name": hit.record.file_name,
            "caption": hit.caption,
        }
        for rank, hit in enumerate(hits, start=1)
    ]
    if suffix == ".jsonl":
        write_json_lines(path, rows)
        return
    text = io.StringIO()
    names = ["rank", "score", "cosine", "words", "image_id", "file_name", "caption"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: inert(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _kinds(hits: Sequence[Hit]) -> list[str]:
    both = bool(hits) and hits[0].cosine is not None and hits[0].words is not None
    return ["cosine", "words"] if both else []


def _values(hit: Hit, hits: Sequence[Hit]) -> list[float]:
    return [value for value in (hit.cosine, hit.words) if value is not None] if _kinds(hits) else []


def _page(hits: Sequence[Hit], query: str) -> str:
    return render_page("search/hits.html.jinja", title=f"Images of {query!r}", hits=[_shown(hit) for hit in hits])


def _shown(hit: Hit) -> dict[str, Any]:
    try:
        image = thumbnail(hit.record.image)
    except UnreadableImageError:
        image = ""
    return {"image": image, "caption": hit.caption, "name": hit.record.file_name, "score": hit.score}
