"""Words: one meaning each, and plain ones (docs/style.md). `codespell` in scripts/test.sh checks their spelling."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "hfcap").rglob("*.py"))
WORD_LISTS = {"coco_objects.py", "ptb_rules.py", "bad_endings.py"}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

INSTEAD = {
    r"behind": "after (of time and order)",
    r"anew": "again, from scratch",
    r"beside": "next to, in addition to",
    r"so many": "that many, N",
    r"pictures?": "image",
    r"shall": "must, will, is to",
    r"aforesaid|hitherto|whilst|thereof|hereby": "this, so far, while",
}
"""What documentation does not say -> what it says instead."""

STILL_IN_MESSAGES = {"pictures?": 1}
"""How many texts of the package may still hold a word of INSTEAD: a caption that the quick start draws."""

_CODE = re.compile(r"^ *```.*?^ *```$|`[^`]+`|\]\([^)]*\)|<!--.*?-->", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r'"[^"\n]{1,60}"')


def prose(text: str) -> str:
    """Return Markdown without code, link targets, comments and short quotations, on the same lines."""
    for pattern in (_CODE, _QUOTED):
        text = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text


def wrong_words(text: str) -> list[str]:
    return [
        f"line {number}: {found[0]!r}, write {instead}"
        for number, line in enumerate(prose(text).splitlines(), 1)
        for pattern, instead in INSTEAD.items()
        if (found := re.search(rf"\b(?:{pattern})\b", line, re.IGNORECASE))
    ]


def messages(source: str) -> list[str]:
    """Return the texts in Python code that hold more than a word, without docstrings."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in docstrings]
    return [node.value for node in constants if isinstance(node.value, str) and " " in node.value]


def test_messages_get_plainer() -> None:
    assert messages('"""Doc string."""\nx = "word"\ny = f"{x} stands behind"\n') == [" stands behind"]
    texts = [text for path in PACKAGE if path.name not in WORD_LISTS for text in messages(path.read_text("utf-8"))]
    assert len(texts) > 1000
    words = {pattern: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for pattern in INSTEAD}
    found = {pattern: sum(bool(word.search(text)) for text in texts) for pattern, word in words.items()}
    assert {pattern: number for pattern, number in found.items() if number > STILL_IN_MESSAGES.get(pattern, 0)} == {}


def test_what_counts_as_prose() -> None:
    text = 'Stands\nbehind it.\n```\nbehind\n```\n`behind`, [x](behind.md), "right behind"\n'
    assert wrong_words(text) == ["line 2: 'behind', write after (of time and order)"]
    assert wrong_words("Besides, imagery and depictions shallow.") == []
    assert wrong_words("So many Pictures") == [
        "line 1: 'So many', write that many, N",
        "line 1: 'Pictures', write image",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documentation_uses_plain_words(page: Path) -> None:
    assert wrong_words(page.read_text(encoding="utf-8")) == []


def test_the_style_page_names_the_words() -> None:
    style = (ROOT / "docs/style.md").read_text(encoding="utf-8")
    told = re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^\| `.*", style, re.MULTILINE)))
    assert len(told) >= len(INSTEAD)
    assert [word for word in told if not any(re.search(rf"\b(?:{pattern})\b", word) for pattern in INSTEAD)] == []
