"""Which objects are in the images: from annotations of several layouts, and from the human captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from hfcap.errors import UserError, shown
from hfcap.files import read_json, read_json_lines
from hfcap.metrics.base import CaptionSet, MetricOptions
from hfcap.metrics.shared.caption_files import normalised_image_id
from hfcap.metrics.shared.coco_objects import coco_vocabulary
from hfcap.metrics.shared.object_words import ObjectVocabulary, read_vocabulary
from hfcap.places import LocalPath

_OF_COCO = ("images", "annotations", "categories")
_ID_KEYS = ("image_id", "id", "file_name")
_OBJECT_KEYS = ("objects", "truth")
"""The second is AMBER's (Wang et al. 2023, arXiv:2311.07397)."""


class ObjectOptions(MetricOptions):
    """Which objects there are, and in which image."""

    instances: LocalPath | Path | tuple[LocalPath | Path, ...] | dict[str, tuple[str, ...]] | None = Field(
        None,
        description="COCO's instances_<split>.json, another file of the objects in each image, or several; "
        "in Python also id -> category names",
    )
    vocabulary: LocalPath | Path | None = Field(
        None, description="file of your own objects and their synonyms; default: COCO's 80 categories"
    )
    references: bool = Field(True, description="objects that a human caption mentions are in the image, too")


def read_annotations(
    paths: Sequence[Path], vocabulary: ObjectVocabulary, keys: Sequence[str] = _OBJECT_KEYS
) -> dict[str, frozenset[str]]:
    """Return image id -> names of the objects in it; images that are listed without any get an empty set.

    Layouts: COCO's instances; a JSON mapping image id -> names; a list, or JSON lines, of objects with `image_id` (or
    `id`, `file_name`) and `objects` (or AMBER's `truth`; its questions, whose truth is yes or no, are skipped).

    Args:
        keys: what the names stand under in the last of these layouts, the first that is there.

    Raises:
        UserError: a file is missing, has another layout, or names an object that the vocabulary does not have.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        rows = list(_rows(path, keys))
        for image_id, names in rows:
            found.setdefault(image_id, set()).update(known_objects(names, vocabulary, path))
        if not rows:
            raise UserError(f"{path}: no annotated images; give the file that says which objects are in each image")
    return {image_id: frozenset(objects) for image_id, objects in found.items()}


def known_objects(names: Iterable[str], vocabulary: ObjectVocabulary, place: Path | str) -> Iterator[str]:
    """Yield the vocabulary's name of each object.

    Raises:
        UserError: the vocabulary does not have it; the message begins with the place.
    """
    for name in names:
        known = vocabulary.object_called(name)
        if known is None:
            whose = "COCO's 80 categories" if vocabulary is coco_vocabulary() else f"the objects of {vocabulary.source}"
            raise UserError(
                f"{place}: {shown(name)} is none of {whose}; correct it, or give a vocabulary that has it (option "
                "vocabulary)"
            )
        yield known


def _rows(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Image ids and names of objects; an image may come several times."""
    if path.suffix in (".jsonl", ".ndjson"):
        numbered = ((f"{path}: line {n}", row) for n, row in read_json_lines(path, "annotations"))
        yield from _listed(numbered, keys)
        return
    content = read_json(path, "annotations of objects")
    if isinstance(content, dict) and not any(key in content for key in _OF_COCO):
        for key, names in content.items():
            yield normalised_image_id(key, str(path)), _names(names, f"{path}: key {shown(key)}")
    elif isinstance(content, list):
        yield from _listed(((f"{path}: entry {n}", row) for n, row in enumerate(content)), keys)
    else:
        yield from _of_coco(path, content)


def _of_coco(path: Path, content: Any) -> list[tuple[str, list[str]]]:
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        images: list[tuple[str, list[str]]] = [(str(image["id"]), []) for image in content["images"]]
        return images + [(str(row["image_id"]), [names[row["category_id"]]]) for row in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no COCO instance annotations ({type(error).__name__}: {error}); give instances_val2014.json or "
            "the like"
        ) from None


def _listed(rows: Iterable[tuple[str, Any]], keys: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for where, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with image_id and objects, not {type(row).__name__}")
        if "objects" not in row and row.get("truth") in ("yes", "no"):
            continue
        image_id = next((row[key] for key in _ID_KEYS if key in row), None)
        names = next((row[key] for key in keys if key in row), None)
        if image_id is None or names is None:
            raise UserError(
                f"{where}: no image_id and {keys[0]}; add them (found the keys {', '.join(map(repr, row))})"
            )
        yield normalised_image_id(image_id, where), _names(names, where)


def _names(names: Any, where: str) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: the objects must be a list of names, not {shown(names)}")
    return names


class ObjectsOfImages:
    """The objects that captions mention, and those that are in the images.

    Attributes:
        metric: name of the metric, for messages.
        vocabulary: COCO's 80 categories, or the user's.
        annotated: image id -> names; None = the human captions alone say what is there.
        targets: image id -> names of objects that are not there and that people might imagine (metric `cog`).

    Raises:
        UserError: nothing says which objects are in the images, or a file is wrong.
    """

    def __init__(self, metric: str, options: ObjectOptions) -> None:
        self.metric = metric
        self.with_references = options.references
        self.vocabulary = coco_vocabulary() if options.vocabulary is None else read_vocabulary(Path(options.vocabulary))
        self.annotated: dict[str, frozenset[str]] | None = None
        self.targets: dict[str, frozenset[str]] = {}
        if not options.instances and (options.vocabulary is None or not options.references):
            raise UserError(
                f"metric {metric!r} needs to know which objects are in the images; give its option instances, COCO's "
                "instances_<split>.json, or vocabulary, a file of your own objects"
            )
        if isinstance(options.instances, dict):
            own = options.vocabulary is not None
            self.annotated = {
                image_id: frozenset(known_objects(names, self.vocabulary, "instances") if own else names)
                for image_id, names in options.instances.items()
            }
        elif options.instances:
            paths = (options.instances,) if isinstance(options.instances, str | Path) else options.instances
            self.annotated = read_annotations([Path(path) for path in paths], self.vocabulary)

    def of_captions(self, captions: CaptionSet) -> Iterator[tuple[list[str], frozenset[str]]]:
        """Yield of each image the objects that the candidate mentions, in order, and those that are in the image.

        A phrase that may name several objects names one that is in the image, if any is, else a target, if any is.

        Raises:
            UserError: an image is not annotated.
        """
        if self.annotated is not None and (missing := [one for one in captions.image_ids if one not in self.annotated]):
            raise UserError(
                f"metric {self.metric!r}: {len(missing):,} images, for example {missing[0]!r}, are not in the instance "
                "annotations; give the file of their split"
            )
        lines = zip(captions.image_ids, captions.tokenized_candidates, captions.tokenized_references, strict=True)
        for image_id, line, references in lines:
            present = frozenset() if self.annotated is None else self.annotated[image_id]
            for reference in references if self.with_references else ():
                present |= {_meant(objects, present) for objects in self.vocabulary.mentions(reference.split(" "))}
            targets = self.targets.get(image_id, frozenset())
            mentions = self.vocabulary.mentions(line.split(" "))
            yield [_meant(objects, present, targets) for objects in mentions], present

    def signature(self) -> dict[str, Any]:
        """Return whose words were used and how many images were annotated; what is as for COCO is not said."""
        signed: dict[str, Any] = {"objects": self.vocabulary.source}
        if self.vocabulary is not coco_vocabulary():
            signed |= {"vocabulary": self.vocabulary.sha256(), "n_objects": len(self.vocabulary.names)}
        signed["annotated_images"] = 0 if self.annotated is None else len(self.annotated)
        return signed if self.with_references else {**signed, "references": False}


def _meant(objects: Sequence[str], *likely: frozenset[str]) -> str:
    return next((name for names in likely for name in objects if name in names), objects[0])
