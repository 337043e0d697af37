"""Finding columns by their names in a table that nobody described, and the captions in a cell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from hfcap.cells import captions_of_cell
from hfcap.errors import UserError

_FILES = ("file_name", "filename", "image_file", "image_filename", "image_path", "img_path", "img_file", "image", "img")
_OTHER_FILES = ("file", "filepath", "file_path", "image_name", "img_name", "photo", "path")
ADDRESS_NAMES = ("image_url", "img_url", "url", "image_link", "image_address")
"""Columns of web addresses."""
_IDS = ("image_id", "img_id", "image_key", "id", "key")
IMAGE_NAMES = (*_FILES, *_OTHER_FILES, *ADDRESS_NAMES, *_IDS)
"""Columns that name an image, the surest first."""

CAPTION_NAME = re.compile(
    r"((re|gen_?|annotations?_|vlm_)?caption|sentence|description)s?(_?\d+|_raw|_text|_str)?|text|txt|answer|raw|alt(_?text)?",
    re.IGNORECASE,
)
TEXT_KEYS = ("raw", "caption", "text", "sentence")
"""Keys under which datasets of dictionaries, such as COCO's sentences, keep the caption."""
_SPLIT_NAMES = ("split", "set_name", "subset")


class UnfitColumnsError(UserError):
    """A table lacks the columns that are named or looked for, or has nothing in them."""


def look_at(place: str) -> str:
    """Return what to run to see what somebody's data hold."""
    return f"look at it with: hfcap data inspect {shlex.quote(place)}"


@contextmanager
def pointing_to_inspect(place: str) -> Iterator[None]:
    """Say in errors about columns how to see which there are; `inspect` itself reads without it.

    Args:
        place: the folder, file or dataset.

    Raises:
        UserError: instead of UnfitColumnsError.
    """
    try:
        yield
    except UnfitColumnsError as error:
        raise UserError(f"{error}; {look_at(place)}") from error


def plain(name: str) -> str:
    """Return a column's name in lower case, with `_` for what is no letter or digit."""
    return re.sub(r"\W+", "_", name.strip().lower())


def image_column(columns: Collection[str]) -> str | None:
    """Return the column that names or holds the image; None where none does."""
    by_plain = {plain(name): name for name in reversed(list(columns))}
    return next((by_plain[name] for name in IMAGE_NAMES if name in by_plain), None)


def split_column(columns: Collection[str]) -> str | None:
    """Return the column of splits; None where there is none."""
    by_plain = {plain(name): name for name in reversed(list(columns))}
    return next((by_plain[name] for name in _SPLIT_NAMES if name in by_plain), None)


def caption_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns of captions: `captions`, `caption`, numbered ones, or the only one with such a name.

    Empty where none has; several where they cannot be told apart.
    """
    return list(_caption_columns(tuple(columns)))


@lru_cache(maxsize=256)
def _caption_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    for wanted in ("captions", "caption"):
        if found := next((name for name in columns if plain(name) == wanted), None):
            return (found,)
    named = [name for name in columns if CAPTION_NAME.fullmatch(plain(name))]
    numbered = numbered_alike(named)
    if numbered:
        return tuple(numbered)
    return tuple(named) if len(named) < 2 else tuple(name for name in named if plain(name) == "text") or tuple(named)


def numbered_alike(names: list[str]) -> list[str]:
    """Return names that differ only in the number at their end, in its order; empty where others are among them."""
    numbered = [name for name in names if re.fullmatch(r".*?_?\d+", name)]
    stems = {re.sub(r"_?\d+$", "", name) for name in numbered}
    if len(stems) != 1:
        return []
    return sorted(numbered, key=lambda name: int(re.findall(r"\d+", name)[-1]))


def captions_in(value: Any, column: str, where: str, separator: str | None = None) -> list[str]:
    """Return the captions in one cell: a text, a list of texts, a dictionary with a text, or a list of those.

    Args:
        separator: text between captions in a text; None or empty = a text is one caption.

    Raises:
        UserError: the cell holds something else.
    """
    if isinstance(value, str):
        captions = captions_of_cell(value, f"{where}: {column}")
        if separator:
            return [part for caption in captions for part in caption.split(separator) if part.strip()]
        return captions
    if isinstance(value, list):
        return [caption for item in value for caption in captions_in(item, column, where, separator)]
    if isinstance(value, dict):
        for key in TEXT_KEYS:
            if key in value:
                return captions_in(value[key], column, where, separator)
    raise UserError(
        f"{where}: {column} holds {type(value).__name__}, not a caption; choose others with data.caption_columns"
    )
