"""BLEU 1 to 4 (Papineni et al. 2002) as the COCO caption evaluation computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics._ngrams import ORDERS
from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.tokenizer import TokenSequences

# The constants of the COCO evaluation; they keep a caption without any match above zero.
_NUMERATOR_SMOOTHING = 1e-15
_DENOMINATOR_SMOOTHING = 1e-9


def _clipped_matches(captions: CaptionSet, order: int) -> NDArray[np.float64]:
    """(N,) candidate n-grams found in the references, each at most as often as in the reference that has most."""
    table = captions.ngrams(order)
    entry, reference_entry = captions.ngram_matches(order)
    clipped = np.zeros(len(captions))
    if len(entry):
        starts = np.flatnonzero(np.diff(entry, prepend=-1))
        most = np.maximum.reduceat(captions.reference_set.ngrams(order).count[reference_entry], starts)
        found = entry[starts]
        clipped += np.bincount(
            table.caption[found], weights=np.minimum(table.count[found], most), minlength=len(captions)
        )
    return clipped


def _closest_lengths(
    candidates: TokenSequences, references: TokenSequences, image_of_caption: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) length of the reference nearest in length to the candidate, of two the shorter."""
    lengths = references.lengths
    distance = np.abs(lengths - candidates.lengths[image_of_caption])
    order = np.lexsort((lengths, distance, image_of_caption))
    n_images = len(candidates)
    first = np.searchsorted(image_of_caption[order], np.arange(n_images))
    return lengths[order][first]


class Bleu(CaptionMetric):
    """Corpus BLEU 1 to 4: clipped precisions against all references, closest reference length.

    Statistics of an image (10): clipped matches of orders 1 to 4, n-grams of orders 1 to 4, words of the candidate,
    words of the closest reference.
    """

    name = "bleu"
    outputs = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    citation = "Papineni et al. (2002): BLEU: a Method for Automatic Evaluation of Machine Translation. ACL"

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return matches, n-gram counts and lengths of each image, (N, 10)."""
        candidates, references = captions.candidate_tokens, captions.reference_tokens
        image_of_caption = captions.reference_set.image_of_caption
        lengths = candidates.lengths
        columns: list[NDArray[Any]] = [_clipped_matches(captions, order) for order in ORDERS]
        columns += [np.maximum(lengths - order + 1, 0) for order in ORDERS]
        columns += [lengths, _closest_lengths(candidates, references, image_of_caption)]
        return np.stack(columns, axis=1).astype(np.float64)

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Return BLEU 1 to 4 for summed statistics: (..., 10) -> (..., 4)."""
        matches, possible = sums[..., 0:4], sums[..., 4:8]
        candidate_words, reference_words = sums[..., 8:9], sums[..., 9:10]
        precision = (matches + _NUMERATOR_SMOOTHING) / (possible + _DENOMINATOR_SMOOTHING)
        ratio = (candidate_words + _NUMERATOR_SMOOTHING) / (reference_words + _DENOMINATOR_SMOOTHING)
        brevity = np.exp(np.minimum(1 - 1 / ratio, 0.0))
        return np.cumprod(precision, axis=-1) ** (1 / np.array(ORDERS)) * brevity

    def signature(self) -> dict[str, Any]:
        """Return the choices that other BLEU implementations make differently."""
        return {"reference_length": "closest", "level": "corpus", "smoothing": "coco"}


REGISTERED = Bleu
