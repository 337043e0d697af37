"""Captions as a table on screen, or as a file in the form that its name asks for."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hfcap.captioning.shards import SHARD_SUFFIX, check_shards, write_shards
from hfcap.data.web.image_stream import ImageStream
from hfcap.errors import UserError
from hfcap.files import write_bytes, write_json, write_json_lines, write_text
from hfcap.schema import Prediction
from hfcap.text import inert, printable


def check_output(path: Path) -> None:
    """Check before any work that captions can be written in the form that a name asks for.

    Raises:
        UserError: names the endings that there are.
    """
    if path.suffix.lower() == SHARD_SUFFIX:
        check_shards(path)
    elif path.suffix.lower() not in OUTPUT_FORMS:
        raise UserError(f"{path}: give a name that ends in {', '.join([*OUTPUT_FORMS, SHARD_SUFFIX])}")


def write_captions(predictions: Sequence[Prediction], path: Path, images: ImageStream) -> None:
    """Write the captions in the form that the name's ending asks for (see `OUTPUT_FORMS`; .tar: with the images).

    Tables have a row per image: file_name, caption, score, where captions were examined `review`, and where images have
    several captions the others in caption_2, caption_3 and so on.
    """
    if path.suffix.lower() == SHARD_SUFFIX:
        write_shards(images.open(0, None), predictions, path)
    else:
        OUTPUT_FORMS[path.suffix.lower()](predictions, path)


def caption_table(predictions: Sequence[Prediction]) -> Table:
    """Return a table for the screen."""
    examined = any(prediction.review is not None for prediction in predictions)
    table = Table("image", "caption", *(["review"] if examined else []))
    for prediction in predictions:
        # Text, not str: file names and captions may contain rich's markup.
        cells = [printable(prediction.file_name), "\n".join(map(printable, prediction.candidates))]
        table.add_row(*map(Text, [*cells, *([prediction.review or ""] if examined else [])]))
    return table


def _rows(predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """Yield rows that all have the same columns."""
    most = max((len(prediction.candidates) for prediction in predictions), default=1)
    examined = any(prediction.review is not None for prediction in predictions)
    for prediction in predictions:
        row = {"file_name": prediction.file_name, "caption": prediction.caption, "score": prediction.score}
        if examined:
            row |= {"review": prediction.review or ""}
            row |= {} if prediction.clip_score is None else {"clip_score": prediction.clip_score}
        # The first candidate is the caption.
        others = [*prediction.candidates[1:], *[""] * (most - max(1, len(prediction.candidates)))]
        yield row | {f"caption_{rank}": other for rank, other in enumerate(others, start=2)}


def _spreadsheet(predictions: Sequence[Prediction], path: Path, **dialect: Any) -> None:
    text = io.StringIO()
    rows = list(_rows(predictions))
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n", **dialect)
    writer.writeheader()
    writer.writerows(
        {name: inert(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows
    )
    write_text(path, text.getvalue())


def _tab_separated(predictions: Sequence[Prediction], path: Path) -> None:
    _spreadsheet(predictions, path, delimiter="\t")


def _lines(predictions: Sequence[Prediction], path: Path) -> None:
    write_text(path, "".join(f"{prediction.caption}\n" for prediction in predictions))


def _json(predictions: Sequence[Prediction], path: Path) -> None:
    write_json(path, [prediction.as_row() for prediction in predictions])


def _json_lines(predictions: Sequence[Prediction], path: Path) -> None:
    write_json_lines(path, (prediction.as_row() for prediction in predictions))


def _parquet(predictions: Sequence[Prediction], path: Path) -> None:
    examined = any(prediction.review is not None for prediction in predictions)
    more = [*(["review"] if examined else []), *(["cut"] if any(one.cut for one in predictions) else [])]
    more += ["clip_score"] if any(one.clip_score is not None for one in predictions) else []
    write_bytes(path, parquet_of([{"cut": False} | prediction.as_row() for prediction in predictions], more))


def parquet_of(rows: Sequence[Mapping[str, Any]], more: Sequence[str]) -> bytes:
    """Return rows of predictions as a parquet file.

    Args:
        more: columns besides those that every prediction has: review, cut, clip_score, problem, ...
    """
    import pyarrow as pa  # comes with datasets
    import pyarrow.parquet as pq

    columns = [("image_id", pa.string()), ("file_name", pa.string()), ("caption", pa.string())]
    columns += [("score", pa.float64()), ("candidates", pa.list_(pa.string()))]
    types = {"cut": pa.bool_(), "clip_score": pa.float64()}
    columns += [(name, types.get(name, pa.string())) for name in more]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=pa.schema(columns)), buffer)
    return buffer.getvalue()


OUTPUT_FORMS: Mapping[str, Callable[[Sequence[Prediction], Path], None]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _spreadsheet,
    ".tsv": _tab_separated,
    ".txt": _lines,
    ".parquet": _parquet,
}
"""Ending of a file's name -> what writes captions into it, completely or not at all."""
