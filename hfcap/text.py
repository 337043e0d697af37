"""Text that somebody else wrote, made harmless where it is shown: terminals, spreadsheets, pages."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace what is no text: control characters in a file name would command the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def inert(text: str) -> str:
    """Mark text that a spreadsheet would run, because it starts like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
