"""BLEU 1 to 4 (Papineni et al. 2002) as the COCO caption evaluation computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet, ReferenceSet
from hfcap.metrics.shared.document_frequencies import indexed, with_end_word
from hfcap.metrics.shared.ngrams import ORDERS, NgramTable, ReferenceNgrams
from hfcap.metrics.shared.tokenizer import encode_captions

# The constants of the COCO evaluation; they keep a caption without any match above zero.
_NUMERATOR_SMOOTHING = 1e-15
_DENOMINATOR_SMOOTHING = 1e-9


def _clipped_matches(
    table: NgramTable, index: ReferenceNgrams, matches: tuple[NDArray[np.int64], NDArray[np.int64]], n_candidates: int
) -> NDArray[np.float64]:
    """(N,) candidate n-grams found in the references, each at most as often as in the reference that has most."""
    entry, reference_entry = matches
    clipped = np.zeros(n_candidates)
    if len(entry):
        starts = np.flatnonzero(np.diff(entry, prepend=-1))
        most = np.maximum.reduceat(index.count[reference_entry], starts)
        found = entry[starts]
        clipped += np.bincount(
            table.caption[found], weights=np.minimum(table.count[found], most), minlength=n_candidates
        )
    return clipped


def _closest_lengths(
    candidates: NDArray[np.int64], references: NDArray[np.int64], candidate_of_reference: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(N,) length of the reference nearest in length to each of N candidates, of two the shorter."""
    distance = np.abs(references - candidates[candidate_of_reference])
    order = np.lexsort((references, distance, candidate_of_reference))
    first = np.searchsorted(candidate_of_reference[order], np.arange(len(candidates)))
    return references[order][first]


def _statistics(
    matches: Sequence[NDArray[np.float64]], lengths: NDArray[np.int64], closest: NDArray[np.int64]
) -> NDArray[np.float64]:
    columns: list[NDArray[Any]] = [*matches, *(np.maximum(lengths - order + 1, 0) for order in ORDERS)]
    return np.stack([*columns, lengths, closest], axis=1).astype(np.float64)


class Bleu(CaptionMetric):
    """Corpus BLEU 1 to 4: clipped precisions against all references, closest reference length.

    Statistics of an image (10): clipped matches of orders 1 to 4, n-grams of orders 1 to 4, words of the candidate,
    words of the closest reference.
    """

    name = "bleu"
    outputs = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    n_statistics = 10
    words_column = 8  # of the statistics: the candidate's words
    in_parts = True
    summary = "n-gram precision with brevity penalty (Papineni et al. 2002), corpus level"
    citation = "Papineni et al. (2002): BLEU: a Method for Automatic Evaluation of Machine Translation. ACL"

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return matches, n-gram counts and lengths of each image, (N, 10)."""
        lengths = captions.candidate_tokens.lengths
        references, image_of_caption = captions.reference_tokens, captions.reference_set.image_of_caption
        matches = [
            _clipped_matches(
                captions.ngrams(order),
                captions.reference_set.ngrams(order),
                captions.ngram_matches(order),
                len(captions),
            )
            for order in ORDERS
        ]
        return _statistics(matches, lengths, _closest_lengths(lengths, references.lengths, image_of_caption))

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


class BleuReward:
    """BLEU-4 of single candidates, many per image, for self-critical training; the references are indexed once.

    Args:
        references: image id -> raw human captions.
        end_word: count the end token as a word (see `CiderReward`).
    """

    def __init__(self, references: Mapping[str, Sequence[str]], *, end_word: bool = True) -> None:
        self._references = ReferenceSet(references)
        self._end_word = end_word
        self._index = indexed(self._references, end_word)
        self._lengths = self._references.tokens.lengths + int(end_word)
        self._first_caption = np.concatenate([[0], np.cumsum(self._references.counts)])
        self._position = {image_id: number for number, image_id in enumerate(self._references.image_ids)}

    def scores(
        self, image_ids: Sequence[str], candidates: Sequence[Sequence[str]], ended: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """Return BLEU-4 of K candidates for each of B images, (B, K) float64; `ended` as in `CiderReward.scores`."""
        n_candidates = len(candidates[0])
        images = np.repeat([self._position[image_id] for image_id in image_ids], n_candidates).astype(np.int64)
        vocabulary = self._references.vocabulary
        tokens = encode_captions([caption for group in candidates for caption in group], vocabulary)
        if self._end_word:
            tokens = with_end_word(tokens, vocabulary, None if ended is None else np.asarray(ended, bool).reshape(-1))
        tables = [NgramTable.of(tokens, vocabulary, order) for order in ORDERS]
        matches = [
            _clipped_matches(table, part, part.join(table, images), len(images))
            for table, part in zip(tables, self._index, strict=True)
        ]
        references = [np.arange(self._first_caption[image], self._first_caption[image + 1]) for image in images]
        owner = np.repeat(np.arange(len(images)), [len(group) for group in references])
        closest = _closest_lengths(tokens.lengths, self._lengths[np.concatenate(references)], owner)
        alone = Bleu().from_sums(_statistics(matches, tokens.lengths, closest), 1)
        return alone[:, -1].reshape(len(image_ids), n_candidates)


REGISTERED = Bleu
