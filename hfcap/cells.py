"""Tables of captions as other programs write them: separators, lists written as text, empty cells, joined lines."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from hfcap.errors import UserError, shown
from hfcap.files import read_text

_EMPTY_CELLS = {"nan", "NaN", "None", "null", "NULL", "<NA>", "N/A", "#N/A"}
"""What programs write for a cell without content; no human caption is one of these words alone."""

_LIST_OF_SOMETHING = re.compile(r"\[\s*['\"{\[]")
_ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?:,|(?=['"\])]))""", re.DOTALL)
_SHOWN = 60


def stands_for_nothing(text: str) -> bool:
    """Whether a text is what programs write for a cell without content (`nan`, `None`)."""
    return text.strip() in _EMPTY_CELLS


def captions_of_cell(cell: str, where: str) -> list[str]:
    """Return the captions in a cell: those of a list that was written as text (pandas' `to_csv`), else the cell itself.

    Args:
        where: file and place, for the error.

    Raises:
        UserError: the cell stands for nothing, or is a list of something else than texts.
    """
    text = cell.strip()
    if text in _EMPTY_CELLS:
        raise UserError(
            f"{where}: the caption is {shown(text)}, as programs write an empty cell; leave it out or write a caption"
        )
    if text[:1] not in ("[", "("):
        return [cell]
    texts = texts_of_list(text)
    if texts is not None:
        return texts
    if _LIST_OF_SOMETHING.match(text):
        raise UserError(
            f"{where}: {_shortened(text)} looks like a list that was written as text, but is not a list of texts; "
            "write one caption a cell, or a JSON list of texts"
        )
    return [cell]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def texts_of_list(text: str) -> list[str] | None:
    """Return the texts of a list as JSON, Python or numpy write it; None where it is no such list."""
    brackets = text[:1] + text[-1:]
    if brackets not in ("[]", "()"):
        return None
    if brackets == "[]":
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            value = None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    texts, place = [], 1
    while item := _ITEM.match(text, place):
        literal = _literal(item[1])
        if literal is None:
            return None
        texts.append(literal)
        place = item.end()
    whole = not text[place:-1].strip()
    # In brackets a person may quote; a tuple has several items.
    return texts if whole and texts and (brackets == "[]" or len(texts) > 1) else None


def _literal(quoted: str) -> str | None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            value = ast.literal_eval(quoted.replace("\n", "\\n"))
    except (ValueError, SyntaxError):
        return None
    assert isinstance(value, str)
    return value


class JoinedLines:
    """Finds tables whose cells hold several captions, one a line: a single such cell may be a wrapped sentence."""

    def __init__(self) -> None:
        self.cells = 0
        self.of_lines: list[str] = []

    def add(self, cell: str) -> None:
        """Look at a cell as it stands in the table."""
        self.cells += 1
        has_ends = "\n" in cell or "\r" in cell  # nearly none has, and to look is quick
        if has_ends and len([line for line in re.split(r"[\r\n]+", cell) if line.strip()]) > 1:
            self.of_lines.append(cell)

    def refuse(self, where: str, remedy: str = "") -> None:
        """Refuse a table that has several lines in at least half of its captions.

        Args:
            remedy: what else helps where this table is read.

        Raises:
            UserError: says how many, and shows one.
        """
        if self.of_lines and 2 * len(self.of_lines) >= self.cells:
            raise UserError(
                f"{where}: {len(self.of_lines):,} of {self.cells:,} captions have several lines, for example "
                f"{_shortened(self.of_lines[0])}; where each line is a caption, give a list of texts, else put one "
                f"space for the line ends{remedy}"
            )


def csv_rows(
    path: Path, what: str, delimiter: str = "", columns: Sequence[str] = (), quoted: bool = True
) -> Iterator[tuple[int, dict[str | None, str | list[str] | None]]]:
    """Yield (line number, cells by column) of a CSV file; cells too many are under None.

    The header tells the separator: semicolons (spreadsheets in much of Europe), tabs and bars do as well as commas. A
    first line `sep=;` is what Excel understands, and no row.

    Args:
        what: names the kind of file in the error.
        delimiter: between cells; empty = as the header tells.
        columns: names of the columns of a file that has no header.
        quoted: a quotation mark at the beginning of a cell encloses it; otherwise it is a character like others.

    Raises:
        UserError: it is no text, or a quotation mark is not closed.
    """
    text = read_text(path, what)
    skipped = 0
    first, _, rest = text.partition("\n")
    if first.strip().strip('"').lower().startswith("sep=") and len(first.strip().strip('"')) <= len("sep=;"):
        text, skipped = rest, 1
        first = rest.partition("\n")[0]
    separator = delimiter or max(",;\t|", key=first.count)
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        fieldnames=columns or None,
        delimiter=separator,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    begins = (1 if columns else 2) + skipped
    try:
        for row in reader:
            yield reader.line_num + skipped, row
            begins = reader.line_num + skipped + 1
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise UserError(
                f'{path}: line {begins}: a quotation mark (") is opened and never closed; close it, or write '
                "two of them for one in the text"
            ) from None
        raise UserError(
            f"{path}: line {reader.line_num + skipped} is not valid CSV ({error}); save the table again"
        ) from None
