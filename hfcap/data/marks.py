"""Marks for review: a line of `review.jsonl` next to the images for every caption that was doubted or accepted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hfcap.errors import UserError
from hfcap.files import read_json_lines

MARKS_FILE = "review.jsonl"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known about a caption besides its words.

    Attributes:
        review: why a person should look at it; empty where nothing speaks against it.
        accepted: a person has looked at it as it is now.
    """

    review: str = ""
    accepted: bool = False


def image_name(path: Path) -> str:
    """Return the name that an image has in files: without folder, and writable where it is no UTF-8."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def marks_of(folder: Path) -> dict[str, Mark]:
    """Return image name -> mark, of the images in a folder but not in those below it; the last line of each counts.

    Raises:
        UserError: the file is damaged, or is not hfcap's.
    """
    path = folder / MARKS_FILE
    if not path.is_file():
        return {}
    marks: dict[str, Mark] = {}
    for number, row in read_json_lines(path, "marks for review"):
        name, reason = row.get("file_name"), row.get("review")
        if not isinstance(name, str) or not isinstance(reason, str):
            raise UserError(f"{path}: line {number} lacks file_name or review; delete the line")
        marks[name] = Mark(reason, row.get("accepted") is True)
    return marks


def add_marks(folder: Path, marks: Mapping[str, Mark]) -> None:
    """Note the marks that are new or others than before."""
    known = marks_of(folder)
    append_lines(
        folder / MARKS_FILE,
        [
            {"file_name": name, "review": mark.review, **({"accepted": True} if mark.accepted else {})}
            for name, mark in marks.items()
            if known.get(name, Mark()) != mark
        ],
    )


def append_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to a file of JSON lines in one piece; a line that a kill cut off is closed before."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not text:
        return
    with path.open("a+b") as handle:
        if handle.tell() > 0:
            handle.seek(-1, os.SEEK_END)
            text = text if handle.read(1) == b"\n" else "\n" + text
        handle.write(text.encode())
        handle.flush()
        os.fsync(handle.fileno())
