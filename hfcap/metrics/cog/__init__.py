"""Cog of AMBER: hallucinated objects that people, too, might imagine in the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.files import read_json, read_json_lines
from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.objects.annotations import ObjectOptions, ObjectsOfImages, known_objects, read_annotations
from hfcap.metrics.shared.object_words import ObjectVocabulary
from hfcap.places import LocalPath

_TARGET_KEY = "hallu"
"""AMBER's name of the targets (Wang et al. 2023, arXiv:2311.07397)."""


class CogOptions(ObjectOptions):
    """Options of Cog."""

    targets: LocalPath | Path | dict[str, tuple[str, ...]] | None = Field(
        None,
        description="file of the objects that people might imagine in each image, in a layout of instances; default: "
        "AMBER's 'hallu' in instances; in Python also id -> names",
    )


class Cog(CaptionMetric):
    """Mentioned objects that are targets: not in the image, and likely to be imagined there.

    With R the different objects that a caption mentions and H the targets of its image, cog = |R and H| / |R| (AMBER's
    equation of Cog) and cog_cover = |R and H| / |H|, which the authors' program prints as Cog; over the sums of all
    images. An object that is in the image is no target.
    Statistics of an image (3): mentioned targets, mentioned objects, targets.

    Raises:
        UserError: nothing says which objects are in the images or which are targets, or a file is wrong.
    """

    name = "cog"
    outputs = ("cog", "cog_cover")
    n_statistics = 3
    english_only = True
    higher_is_better = False
    summary = "hallucinated objects that people might imagine, too (AMBER, Wang et al. 2023); needs AMBER's annotations"
    citation = "Wang et al. (2023): AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation"

    options_class = CogOptions

    def __init__(self, options: CogOptions | None = None) -> None:
        given = options or CogOptions()
        self._objects = ObjectsOfImages(self.name, given)
        self._objects.targets = _targets(given, self._objects.vocabulary)

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return numbers of mentioned targets, mentioned objects and targets of each image, (N, 3).

        Raises:
            UserError: an image has no list of targets.
        """
        targets = self._objects.targets
        if missing := [image_id for image_id in captions.image_ids if image_id not in targets]:
            raise UserError(
                f"cog.targets: {len(missing):,} images, for example {missing[0]!r}, have no list of targets; give the "
                "file of their split, with an empty list where there are none"
            )
        rows = []
        for image_id, (mentioned, present) in zip(captions.image_ids, self._objects.of_captions(captions), strict=True):
            absent = targets[image_id] - present
            rows.append((len(absent & set(mentioned)), len(set(mentioned)), len(absent)))
        return np.asarray(rows, dtype=np.float64).reshape(-1, 3)

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Shares of the mentioned objects (NaN without any) and of the targets (NaN without any)."""
        found, mentioned, targets = np.moveaxis(sums, -1, 0)
        shares = [np.divide(found, of, out=np.full_like(of, np.nan), where=of > 0) for of in (mentioned, targets)]
        return np.stack(shares, axis=-1)

    def signature(self) -> dict[str, Any]:
        """Return whose words were used, how many images were annotated, and how many targets there are."""
        return {**self._objects.signature(), "n_targets": sum(map(len, self._objects.targets.values()))}


def _targets(options: CogOptions, vocabulary: ObjectVocabulary) -> dict[str, frozenset[str]]:
    """Image id -> names of its targets."""
    given = options.targets
    if isinstance(given, dict):
        return {key: frozenset(known_objects(names, vocabulary, "cog.targets")) for key, names in given.items()}
    if given is not None:
        return read_annotations([Path(given)], vocabulary, (_TARGET_KEY, "objects"))
    instances = options.instances
    paths = (instances,) if isinstance(instances, str | Path) else instances if isinstance(instances, tuple) else ()
    with_targets = [Path(path) for path in paths if _has_targets(Path(path))]
    if not with_targets:
        raise UserError(
            "metric 'cog' needs the objects that people might imagine in the images: give its option instances AMBER's "
            "annotations.json, or its option targets a file of them"
        )
    return read_annotations(with_targets, vocabulary, (_TARGET_KEY,))


def _has_targets(path: Path) -> bool:
    if path.suffix in (".jsonl", ".ndjson"):
        return any(_TARGET_KEY in row for _, row in read_json_lines(path, "annotations"))
    content = read_json(path, "annotations of objects")
    return isinstance(content, list) and any(isinstance(row, dict) and _TARGET_KEY in row for row in content)


REGISTERED = Cog
