"""Composite: ratings of captions for Flickr8k, Flickr30k and COCO by Mechanical Turk (Aditya et al. 2018)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hfcap.cells import csv_rows
from hfcap.errors import UserError
from hfcap.judgments.records import JudgedCaption, Judgments, Rating, tidy
from hfcap.metrics.shared.image_ids import matched_ids

FILES = "*_correctness.csv"
_TEXT = re.compile(r"Input\.text(\d+)")


def read_composite(folder: Path, references: Mapping[str, Sequence[str]]) -> Judgments:
    """Read `8k_correctness.csv`, `30k_correctness.csv` and `coco_correctness.csv`, as many as there are.

    A candidate that is a human caption of its image is no reference of itself.

    Args:
        references: image id or file name -> human captions of the three datasets.

    Raises:
        UserError: a column is missing, or an image has no references.
    """
    if not references:
        raise UserError(f"{folder}: the layout composite holds no human captions; give them with --references")
    rows: list[tuple[str, str, str, float]] = []
    skipped = 0
    for path in sorted(folder.glob(FILES)):
        for line, cells in csv_rows(path, "file of human judgments", ";"):
            where = f"{path}: line {line}"
            if "Input.image_url" not in cells:
                raise UserError(f"{where}: no column Input.image_url; give the file as its authors publish it")
            image = str(cells["Input.image_url"] or "").rpartition("/")[2].strip()
            found = [(match[1], cell) for name, cell in cells.items() if name and (match := _TEXT.fullmatch(name))]
            for number, text in found:
                score = str(cells.get(f"Answer.Q{number}Answer") or "").strip()
                if image and text and score.replace(".", "", 1).isdigit():
                    rows.append((where, image, tidy(str(text)), float(score)))
                else:
                    skipped += 1
    if not rows:
        raise UserError(f"{folder}: no rated caption in {FILES}; give the files as their authors publish them")
    meant = matched_ids(dict.fromkeys(image for _, image, _, _ in rows), references)
    captions: list[JudgedCaption] = []
    for where, image, text, _ in rows:
        key = image if image in references else meant.get(image)
        if key is None:
            raise UserError(f"{where}: image {image!r} has no human captions in the files of --references; add them")
        human = tuple(one for one in map(tidy, references[key]) if one != text)
        captions.append(JudgedCaption(image, text, human))
    ratings = tuple(Rating(number, score) for number, (_, _, _, score) in enumerate(rows))
    notes = (f"{skipped:,} cells without a caption or a rating are left out",) if skipped else ()
    return Judgments("composite", tuple(captions), ratings, notes=notes)
