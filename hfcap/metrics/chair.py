"""CHAIR (Rohrbach et al. 2018): how many of the mentioned objects are not in the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.objects.annotations import ObjectOptions, ObjectsOfImages


class ChairOptions(ObjectOptions):
    """Options of CHAIR."""


class Chair(CaptionMetric):
    """CHAIR-i = hallucinated mentions / mentions; CHAIR-s = share of captions with a hallucinated object.

    An object is in the image if it is annotated or if one of the human captions mentions it. Words are mapped to COCO's
    80 categories by hfcap's own table (hfcap/metrics/shared/coco_objects.py), not by that of the paper, or to the
    user's objects by their vocabulary.
    Statistics of an image (3): hallucinated mentions, mentions, whether any is hallucinated.

    Raises:
        UserError: no instances, a file is wrong, or an image is in none of them.
    """

    name = "chair"
    outputs = ("chair_i", "chair_s")
    n_statistics = 3
    english_only = True
    summary = "hallucinated objects (Rohrbach et al. 2018); needs annotations of objects, or a vocabulary"
    higher_is_better = False
    citation = "Rohrbach et al. (2018): Object Hallucination in Image Captioning. EMNLP"

    options_class = ChairOptions

    def __init__(self, options: ChairOptions | None = None) -> None:
        self._objects = ObjectsOfImages(self.name, options or ChairOptions())

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return hallucinated mentions, mentions, and whether there is a hallucination, (N, 3)."""
        result = np.zeros((len(captions), 3))
        for row, (mentioned, present) in enumerate(self._objects.of_captions(captions)):
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
        return self._objects.signature()


REGISTERED = Chair
