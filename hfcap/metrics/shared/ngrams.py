"""N-grams of many captions as integers, without a Python loop over words.

Shapes: M captions, T words of all captions together, G n-grams, U distinct n-grams, E (caption, n-gram) entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.shared.tokenizer import TokenSequences, Vocabulary

ORDERS = (1, 2, 3, 4)
"""N-gram lengths of BLEU and CIDEr-D."""

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


def _runs(ordered: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct values of a sorted array and how often each occurs."""
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    return ordered[starts], np.diff(np.append(starts, len(ordered)))


_ENTRIES_AT_ONCE = 4_000_000
_SORTED_AT_ONCE = 500_000

_Counts = tuple[NDArray[np.uint64], NDArray[np.int64]]


def added_counts(tables: Iterable[_Counts]) -> _Counts:
    """Return the sum of counts of n-grams: sorted keys, (U,), and the sum of each, (U,).

    Args:
        tables: sorted keys and their counts; they are taken one after another, and never all held at once.
    """
    pending: list[_Counts] = []
    for table in tables:
        pending.append(table)
        n_new = sum(len(keys) for keys, _ in pending[1:])
        if n_new > max(_ENTRIES_AT_ONCE, len(pending[0][0]) // 2):
            pending = [_sum_of(pending)]
    return pending[0] if len(pending) == 1 else _sum_of(pending)


def _sum_of(tables: Sequence[_Counts]) -> _Counts:
    """Sum range by range of the keys, which are spread evenly: all of them at once would be sorted in four copies."""
    most = sum(len(keys) for keys, _ in tables)
    n_ranges = most // _SORTED_AT_ONCE + 1
    edges = np.arange(1, n_ranges, dtype=np.uint64) * np.uint64((2**64 - 1) // n_ranges)
    bounds = [[0, *np.searchsorted(keys, edges).tolist(), len(keys)] for keys, _ in tables]
    sums = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.int64)
    end = 0
    for number in range(n_ranges):
        parts = [slice(*bound[number : number + 2]) for bound in bounds]
        some = [(keys[part], counts[part]) for (keys, counts), part in zip(tables, parts, strict=True)]
        keys, counts = _sorted_sum(some)
        start, end = end, end + len(keys)
        sums[0][start:end], sums[1][start:end] = keys, counts
    return sums[0][:end], sums[1][:end]


def _sorted_sum(tables: Sequence[_Counts]) -> _Counts:
    keys = np.concatenate([np.empty(0, dtype=np.uint64), *(table[0] for table in tables)])
    counts = np.concatenate([np.empty(0, dtype=np.int64), *(table[1] for table in tables)])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), dtype=bool), keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


@dataclass(frozen=True, slots=True)
class NgramTable:
    """How often each n-gram of one order occurs in each caption.

    Attributes:
        keys: (U,) uint64 distinct n-grams, sorted.
        caption: (E,) int64.
        item: (E,) int64 position in `keys`.
        count: (E,) int64, at least 1.
    """

    keys: NDArray[np.uint64]
    caption: NDArray[np.int64]
    item: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: TokenSequences, vocabulary: Vocabulary, order: int) -> NgramTable:
        """Count the n-grams of captions; entries are sorted by caption and n-gram."""
        all_keys, caption = ngram_keys(sequences, vocabulary, order)
        keys, items = np.unique(all_keys, return_inverse=True)
        n_items = max(len(keys), 1)
        pairs, count = _runs(np.sort(caption * n_items + items))
        return cls(keys, pairs // n_items, pairs % n_items, count)


class ReferenceNgrams:
    """The n-grams of one order of human captions, sorted so that those of an image are found at once.

    Attributes:
        keys: (U,) uint64 distinct n-grams, sorted.
        item: (E,) int64 n-gram of each entry; entries are sorted by image, n-gram and caption.
        caption: (E,) int64.
        count: (E,) int64.
    """

    def __init__(
        self,
        sequences: TokenSequences,
        vocabulary: Vocabulary,
        order: int,
        image_of_caption: NDArray[np.int64],
    ) -> None:
        self.order = order
        all_keys, caption = ngram_keys(sequences, vocabulary, order)
        self.keys, items = np.unique(all_keys, return_inverse=True)
        n_captions = max(len(sequences), 1)
        # One sort of plain integers: captions are numbered image after image.
        image_item = image_of_caption[caption] * max(len(self.keys), 1) + items
        assert len(image_item) == 0 or int(image_item.max()) < 2**62 // n_captions, "too many n-grams for one index"
        entries, self.count = _runs(np.sort(image_item * n_captions + caption))
        self.caption = entries % n_captions
        self._image_item = entries // n_captions
        self.item = self._image_item % max(len(self.keys), 1)

    def document_counts(self) -> NDArray[np.int64]:
        """(U,) number of images whose captions contain each n-gram."""
        distinct, _ = _runs(self._image_item)
        return np.bincount(distinct % max(len(self.keys), 1), minlength=len(self.keys))

    def join(self, table: NgramTable, image: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pair the entries of candidate captions with those of the human captions of the same image.

        Args:
            table: n-grams of C candidates.
            image: (C,) image of each candidate.

        Returns:
            (J,) entries of `table`, ascending, and (J,) entries of this index that hold the same n-gram.
        """
        if not len(self.keys):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        position = np.minimum(np.searchsorted(self.keys, table.keys), len(self.keys) - 1)
        is_known = self.keys[position] == table.keys
        known = np.flatnonzero(is_known[table.item])
        wanted = image[table.caption[known]] * len(self.keys) + position[table.item[known]]
        start = np.searchsorted(self._image_item, wanted, side="left")
        n_found = np.searchsorted(self._image_item, wanted, side="right") - start
        before = np.cumsum(n_found) - n_found
        ours = np.repeat(known, n_found)
        return ours, np.arange(len(ours)) + np.repeat(start - before, n_found)
