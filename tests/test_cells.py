"""Captions as cells of tables hold them."""

from __future__ import annotations

import pytest

from hfcap.cells import JoinedLines, captions_of_cell
from hfcap.errors import UserError


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("a dog", ["a dog"]),
        ("['a dog', 'b dog']", ["a dog", "b dog"]),
        ('["a dog", "b \\"dog\\" \\u00e9"]', ["a dog", 'b "dog" é']),
        ("['a dog\\'s ball', \"a man's hat\"]", ["a dog's ball", "a man's hat"]),
        ("['a dog'\n 'b dog']", ["a dog", "b dog"]),  # numpy's
        ("('a dog', 'b dog')", ["a dog", "b dog"]),
        ("['a dog',]", ["a dog"]),
        ("['a \\d dog']", ["a \\d dog"]),
        ("[]", []),
        # What only looks like it.
        ("('a dog')", ["('a dog')"]),
        ("[sic] a dog", ["[sic] a dog"]),
        ("nan bread", ["nan bread"]),
    ],
)
def test_lists_written_as_text(cell: str, captions: list[str]) -> None:
    assert captions_of_cell(cell, "here") == captions


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (" nan", "t.csv: line 2: the caption is 'nan', as programs write an empty cell"),
        ("None", "'None'"),
        ("['a dog', nan]", "looks like a list"),
        ("[{'raw': 'a dog'}]", "is not a list of texts; write one caption a cell"),
        ('["a dog", ', "looks like a list"),
    ],
)
def test_cells_that_hold_no_caption(cell: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        captions_of_cell(cell, "t.csv: line 2")


def test_captions_joined_by_line_feeds() -> None:
    joined = JoinedLines()
    for cell in ("a dog\na cat", "a wrapped\nsentence", "a bird\n"):
        joined.add(cell)
    with pytest.raises(UserError, match=r"t\.csv: 2 of 3 captions have several lines, for example 'a dog\\na cat'"):
        joined.refuse("t.csv")
    for _ in range(4):
        joined.add("a plain caption")
    joined.refuse("t.csv")  # 2 of 7: sentences that somebody wrapped
