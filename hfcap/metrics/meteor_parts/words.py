"""What METEOR knows of single words, looked up once per distinct word, however many captions come."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.hashing import word_hashes, word_shifts
from hfcap.metrics.meteor_parts.index import MeteorIndex, find_rows
from hfcap.metrics.meteor_parts.stemmer import stem

Integers = NDArray[np.int64]

# WordNet's rules of detachment; the first that leads to a known word is the only one used.
_DETACHMENTS = (
    *(("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man")),
    *(("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)
_LAST_LETTERS = tuple({ending[-1] for ending, _ in _DETACHMENTS})


def expand(starts: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Return, for each element of slices starts[k] .. starts[k] + counts[k], its k and its position."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner] + starts[owner]


class PairTable:
    """A set of ordered pairs of small integers with a value each, and quick refusals of nearly everything else.

    Args:
        first, second: (P,) the pairs. values: (P,) of each. size: the integers are smaller.

    Attributes:
        bits: (size,) uint64, one bit for each integer.
        partners: (size,) uint64, the bits of all that it is paired with, either way round: two integers are no pair
            where `partners[one] & bits[other]` is 0.
    """

    _BITS = 20

    def __init__(self, first: Integers, second: Integers, values: Integers, size: int) -> None:
        keys = first * size + second
        order = np.argsort(keys, kind="stable")
        self._size = size
        self._keys = keys[order]
        self._values = values[order]
        self._seen = np.zeros(1 << self._BITS, dtype=bool)
        self._seen[self._slots(self._keys)] = True
        self.bits = np.uint64(1) << (_mixed(np.arange(size)) >> np.uint64(58))
        self.partners = np.zeros(size, dtype=np.uint64)
        np.bitwise_or.at(self.partners, first, self.bits[second])
        np.bitwise_or.at(self.partners, second, self.bits[first])

    def _slots(self, keys: Integers) -> Integers:
        return (_mixed(keys) >> np.uint64(64 - self._BITS)).astype(np.int64)

    def find(self, first: Integers, second: Integers) -> tuple[Integers, Integers]:
        """Return the positions of the pairs that are in the table, and their values."""
        keys = first * self._size + second
        likely = np.flatnonzero(self._seen[self._slots(keys)])
        if len(self._keys) == 0 or len(likely) == 0:
            return likely[:0], likely[:0]
        rows = np.minimum(np.searchsorted(self._keys, keys[likely]), len(self._keys) - 1)
        found = self._keys[rows] == keys[likely]
        return likely[found], self._values[rows[found]]


def _mixed(keys: Integers) -> NDArray[np.uint64]:
    return keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


class WordTable:
    """The words of captions with everything about them that does not depend on the caption; it grows.

    Shapes: V words.

    Attributes:
        index: METEOR's resources.
        is_function: (V,) bool, words that count less.
        stems: (V,) int64 number of each word's stem.
        hashes, shifts: (V,) uint64 of phrases (see hashing.py).
    """

    def __init__(self, index: MeteorIndex) -> None:
        self.index = index
        self._number_of: dict[str, int] = {}
        self._stem_numbers: dict[str, int] = {}
        self.is_function = np.empty(0, dtype=bool)
        self.stems = np.empty(0, dtype=np.int64)
        self.hashes = np.empty(0, dtype=np.uint64)
        self.shifts = np.empty(0, dtype=np.uint64)
        self._synset_owner = np.empty(0, dtype=np.int64)
        self._synsets = np.empty(0, dtype=np.int64)
        self._synonyms = PairTable(*(np.empty(0, dtype=np.int64),) * 3, 0)
        self._n_related = 0

    def numbers_of(self, words: Sequence[str]) -> Integers:
        """Return the number of each word; words that were never seen are looked up."""
        numbers = np.fromiter(map(self._number_of.get, words, repeat(-1)), dtype=np.int64, count=len(words))
        new: list[str] = []
        for place in np.flatnonzero(numbers < 0).tolist():
            number = self._number_of.setdefault(words[place], len(self._number_of))
            if number == len(self.stems) + len(new):
                new.append(words[place])
            numbers[place] = number
        if new:
            self._look_up(new)
        return numbers

    def _look_up(self, new: list[str]) -> None:
        known = len(self.stems)
        function = self.index.function_words
        self.is_function = np.append(self.is_function, np.asarray([word in function for word in new], dtype=bool))
        stems = [self._stem_numbers.setdefault(stem(word), len(self._stem_numbers)) for word in new]
        self.stems = np.append(self.stems, np.asarray(stems, dtype=np.int64))
        self.hashes = np.append(self.hashes, word_hashes(new))
        self.shifts = np.append(self.shifts, word_shifts(new))
        owner, row = _synonym_rows(self.index, new)
        starts = self.index.synset_starts[row].astype(np.int64)
        entry, position = expand(starts, self.index.synset_starts[row + 1] - starts)
        self._synset_owner = np.append(self._synset_owner, owner[entry] + known)
        self._synsets = np.append(self._synsets, self.index.synsets[position])

    @property
    def synonyms(self) -> PairTable:
        """Different words that share a WordNet synset; related when it is asked for, since each new word changes it."""
        if self._n_related < len(self.stems):
            first, second = _sharing(self._synset_owner, self._synsets, len(self.stems))
            self._synonyms = PairTable(first, second, np.zeros_like(first), len(self.stems))
            self._n_related = len(self.stems)
        return self._synonyms


def _synonym_rows(index: MeteorIndex, words: Sequence[str]) -> tuple[Integers, Integers]:
    """(word, row of `index.synonym_words`) for each word and its base forms."""
    hashes = word_hashes(words)
    direct = find_rows(index.synonym_words, hashes)
    irregular = find_rows(index.irregular_forms, hashes)
    owners = [np.flatnonzero(direct >= 0)]
    rows = [direct[direct >= 0]]
    has_list = np.flatnonzero(irregular >= 0)
    starts = index.base_starts[irregular[has_list]].astype(np.int64)
    owner, position = expand(starts, index.base_starts[irregular[has_list] + 1] - starts)
    owners.append(has_list[owner])
    rows.append(index.bases[position].astype(np.int64))
    shortened: list[str] = []
    of_word: list[int] = []
    for number in np.flatnonzero(irregular < 0).tolist():
        word = words[number]
        if len(word) > 2 and word.endswith(_LAST_LETTERS) and not word.endswith("ss"):
            for ending, replacement in _DETACHMENTS:
                if word.endswith(ending):
                    shortened.append(word[: -len(ending)] + replacement)
                    of_word.append(number)
    known = find_rows(index.synonym_words, word_hashes(shortened))
    chosen, first = np.unique(np.asarray(of_word, dtype=np.int64)[known >= 0], return_index=True)
    owners.append(chosen)
    rows.append(known[known >= 0][first])
    return np.concatenate(owners), np.concatenate(rows)


def _sharing(word: Integers, synset: Integers, n_words: int) -> tuple[Integers, Integers]:
    """Pairs of different words that share a WordNet synset, both ways round, of (word, synset) entries."""
    order = np.argsort(synset, kind="stable")
    word, synset = word[order], synset[order]
    borders = np.flatnonzero(np.concatenate(([True], synset[1:] != synset[:-1]))) if len(synset) else word
    sizes = np.diff(np.concatenate((borders, [len(word)])))
    member, partner = expand(np.repeat(borders, sizes), np.repeat(sizes, sizes))
    keys = np.sort(word[member] * n_words + word[partner])
    keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))] if len(keys) else keys
    first, second = keys // max(1, n_words), keys % max(1, n_words)
    return first[first != second], second[first != second]
