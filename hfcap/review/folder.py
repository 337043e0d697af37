"""A folder under review: its images, their captions in sidecars, what is marked, and what a person makes of it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from hfcap.data.image_files import folder_images
from hfcap.data.marks import Mark, add_marks, append_lines, image_name, marks_of
from hfcap.data.sidecars import SIDECAR_KINDS, Sidecar, SidecarKind, read_sidecar_file, sidecar_of
from hfcap.errors import UserError
from hfcap.files import no_folder, write_bytes
from hfcap.text import has_controls

PAIRS_FILE = "edits.jsonl"


@dataclass(frozen=True, slots=True)
class Item:
    """One image as the page shows it.

    Attributes:
        name: relative to the folder.
        text: captions, one a line.
        version: changes with the sidecar's bytes; empty where there is none.
        problem: why the sidecar cannot be read; it is left alone then.
    """

    number: int
    name: str
    text: str
    version: str
    review: str
    accepted: bool
    problem: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the JSON object of this item."""
        return asdict(self)


class ChangedError(Exception):
    """A sidecar is not what the person saw when they edited it; somebody else wrote it."""


class ReviewFolder:
    """Reads and writes the captions of a folder's images; several threads may ask.

    Args:
        kind: form of the sidecars; None = of each image the one that is there, of the others the more frequent one.

    Raises:
        UserError: there is no such folder, no image in it, or two images share a sidecar.
    """

    def __init__(self, folder: Path, kind: SidecarKind | None = None) -> None:
        if not folder.is_dir():
            raise UserError(no_folder(folder, "folder", "give the folder of images and sidecars"))
        self.folder = folder
        found = folder_images(folder)
        self.images = found.found
        if not self.images:
            left_out = found.left_out()
            raise UserError(f"{folder}: no image there{f' ({left_out})' if left_out else ''}; give a folder of images")
        self.kind = kind or _more_frequent(self.images)
        self._given = kind is not None
        self._lock = threading.Lock()
        self._refuse_shared()

    def _refuse_shared(self) -> None:
        first: dict[Path, Path] = {}
        for image in self.images:
            other = first.setdefault(self._place(image), image)
            if other is not image:
                raise UserError(f"{image} and {other} share the sidecar {self._place(image).name}; rename one of them")

    def _place(self, image: Path) -> Path:
        there = [] if self._given else [kind for kind in SIDECAR_KINDS if sidecar_of(image, kind).is_file()]
        return sidecar_of(image, there[0] if len(there) == 1 else self.kind)

    def items(self) -> list[Item]:
        """Return all images, as their sidecars are now."""
        marks = {folder: marks_of(folder) for folder in dict.fromkeys(image.parent for image in self.images)}
        return [self._item(number, marks[image.parent]) for number, image in enumerate(self.images)]

    def item(self, number: int) -> Item:
        """Return one image, as its sidecar is now."""
        return self._item(number, marks_of(self.images[number].parent))

    def _item(self, number: int, marks: dict[str, Mark]) -> Item:
        image = self.images[number]
        name = os.fsencode(image.relative_to(self.folder).as_posix()).decode("utf-8", "replace")
        mark = marks.get(image_name(image), Mark())
        try:
            sidecar = read_sidecar_file(self._place(image))
        except UserError as error:
            return Item(number, name, "", "", mark.review, mark.accepted, str(error))
        return Item(number, name, "\n".join(sidecar.captions), _version(sidecar), mark.review, mark.accepted)

    def save(self, number: int, text: str, version: str) -> Item:
        """Write what a person made of the captions of an image, and note that they accept them.

        A sidecar whose captions did not change keeps its bytes. What did is also added to `edits.jsonl` as a pair,
        `chosen` and `rejected`, where a caption took the place of another.

        Args:
            version: of the item that was edited.

        Raises:
            ChangedError: the sidecar is another one by now.
            UserError: the text holds control characters, or the sidecar cannot be read.
        """
        captions = _captions(text)
        with self._lock:
            image = self.images[number]
            sidecar = read_sidecar_file(self._place(image))
            if _version(sidecar) != version:
                raise ChangedError
            before, name = sidecar.captions, self.item(number).name
            if captions != before:
                facts = {"review": None} if sidecar.path.suffix == ".json" else {}
                write_bytes(sidecar.path, sidecar.with_captions(captions, facts))
                pairs = [{"file_name": name, "chosen": new, "rejected": old} for old, new in _edits(before, captions)]
                append_lines(self.folder / PAIRS_FILE, pairs)
            add_marks(image.parent, {image_name(image): Mark(accepted=bool(captions))})
            return self.item(number)


def _captions(text: str) -> tuple[str, ...]:
    captions = tuple(" ".join(line.split()) for line in text.splitlines())
    if wrong := next(filter(has_controls, captions), None):
        raise UserError(f"the caption {wrong!r} holds control characters; delete them")
    return tuple(filter(None, captions))


def _edits(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each caption that took the place of another one; captions that came or went are no preference."""
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "replace":
            yield from zip(before[i:j], after[k:m], strict=False)


def _version(sidecar: Sidecar) -> str:
    return "" if sidecar.content is None else hashlib.sha256(sidecar.content).hexdigest()[:16]


def _more_frequent(images: Sequence[Path]) -> SidecarKind:
    return max(SIDECAR_KINDS, key=lambda kind: sum(sidecar_of(image, kind).is_file() for image in images))
