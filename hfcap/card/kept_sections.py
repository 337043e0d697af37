"""Hand-written sections of a card survive when the card is written again.

Each generated section carries `MARK` below its heading. A section without the mark is the user's: a new one stays
after the section it followed; one with the heading of a generated section replaces it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MARK = "<!-- written by hfcap; delete this line to keep your own version of this section -->"

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True, slots=True)
class Section:
    """Heading (empty for the part before the first second-level heading) and the text from the heading on."""

    heading: str
    text: str

    @property
    def is_generated(self) -> bool:
        """Whether hfcap wrote it and nobody claimed it."""
        return MARK in self.text


def split_front_matter(card: str) -> tuple[str, str]:
    """Return (YAML between the marks, rest); the YAML is empty where there is none."""
    match = _FRONT_MATTER.match(card)
    return (match.group(1), card[match.end() :]) if match else ("", card)


def split_sections(body: str) -> list[Section]:
    """Cut Markdown at its second-level headings; headings inside code blocks do not count."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    fence = ""
    for line in body.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark.group(1)
        elif mark and mark.group(1).startswith(fence) and not line.strip(" \r\n`~"):
            fence = ""
        if not fence and line.startswith("## "):
            parts.append((line[3:].strip(), []))
        parts[-1][1].append(line)
    return [Section(heading, "".join(lines)) for heading, lines in parts if lines]


def merge_sections(generated: str, existing: str) -> str:
    """Return the body `generated` with the user's own sections of the body `existing` kept in their places."""
    old = split_sections(existing)
    if not any(section.is_generated for section in old):
        # Nothing in it came from hfcap, e.g. the card that the Hub makes for a new repository.
        return generated
    new = split_sections(generated)
    own = {section.heading: section for section in old if not section.is_generated}
    merged = [own.get(section.heading, section) for section in new]
    before = ""
    for section in old:
        headings = [placed.heading for placed in merged]
        if section.heading in own and section.heading not in headings:
            place = headings.index(before) + 1 if before in headings else len(merged)
            merged.insert(place, section)
        before = section.heading
    return "\n\n".join(section.text.strip() for section in merged) + "\n"
