"""ROUGE-L (Lin 2004) as the COCO caption evaluation computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.shared.tokenizer import TokenSequences

_BETA = 1.2
_WORD_BITS = 64


def _padded(sequences: TokenSequences, chosen: NDArray[np.int64], width: int, filler: int) -> NDArray[np.int32]:
    """(P, width) tokens of the chosen captions, padded with `filler`."""
    starts, lengths = sequences.offsets[:-1][chosen], sequences.lengths[chosen]
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    padded = np.full((len(chosen), width), filler, dtype=np.int32)
    padded[inside] = sequences.tokens[(starts[:, None] + columns)[inside]]
    return padded


def _bit_parallel(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    """LCS lengths of row pairs; `second` has at most 64 columns; paddings of both sides never match.

    Bit j of `open_` is 0 where the dynamic-programming row grows at column j (Hyyro 2004): one addition handles a row.
    """
    n_pairs = len(first)
    padded = np.zeros((n_pairs, _WORD_BITS), dtype=bool)
    open_ = np.full(n_pairs, np.iinfo(np.uint64).max, dtype=np.uint64)
    width = second.shape[1]
    for column in range(first.shape[1]):
        np.equal(second, first[:, column, None], out=padded[:, :width])
        matches = np.packbits(padded, axis=1, bitorder="little").view("<u8")[:, 0].astype(np.uint64)
        used = open_ & matches
        open_ = (open_ + used) | (open_ & ~matches)
    return np.bitwise_count(~open_).astype(np.int64)


def _row_by_row(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    """LCS lengths of row pairs of any width, by the textbook dynamic programme over all pairs at once."""
    previous = np.zeros((len(first), second.shape[1] + 1), dtype=np.int64)
    for column in range(first.shape[1]):
        equal = second == first[:, column, None]
        grown = np.maximum(previous[:, 1:], np.where(equal, previous[:, :-1] + 1, 0))
        previous[:, 1:] = np.maximum.accumulate(grown, axis=1)
    return previous[:, -1]


def longest_common_subsequences(
    first: TokenSequences, second: TokenSequences, first_of_pair: NDArray[np.int64], second_of_pair: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the LCS length of P pairs of captions, (P,) int64.

    `first_of_pair` and `second_of_pair` are the P caption numbers on either side.
    """
    result = np.zeros(len(first_of_pair), dtype=np.int64)
    first_lengths, second_lengths = first.lengths[first_of_pair], second.lengths[second_of_pair]
    # Pairs of similar width go together, so that one long caption does not widen all rows.
    limits = (8, 12, 16, 24, 40, _WORD_BITS, np.inf)
    longest = np.maximum(first_lengths, second_lengths)
    lower = 0.0
    for upper in limits:
        group = np.flatnonzero((longest > lower) & (longest <= upper))
        lower = float(upper)
        if not len(group):
            continue
        left = _padded(first, first_of_pair[group], int(first_lengths[group].max()), filler=-1)
        right = _padded(second, second_of_pair[group], int(second_lengths[group].max()), filler=-2)
        solve = _bit_parallel if right.shape[1] <= _WORD_BITS else _row_by_row
        result[group] = solve(left, right)
    return result


class RougeL(CaptionMetric):
    """F-measure (beta 1.2) of the best LCS precision and the best LCS recall over references; mean over images."""

    name = "rouge_l"
    outputs = ("rouge_l",)
    in_parts = True
    summary = "longest common subsequence (Lin 2004)"
    citation = "Lin (2004): ROUGE: A Package for Automatic Evaluation of Summaries. ACL workshop"

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return ROUGE-L of each image, (N, 1)."""
        candidates, references = captions.candidate_tokens, captions.reference_tokens
        image = captions.reference_set.image_of_caption
        common = longest_common_subsequences(candidates, references, image, np.arange(len(references)))
        precision, recall = np.zeros(len(captions)), np.zeros(len(captions))
        np.maximum.at(precision, image, common / np.maximum(candidates.lengths[image], 1))
        np.maximum.at(recall, image, common / np.maximum(references.lengths, 1))
        weighted = recall + _BETA**2 * precision
        score = np.zeros(len(captions))
        np.divide((1 + _BETA**2) * precision * recall, weighted, out=score, where=weighted > 0)
        return score[:, None]

    def signature(self) -> dict[str, Any]:
        """Return beta."""
        return {"beta": _BETA}


REGISTERED = RougeL
