"""How long the captions are, in words of the common tokenisation, and compared with what people wrote."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet


class Length(CaptionMetric):
    """Mean and standard deviation of the number of words, and the ratio to the mean length of the references.

    Statistics of an image (3): words, squared words, mean words of its references. No value is better than another:
    a ratio far from 1 explains strange scores (BLEU's brevity penalty, CIDEr-D's length penalty).
    """

    name = "length"
    outputs = ("length_mean", "length_deviation", "length_ratio")
    n_statistics = 3
    summary = "words per caption: mean, deviation, ratio to the human captions"
    higher_is_better = None
    plain_outputs = ("length_mean", "length_deviation", "length_ratio")

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return words, squared words and mean words of the references, (N, 3)."""
        words = captions.candidate_tokens.lengths.astype(np.float64)
        of_image = captions.reference_set.image_of_caption
        total = np.bincount(of_image, weights=captions.reference_tokens.lengths, minlength=len(captions))
        return np.stack((words, words**2, total / np.maximum(captions.reference_set.counts, 1)), axis=1)

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Mean, standard deviation of the population, ratio of the sums (NaN where the references have no words)."""
        if n_images == 0:
            return np.full_like(sums, np.nan)
        words, squares, references = np.moveaxis(sums, -1, 0)
        mean = words / n_images
        variance = np.maximum(squares / n_images - mean**2, 0.0)
        ratio = np.divide(words, references, out=np.full_like(words, np.nan), where=references > 0)
        return np.stack((mean, np.sqrt(variance), ratio), axis=-1)


REGISTERED = Length
