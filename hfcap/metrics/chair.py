"""CHAIR (Rohrbach et al. 2018): how many of the mentioned objects are not in the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError, shown
from hfcap.files import read_json
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions
from hfcap.metrics.shared.coco_objects import CATEGORIES, mentioned_objects
from hfcap.places import LocalPath


def read_instances(paths: Sequence[Path]) -> dict[str, frozenset[str]]:
    """Return image id -> names of the categories annotated in it, from COCO instance files.

    Images that are listed without any annotation get an empty set.

    Raises:
        UserError: a file is missing, has another layout, or names a category that is none of COCO's 80.
    """
    found: dict[str, set[str]] = {}
    for path in paths:
        content = read_json(path, "instance annotations")
        try:
            names = {category["id"]: str(category["name"]) for category in content["categories"]}
            for image in content["images"]:
                found.setdefault(str(image["id"]), set())
            for annotation in content["annotations"]:
                found.setdefault(str(annotation["image_id"]), set()).add(names[annotation["category_id"]])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}: no COCO instance annotations ({type(error).__name__}: {error}); give "
                "instances_val2014.json or the like"
            ) from None
        unknown = sorted(set(names.values()) - set(CATEGORIES))
        if unknown:
            raise UserError(
                f"{path}: CHAIR knows COCO's 80 categories only, not {shown(unknown[0])}; give COCO's own file"
            )
    return {image_id: frozenset(categories) for image_id, categories in found.items()}


class ChairOptions(MetricOptions):
    """Options of CHAIR."""

    instances: LocalPath | Path | tuple[LocalPath | Path, ...] | dict[str, tuple[str, ...]] | None = Field(
        None, description="COCO's instances_<split>.json or a list of such files; in Python also id -> category names"
    )


class Chair(CaptionMetric):
    """CHAIR-i = hallucinated mentions / mentions; CHAIR-s = share of captions with a hallucinated object.

    An object is in the image if it is annotated or if one of the human captions mentions it. Words are mapped to COCO's
    80 categories by hfcap's own table (hfcap/metrics/shared/coco_objects.py), not by that of the paper.
    Statistics of an image (3): hallucinated mentions, mentions, whether any is hallucinated.

    Raises:
        UserError: no instances, a file is wrong, or an image is in none of them.
    """

    name = "chair"
    outputs = ("chair_i", "chair_s")
    english_only = True
    summary = "hallucinated objects (Rohrbach et al. 2018); needs COCO's instance annotations"
    higher_is_better = False
    citation = "Rohrbach et al. (2018): Object Hallucination in Image Captioning. EMNLP"

    options_class = ChairOptions

    def __init__(self, options: ChairOptions | None = None) -> None:
        instances = (options or ChairOptions()).instances
        if not instances:
            raise UserError(
                "metric 'chair' needs to know which objects are in the images; give its option instances, COCO's "
                "instances_<split>.json"
            )
        self._objects: dict[str, frozenset[str]]
        if isinstance(instances, dict):
            self._objects = {image_id: frozenset(names) for image_id, names in instances.items()}
        else:
            paths = (instances,) if isinstance(instances, str | Path) else instances
            self._objects = read_instances([Path(path) for path in paths])

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return hallucinated mentions, mentions, and whether there is a hallucination, (N, 3)."""
        missing = [image_id for image_id in captions.image_ids if image_id not in self._objects]
        if missing:
            raise UserError(
                f"metric 'chair': {len(missing):,} images, for example {missing[0]!r}, are not in the instance "
                "annotations; give the file of their split"
            )
        result = np.zeros((len(captions), 3))
        lines = zip(captions.image_ids, captions.tokenized_candidates, captions.tokenized_references, strict=True)
        for row, (image_id, line, references) in enumerate(lines):
            mentioned = mentioned_objects(line.split(" "))
            if not mentioned:
                continue
            human = {name for reference in references for name in mentioned_objects(reference.split(" "))}
            present = self._objects[image_id] | human
            hallucinated = sum(name not in present for name in mentioned)
            result[row] = hallucinated, len(mentioned), hallucinated > 0
        return result

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Share of mentions (NaN without any) and share of captions."""
        hallucinated, mentions, sentences = np.moveaxis(sums, -1, 0)
        share = np.divide(hallucinated, mentions, out=np.full_like(mentions, np.nan), where=mentions > 0)
        of_captions = sentences / n_images if n_images else np.full_like(sentences, np.nan)
        return np.stack((share, of_captions), axis=-1)

    def signature(self) -> dict[str, Any]:
        """Return whose word table was used and how many images were annotated."""
        return {"objects": "hfcap's table of COCO's 80 categories", "annotated_images": len(self._objects)}


REGISTERED = Chair
