"""Text of a run (captions, file names, recipe values) made harmless for a Markdown page: the model card, a leaderboard.

The card's template prints nothing that has not passed through here: its environment escapes every value except `Safe`
ones.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKDOWN = frozenset("\\`*_[]#|~${}!")
# GitHub-flavoured Markdown turns these into links without any mark-up.
_BARE_LINKS = re.compile(r"(?i)(?<=://)|(?<=\bwww)(?=\.)|(?<=mailto)(?=:)|(?=@)")


class Safe(str):
    """Markdown that this package wrote itself or has already escaped."""

    __slots__ = ()


def one_line(text: str) -> str:
    """Replace line breaks and other white space by single spaces and drop invisible characters (also bidi marks)."""
    kept = (" " if character.isspace() else character for character in text)
    return " ".join("".join(c for c in kept if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")).split())


def escape(text: str) -> Safe:
    """Return `text` as one line of Markdown that shows exactly its characters: no mark-up, links, HTML or templates."""
    pieces = _BARE_LINKS.split(one_line(text))
    escaped = ["".join(_HTML.get(c) or (f"\\{c}" if c in _MARKDOWN else c) for c in piece) for piece in pieces]
    # An empty comment stops autolinking and is invisible.
    return Safe("<!-- -->".join(escaped))


def code(text: str, in_table: bool = True) -> Safe:
    """Return `text` as an inline code span, which by default also holds inside a table cell."""
    line = one_line(text) or " "
    if in_table:
        # Tables take a bar even inside code as the end of the cell, and a code span has no escapes: show a look-alike.
        line = line.replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Safe(f"{fence}{pad}{line}{pad}{fence}")


def code_block(text: str, language: str) -> Safe:
    """Return a fenced block; the fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Safe(f"{fence}{language}\n{text.strip()}\n{fence}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> Safe:
    """Return a table of cells that are already escaped; the last `right` columns are right-aligned."""
    left = len(header) - right
    lines = [header, ["---"] * left + ["---:"] * right, *rows]
    return Safe("\n".join("| " + " | ".join(line) + " |" for line in lines))


def finalize(value: Any) -> str:
    """Escape what the template prints, unless it is `Safe`."""
    return value if isinstance(value, Safe) else escape(str(value))
