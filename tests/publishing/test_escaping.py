from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hfcap.card.machine_paths import portable
from hfcap.pages.markdown import code, code_block, escape, one_line

SPECIAL = st.text(
    alphabet=st.one_of(st.sampled_from("\\`*_[]()#|~${}!<>&:/@.-+=\n\t\"'w^"), st.characters()), max_size=60
)


@given(SPECIAL)
def test_escaped_text_shows_exactly_its_characters(text: str) -> None:
    tokens = (
        MarkdownIt("commonmark")
        .enable("table")
        .enable("strikethrough")
        .parse(f"| a | b |\n|---|---|\n| x {escape(text)} | y |")
    )
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    shown = "".join(child.content for child in cells[2].children or [] if child.content != "<!-- -->")
    assert shown.split() == ["x", *one_line(text).split()]
    kinds = {child.type for child in cells[2].children or [] if child.content != "<!-- -->"}
    assert kinds <= {"text", "text_special"}


@given(SPECIAL)
def test_code_shows_its_characters_and_stays_in_its_cell(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n|---|---|\n| {code(text)} | y |")
    cells = [token for token in tokens if token.type == "inline"]
    [span] = [child for child in cells[2].children or [] if child.type != "text" or child.content.strip()]
    assert span.type == "code_inline"
    assert span.content.strip() == one_line(text).replace("|", "¦")


@given(SPECIAL)
def test_a_code_block_ends_where_it_should(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"{code_block(text, 'sh')}\n\nafter")
    assert [token.type for token in tokens][:2] == ["fence", "paragraph_open"]


@pytest.mark.parametrize(
    ("given_path", "shown"),
    [
        ("/srv/someone/data/coco", "path/to/coco"),
        ("~/images", "path/to/images"),
        ("../shared/coco", "path/to/coco"),
        (r"C:\Users\me\coco", "path/to/coco"),
        ("file:///srv/x/y", "path/to/y"),
        ("Salesforce/blip", "Salesforce/blip"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("a dog and/or a cat", "a dog and/or a cat"),
        ("see /srv/me/run/log.txt now", "see path/to/log.txt now"),
    ],
)
def test_paths_of_this_machine_are_replaced(given_path: str, shown: str) -> None:
    assert portable({"key": [given_path]}) == {"key": [shown]}
