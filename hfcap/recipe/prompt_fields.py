"""Prompts with fields: `Describe this {name}.` asks of every image with what its own table says under `name`.

The grammar is that of `str.format` with bare names alone, so that `{{` is a brace; nothing of Python is looked into.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from string import Formatter
from typing import Any

from hfcap.errors import UserError
from hfcap.registry import nearest
from hfcap.text import printable

MOST_CHARACTERS = 300
"""Longer values are cut: a cell may hold a whole article."""

_NO_NAME = re.compile(r"[.\[\]!:{}]")
_SHOWN_COLUMNS = 20
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn around what is shown after them."""


@lru_cache(maxsize=64)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """Take a prompt apart into literal texts, each with the field after it.

    Raises:
        UserError: a brace stands alone, or something else than a column's name between two.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"prompt {template!r}: {str(error).lower()}; write {{{{ and }}}} for braces that are text"
        ) from None
    for _, field, form, conversion in parsed:
        if field is not None and (form or conversion or not field.strip() or _NO_NAME.search(field)):
            written = "{" + field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
            raise UserError(
                f"prompt {template!r}: {written} names no column; a field is the name of one and nothing else, such as "
                "{name}; write {{ and }} for braces that are text"
            )
    return tuple((text, None if field is None else field.strip()) for text, field, _, _ in parsed)


def fields_of(template: str) -> tuple[str, ...]:
    """Return the fields of a prompt, each once.

    Raises:
        UserError: braces that are no field.
    """
    return tuple(dict.fromkeys(field for _, field in _pieces(template) if field is not None))


def with_stand_ins(template: str) -> str:
    """Return a prompt with the names of its fields in their places, and its double braces as single ones."""
    return "".join(text + (field or "") for text, field in _pieces(template))


def as_template(text: str) -> str:
    """Return the prompt that asks for a text as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def filled(template: str, columns: Mapping[str, str], image: str, special: Iterable[str] = ()) -> str:
    """Return the prompt of one image.

    Values are strangers' text: without control characters and line ends, of at most MOST_CHARACTERS.

    Args:
        columns: column -> value of this image.
        image: its name, for the error.
        special: texts that a tokenizer takes for more than text, which values must not hold.

    Raises:
        UserError: the image has no value for a field.
    """
    if lacking := [field for field in fields_of(template) if not harmless(columns.get(field, ""), special)]:
        known = ", ".join(printable(name) for name in list(columns)[:_SHOWN_COLUMNS]) or "none"
        close = nearest(lacking[0], [name for name in columns if name != lacking[0]])
        meant = f", did you mean {close}?" if close else ""
        raise UserError(
            f"prompt {template!r}: {printable(image)} has no value for {{{lacking[0]}}}{meant} (columns with one: "
            f"{known}); add it to the image's table, or change the prompt"
        )
    values = {field: harmless(columns[field], special) for field in fields_of(template)}
    return "".join(text + ("" if field is None else values[field]) for text, field in _pieces(template))


def harmless(value: str, special: Iterable[str] = ()) -> str:
    """Return a value as it may stand in a prompt; empty where nothing is left."""
    return " ".join(without_marks(value, special).split())[:MOST_CHARACTERS].rstrip()


def without_marks(text: str, special: Iterable[str] = ()) -> str:
    """Return a stranger's prompt without control characters but line ends, and without a tokenizer's special tokens."""
    for mark in special:
        text = text.replace(mark, " ")
    harm = (one != "\n" and (unicodedata.category(one) == "Cc" or one in _DIRECTIONS) for one in text)
    return "".join(" " if bad else one for one, bad in zip(text, harm, strict=True)).strip()


def value_text(value: Any) -> str | None:
    """Return what a cell holds as text: a text, a number, or a list of texts, joined by commas; None of other cells."""
    if isinstance(value, str):
        return value[: 2 * MOST_CHARACTERS] if value.strip() else None
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value[:MOST_CHARACTERS])[: 2 * MOST_CHARACTERS]
    return None


def values_of(cells: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, str]:
    """Return the columns of a row that a prompt may name, with their texts.

    Args:
        without: columns that are left out, such as captions, which a prompt must not give away; or places in them.
    """
    hidden = {place for named in without for place in (named, named.partition(".")[0].partition("[")[0])}
    texts = ((str(name), value_text(cell)) for name, cell in cells.items() if name not in hidden)
    return {name: text for name, text in texts if text is not None}
