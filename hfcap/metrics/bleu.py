"""BLEU 1 to 4 (Papineni et al. 2002) as the COCO caption evaluation computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics._ngrams import counted, ngram_keys
from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.tokenizer import TokenSequences

_ORDERS = (1, 2, 3, 4)
# The constants of the COCO evaluation; they keep a caption without any match above zero.
_NUMERATOR_SMOOTHING = 1e-15
_DENOMINATOR_SMOOTHING = 1e-9


def _dense(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Number the distinct keys of two arrays together: 0 .. n - 1."""
    distinct, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
    return numbers[: len(first)], numbers[len(first) :], max(len(distinct), 1)


def _clipped_matches(captions: CaptionSet, order: int) -> NDArray[np.float64]:
    """(N,) candidate n-grams found in the references, each at most as often as in the reference that has most."""
    vocabulary, image_of_caption = captions.vocabulary, captions.reference_set.image_of_caption
    candidate_keys, image = ngram_keys(captions.candidate_tokens, vocabulary, order)
    reference_keys, caption = ngram_keys(captions.reference_tokens, vocabulary, order)
    candidate_items, reference_items, n_items = _dense(candidate_keys, reference_keys)
    images, items, counts = counted(image, candidate_items, n_items)
    reference_captions, reference_items, reference_counts = counted(caption, reference_items, n_items)
    wanted = images * n_items + items
    offered = image_of_caption[reference_captions] * n_items + reference_items
    most = np.zeros(len(wanted), dtype=np.int64)
    position = np.searchsorted(wanted, offered)
    hit = position < len(wanted)
    hit[hit] = wanted[position[hit]] == offered[hit]
    np.maximum.at(most, position[hit], reference_counts[hit])
    return np.bincount(images, weights=np.minimum(counts, most), minlength=len(captions)).astype(np.float64)


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
        columns: list[NDArray[Any]] = [_clipped_matches(captions, order) for order in _ORDERS]
        columns += [np.maximum(lengths - order + 1, 0) for order in _ORDERS]
        columns += [lengths, _closest_lengths(candidates, references, image_of_caption)]
        return np.stack(columns, axis=1).astype(np.float64)

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """Return BLEU 1 to 4 for summed statistics: (..., 10) -> (..., 4)."""
        matches, possible = sums[..., 0:4], sums[..., 4:8]
        candidate_words, reference_words = sums[..., 8:9], sums[..., 9:10]
        precision = (matches + _NUMERATOR_SMOOTHING) / (possible + _DENOMINATOR_SMOOTHING)
        ratio = (candidate_words + _NUMERATOR_SMOOTHING) / (reference_words + _DENOMINATOR_SMOOTHING)
        brevity = np.exp(np.minimum(1 - 1 / ratio, 0.0))
        return np.cumprod(precision, axis=-1) ** (1 / np.array(_ORDERS)) * brevity

    def signature(self) -> dict[str, Any]:
        """Return the choices that other BLEU implementations make differently."""
        return {"reference_length": "closest", "level": "corpus", "smoothing": "coco"}


REGISTERED = Bleu
