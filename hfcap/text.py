"""Text that somebody else wrote, made harmless where it is shown: terminals, spreadsheets, pages."""

from __future__ import annotations


def printable(text: str, kept: str = "") -> str:
    """Replace what is no text: control characters in a file name would command the terminal.

    Args:
        kept: characters that stay although they are no text, such as line feeds.
    """
    return "".join(one if one.isprintable() or one in kept else "\N{REPLACEMENT CHARACTER}" for one in text)


def inert(text: str) -> str:
    """Mark text that a spreadsheet would run, because it starts like a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
