"""Writes the table of layouts in docs/data.md from the layouts that hfcap knows: python -m scripts.layouts_table."""

from __future__ import annotations

from pathlib import Path

from hfcap.data.tables.layouts import markdown_table
from hfcap.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- layouts: written by scripts/layouts_table.py -->", "<!-- end of layouts -->"


def with_table(page: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table()}\n{END}{after}"


if __name__ == "__main__":
    write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8")))
