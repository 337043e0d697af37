"""Tables with one judgment a row: Polaris, Nebula, LongCap-Arena, and whatever else has these columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.cells import captions_of_cell
from hfcap.data.source import NoSuchSplitError
from hfcap.data.sources.hub import HubOptions, open_splits
from hfcap.data.tables.reading import Row, TableForm, read_rows
from hfcap.data.web.hub_images import RowImage, undecoded
from hfcap.errors import UserError, shown
from hfcap.judgments.records import JudgedCaption, Judgments, Preference, Rating, tidy
from hfcap.schema import ImageBytes

CAPTION = ("candidate", "cand", "mt", "caption")
BETTER, WORSE, GROUP = ("better",), ("worse",), ("category", "group")
REFERENCES = ("references", "refs", "ref")
SCORE = ("human_score", "score", "rating", "human_rating")
IMAGE = ("image_id", "imgid", "file_name", "image_path", "image", "img")
"""Names of the columns, the surest first."""

KNOWN_BY_NAME = {"polaris": "polaris", "nebula": "nebula", "longcap": "longcap_arena", "composite": "composite"}
"""What stands in the name of a file or dataset -> the layout whose published values it is shown next to."""


def rows_of_file(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV, JSON, JSON-lines or parquet file."""
    return read_rows(path, TableForm(), "file of human judgments")


def rows_of_dataset(dataset: str, split: str | None, config_name: str | None) -> Iterator[Row]:
    """Yield the rows of one split of a dataset on the Hub or in a folder; without a name that of `test`.

    Raises:
        UserError: no such dataset or split.
        WorkError: the Hub cannot be reached.
    """
    options = HubOptions(dataset=dataset, config_name=config_name)
    splits = open_splits(options, streaming=False, remedy="check the spelling, --config-name and the network")
    name = split or ("test" if "test" in splits else next(iter(splits)) if len(splits) == 1 else "")
    if name not in splits:
        raise NoSuchSplitError(f"dataset {dataset}", name, splits, "--split chooses one")
    table = splits[name]
    of_images = [column for column, feature in table.features.items() if type(feature).__name__ == "Image"]
    images = {column: undecoded(table, column) for column in of_images}
    folder = Path(dataset).expanduser()
    texts = table.remove_columns(of_images)
    for number, cells in enumerate(texts):
        where = f"{dataset}, {name}, row {number}"
        found = {
            column: RowImage(images[column], column, number, where, folder if folder.is_dir() else None)
            for column in of_images
        }
        yield Row(where, {**cells, **found})


def read_table(rows: Iterable[Row], name: str, references: Mapping[str, Sequence[str]]) -> Judgments:
    """Read ratings (columns of candidate and score) or preferences (columns `better` and `worse`).

    Args:
        name: of the file or dataset.
        references: image id -> human captions, for tables without a column of them.

    Raises:
        UserError: a column is missing or a cell is of another kind; the message names the row.
    """
    captions: list[JudgedCaption] = []
    ratings: list[Rating] = []
    pairs: list[Preference] = []
    for row in rows:
        image, source, human = _image_and_references(row, references)
        if BETTER[0] in row.cells:
            for key in (*BETTER, *WORSE):
                captions.append(JudgedCaption(image, _text(_cell(row, (key,)), row, key), human, source))
            group = next((str(row.cells[key]) for key in GROUP if row.cells.get(key) is not None), "")
            pairs.append(Preference(len(captions) - 2, len(captions) - 1, group))
        else:
            captions.append(JudgedCaption(image, _text(_cell(row, CAPTION), row, "caption"), human, source))
            ratings.append(Rating(len(captions) - 1, _score(_cell(row, SCORE), row)))
    if not captions:
        raise UserError(f"{name}: no rows; give a file or dataset of human judgments")
    if ratings and pairs:
        raise UserError(f"{name}: some rows are ratings and others preferences; give a file of each")
    known = next((layout for part, layout in KNOWN_BY_NAME.items() if part in Path(name).name.lower()), "ratings")
    return Judgments("preferences" if pairs else known, tuple(captions), tuple(ratings), tuple(pairs))


def _cell(row: Row, names: tuple[str, ...]) -> Any:
    for name in names:
        if row.cells.get(name) is not None:
            return row.cells[name]
    raise UserError(
        f"{row.where}: no column {' or '.join(names)}; found {', '.join(map(str, row.cells))}; rename it, or give "
        "the file of judgments itself where the folder holds other files, too"
    )


def _text(cell: Any, row: Row, what: str) -> str:
    if not isinstance(cell, str):
        raise UserError(f"{row.where}: the {what} must be text, not {shown(cell)}")
    return tidy(cell)


def _score(cell: Any, row: Row) -> float:
    try:
        score = float(cell)
    except (TypeError, ValueError):
        score = math.nan
    if isinstance(cell, bool) or not math.isfinite(score):
        raise UserError(f"{row.where}: the score must be a number, not {shown(cell)}")
    return score


def _image_and_references(
    row: Row, references: Mapping[str, Sequence[str]]
) -> tuple[str, ImageBytes | None, tuple[str, ...]]:
    """Return what names the image, where its bytes are if the row holds them, and its human captions."""
    cells = [row.cells[name] for name in IMAGE if row.cells.get(name) is not None]
    named = next((str(cell) for cell in cells if isinstance(cell, str | int) and not isinstance(cell, bool)), None)
    source = next((cell for cell in cells if not isinstance(cell, str | int | float) and hasattr(cell, "read")), None)
    own = next((row.cells[name] for name in REFERENCES if row.cells.get(name) is not None), None)
    if own is not None:
        listed = own if isinstance(own, list) else captions_of_cell(str(own), row.where)
        human = tuple(_text(line, row, "references") for line in listed)
    else:
        human = tuple(map(tidy, references.get(named or "", ())))
    if not human:
        raise UserError(
            f"{row.where}: no human captions (column {' or '.join(REFERENCES)}), which the metrics compare with; add "
            "them, or give a file of them with --references"
        )
    # Polaris on the Hub has no ids: rows with the same references are of one image.
    return named or hashlib.sha256("\0".join(human).encode()).hexdigest()[:16], source, human
