"""N-grams of many captions as integers, without a Python loop over words.

Shapes: M captions, T words of all captions together, G n-grams.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.tokenizer import TokenSequences, Vocabulary

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> _SHIFT)) * _MIXER
    return values ^ (values >> _SHIFT)


def ngram_keys(
    sequences: TokenSequences, vocabulary: Vocabulary, order: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return a 64-bit key and the caption of every n-gram of `order` words, in caption order.

    A key depends on the words alone, not on their numbers, so that keys can be kept in files. Two different n-grams
    among a million share a key with a probability below 1e-7.

    Returns:
        keys (G,) uint64 and caption numbers (G,) int64.
    """
    hashes = vocabulary.hashes[sequences.tokens]
    n_positions = max(len(hashes) - order + 1, 0)
    keys = np.full(n_positions, order, dtype=np.uint64)
    for offset in range(order):
        keys = _mixed(keys * _MULTIPLIER + hashes[offset : offset + n_positions])
    caption = np.repeat(np.arange(len(sequences)), sequences.lengths)[:n_positions]
    inside = np.arange(n_positions) + order <= sequences.offsets[1:][caption]
    return keys[inside], caption[inside]


def counted(groups: NDArray[np.int64], items: NDArray[np.int64], n_items: int) -> tuple[NDArray[np.int64], ...]:
    """Count equal (group, item) pairs: returns groups, items and counts of the distinct pairs, sorted by both.

    `items` are below `n_items`, so that a pair fits one integer.
    """
    pairs = np.sort(groups * n_items + items)
    first = np.empty(len(pairs), dtype=bool)
    first[:1] = True
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    distinct = pairs[starts]
    counts = np.diff(np.append(starts, len(pairs)))
    return distinct // n_items, distinct % n_items, counts
