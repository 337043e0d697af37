"""Captions of many images on the demo's page, and the files to download (copied into Spaces)."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hfcap.app.page_models import PageModel, Settings, finished, one_model, open_image
from hfcap.text import inert, printable


@dataclass(frozen=True)
class BatchRow:
    """One image: its caption, or what is wrong with it."""

    file_name: str
    caption: str = ""
    score: float | None = None
    problem: str = ""


def caption_files(model: PageModel, paths: Sequence[str], settings: Settings) -> Iterator[BatchRow]:
    """Yield the caption of each file; one that cannot be read does not end it.

    Raises:
        ValueError: the settings contradict one another.
    """
    for name, path in zip(unique_names(paths), paths, strict=True):
        try:
            image = open_image(path)
        except ValueError as error:
            yield BatchRow(name, problem=str(error))
            continue
        text, score = finished(one_model(model, image, settings)).captions[0]
        yield BatchRow(name, text, score)


def unique_names(paths: Sequence[str]) -> list[str]:
    """Return the files' names without folders; those that came before get a number: a.jpg, a (2).jpg."""
    found: dict[str, None] = {}
    for path in paths:
        name = printable(PurePosixPath(path.replace("\\", "/")).name)
        stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
        number, wanted = 1, name
        while wanted in found:
            number += 1
            wanted = f"{stem} ({number}){suffix}"
        found[wanted] = None
    return list(found)


def table_of(rows: Sequence[BatchRow]) -> str:
    """Return the captions as CSV, as `hfcap caption -o captions.csv` writes it; a spreadsheet runs none of it."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file_name", "caption", "score", "problem"])
    for row in rows:
        score = "" if row.score is None else f"{row.score:.4f}"
        table.writerow([inert(row.file_name), inert(row.caption), score, row.problem])
    return text.getvalue()


def sidecars_of(rows: Sequence[BatchRow]) -> bytes:
    """Return a ZIP archive with a text file for each caption: 001.txt for 001.png.

    Images that differ only in their ending keep it: 001.png.txt.
    """
    stems = [PurePosixPath(row.file_name).stem for row in rows]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for row, stem in zip(rows, stems, strict=True):
            if not row.problem:
                name = row.file_name if stems.count(stem) > 1 else stem
                archive.writestr(f"{name}.txt", f"{row.caption}\n")
    return content.getvalue()


def write_downloads(rows: Sequence[BatchRow], folder: Path) -> tuple[str, str]:
    """Write both into `folder`; returns the paths of captions.csv and sidecars.zip."""
    table, sidecars = folder / "captions.csv", folder / "sidecars.zip"
    table.write_text(table_of(rows), encoding="utf-8")
    sidecars.write_bytes(sidecars_of(rows))
    return str(table), str(sidecars)
