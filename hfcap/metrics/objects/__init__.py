"""Objects of captions against those of the images: how many are right, and how much of the image is covered."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.objects.annotations import ObjectOptions, ObjectsOfImages


class Objects(CaptionMetric):
    """Precision, recall and F of the different objects that captions mention, over all images.

    Precision = 1 - CHAIR and recall = Cover of AMBER (Wang et al. 2023, arXiv:2311.07397, section 3.4), over different
    objects of a caption; AMBER's Hal is CHAIR-s. Objects are found as CHAIR finds them.
    Statistics of an image (3): right objects, mentioned objects, objects in the image.

    Raises:
        UserError: nothing says which objects are in the images, a file is wrong, or an image is in none of them.
    """

    name = "objects"
    outputs = ("object_precision", "object_recall", "object_f1")
    n_statistics = 3
    english_only = True
    summary = "right objects and coverage (AMBER, Wang et al. 2023); needs annotations, or a vocabulary"
    citation = "Wang et al. (2023): AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation"

    options_class = ObjectOptions

    def __init__(self, options: ObjectOptions | None = None) -> None:
        self._objects = ObjectsOfImages(self.name, options or ObjectOptions())

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return numbers of right, mentioned and present objects, (N, 3)."""
        rows = [
            (len(present & set(mentioned)), len(set(mentioned)), len(present))
            for mentioned, present in self._objects.of_captions(captions)
        ]
        return np.asarray(rows, dtype=np.float64).reshape(-1, 3)

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Precision (NaN without mentions), recall (NaN without objects) and F, which is 0 where nothing is right."""
        right, mentioned, present = np.moveaxis(sums, -1, 0)
        both = mentioned + present
        pairs = ((right, mentioned), (right, present), (2 * right, both))
        shares = [np.divide(a, b, out=np.full_like(b, np.nan), where=b > 0) for a, b in pairs]
        return np.stack(shares, axis=-1)

    def signature(self) -> dict[str, Any]:
        """Return whose words were used and how many images were annotated."""
        return self._objects.signature()


REGISTERED = Objects
