"""Flickr8k-Expert and Flickr8k-CF: the text files of the dataset, or the JSON files that CLIPScore's authors made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.judgments.records import JudgedCaption, Judgments, Rating, tidy

CAPTIONS, EXPERT, CROWD = "Flickr8k.token.txt", "ExpertAnnotations.txt", "CrowdFlowerAnnotations.txt"


def _lines(path: Path, n_columns: int, what: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if line.strip():
            cells = [cell.strip() for cell in line.split("\t")]
            if len(cells) != n_columns:
                raise UserError(
                    f"{path}: line {number} has {len(cells)} columns; {what} must have {n_columns}, separated by tabs"
                )
            yield f"{path}: line {number}", cells


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is no number; correct it") from None


def _captions(folder: Path) -> dict[str, str]:
    """Return caption id (`image.jpg#2`) -> caption."""
    path = folder / CAPTIONS
    return {cells[0]: tidy(cells[1]) for _, cells in _lines(path, 2, "file of human captions")}


def _by_image(captions: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, caption in captions.items():
        found.setdefault(key.partition("#")[0].partition(".")[0], []).append(caption)
    return found


def read_text_files(path: Path, layout: str) -> Judgments:
    """Read `ExpertAnnotations.txt` or `CrowdFlowerAnnotations.txt`, with `Flickr8k.token.txt` in the same folder.

    As in the published evaluations, Expert leaves out candidates that are a human caption of their image and counts
    each of three experts; CF takes a candidate that is a human caption of its image out of the image's references.

    Args:
        path: one of the two files.
        layout: `flickr8k_expert` or `flickr8k_cf`.

    Raises:
        UserError: a file is missing or damaged, or a caption id is unknown.
    """
    captions = _captions(path.parent)
    references = _by_image(captions)
    judged: list[tuple[str, str, list[float]]] = []
    for where, cells in _lines(path, 5, "file of human judgments"):
        image, key, *numbers = cells
        if key not in captions or image.partition(".")[0] not in references:
            unknown = image if key in captions else key
            raise UserError(f"{where}: {unknown!r} is not in {CAPTIONS}; give the file with its captions")
        scores = [_number(number, where) for number in numbers]
        judged.append((image, captions[key], scores if layout == "flickr8k_expert" else scores[:1]))
    return _judgments(layout, judged, {image: references[image.partition(".")[0]] for image, _, _ in judged})


def read_json_file(path: Path, content: Any) -> Judgments:
    """Read `flickr8k.json` or `crowdflower_flickr8k.json`: image -> ground_truth, human_judgement.

    Raises:
        UserError: a key is missing.
    """
    judged: list[tuple[str, str, list[float]]] = []
    references: dict[str, list[str]] = {}
    for image, record in content.items():
        where = f"{path}: image {image!r}"
        if not isinstance(record, dict) or not {"ground_truth", "human_judgement"} <= set(record):
            raise UserError(f"{where}: must have the keys ground_truth and human_judgement")
        references[image] = [tidy(str(caption)) for caption in record["ground_truth"]]
        for entry in record["human_judgement"]:
            if not isinstance(entry, dict) or not {"caption", "rating"} <= set(entry):
                raise UserError(f"{where}: each human_judgement must have the keys caption and rating")
            rating = _number(str(entry["rating"]), where)
            if rating == rating:  # NaN: nobody rated it
                judged.append((image, tidy(str(entry["caption"])), [rating]))
    shares = all(0 <= score <= 1 for _, _, scores in judged for score in scores)
    return _judgments("flickr8k_cf" if shares else "flickr8k_expert", judged, references)


def _judgments(
    layout: str, judged: list[tuple[str, str, list[float]]], references: Mapping[str, list[str]]
) -> Judgments:
    left_out = 0
    if layout == "flickr8k_expert":
        kept = [row for row in judged if row[1] not in references[row[0]]]
        left_out = len(judged) - len(kept)
        human = {image: tuple(group) for image, group in references.items()}
    else:
        kept = judged
        own: dict[str, set[str]] = {}
        for image, caption, _ in judged:
            own.setdefault(image, set()).add(caption)
        human = {image: tuple(_without(group, own.get(image, set()))) for image, group in references.items()}
    captions: list[JudgedCaption] = []
    ratings: list[Rating] = []
    for image, caption, scores in kept:
        captions.append(JudgedCaption(image, caption, human[image]))
        ratings += [Rating(len(captions) - 1, score) for score in scores]
    notes = (f"{left_out:,} candidates that are a human caption of their image are left out",) if left_out else ()
    return Judgments(layout, tuple(captions), tuple(ratings), notes=notes)


def _without(group: list[str], judged: set[str]) -> list[str]:
    """Take each judged caption out once."""
    rest = list(group)
    for caption in judged & set(rest):
        rest.remove(caption)
    return rest
