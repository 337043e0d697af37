"""Text of strangers, made harmless where it is shown (terminals, spreadsheets, pages), and sizes in bytes."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath


def printable(text: str, kept: str = "") -> str:
    """Replace what is no text: control characters in a file name would command the terminal.

    Args:
        kept: characters that stay although they are no text, such as line feeds.
    """
    return "".join(one if one.isprintable() or one in kept else "\N{REPLACEMENT CHARACTER}" for one in text)


def has_controls(text: str) -> bool:
    """Whether a text holds control characters, line ends and tabs included; invisible letters of scripts are none."""
    return any(unicodedata.category(one) == "Cc" for one in text)


def gigabytes(size: float) -> str:
    """Return a size for people: 3.2 GB, 14 MB."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6)):
        if size >= amount:
            return f"{size / amount:.3g} {unit}" if size < 1000 * amount else f"{size / amount:,.0f} {unit}"
    return f"{size / 1e3:.3g} kB"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 image, 2,345 images."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def inert(text: str) -> str:
    """Mark text that a spreadsheet would run, because it starts like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def is_absolute(file_name: str) -> bool:
    """Whether a file name begins at a root, or with the letter of a drive."""
    return file_name.startswith("/") or re.match(r"[A-Za-z]:", file_name) is not None


def file_name_problem(file_name: str) -> str | None:
    """Return what is wrong with a file name that must stay inside a folder; None where nothing is."""
    if not file_name or not PurePosixPath(file_name).parts:
        return "is empty"
    if "\0" in file_name:
        return "contains a NUL character"
    if "\\" in file_name:
        return "contains a backslash; write forward slashes"
    if is_absolute(file_name):
        return "is absolute; write it relative to the image folder"
    if ".." in PurePosixPath(file_name).parts:
        return "contains '..'; write it relative to the image folder"
    try:
        encoded = file_name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    too_long = len(encoded) > 4000 or max(map(len, encoded.split(b"/"))) > 255
    return "is longer than file systems allow (255 bytes)" if too_long else None
