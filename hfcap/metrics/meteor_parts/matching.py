"""Which words and phrases of a candidate and a reference METEOR may align: exact, stem, synonym, paraphrase.

Everything is done once per distinct word, phrase or caption, and for many caption pairs at a time.
Shapes: C distinct captions, T words in all of them, V distinct words, Q caption pairs, M possible matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.hashing import joined, word_hashes, word_shifts
from hfcap.metrics.meteor_parts.index import MeteorIndex, find_rows, maybe_phrases
from hfcap.metrics.meteor_parts.stemmer import stem

Integers = NDArray[np.int64]

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
N_MODULES = 4

_LONGEST_PHRASE = 7

# WordNet's rules of detachment; the first that leads to a known word is the only one used.
_DETACHMENTS = (
    *(("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man")),
    *(("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)


def expand(starts: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Return, for each element of slices starts[k] .. starts[k] + counts[k], its k and its position."""
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - first[owner] + starts[owner]


class _PairTable:
    """A set of pairs of small integers with a value each, and a quick refusal of nearly everything else."""

    _BITS = 20

    def __init__(self, first: Integers, second: Integers, values: Integers, size: int) -> None:
        keys = first * size + second
        order = np.argsort(keys, kind="stable")
        self._size = size
        self._keys = keys[order]
        self._values = values[order]
        self._seen = np.zeros(1 << self._BITS, dtype=bool)
        self._seen[self._slots(self._keys)] = True

    def _slots(self, keys: Integers) -> Integers:
        mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(64 - self._BITS)).astype(np.int64)

    def find(self, first: Integers, second: Integers) -> tuple[Integers, Integers]:
        """Return the positions of the pairs that are in the table, and their values."""
        keys = first * self._size + second
        likely = np.flatnonzero(self._seen[self._slots(keys)])
        if len(self._keys) == 0 or len(likely) == 0:
            return likely[:0], likely[:0]
        rows = np.minimum(np.searchsorted(self._keys, keys[likely]), len(self._keys) - 1)
        found = self._keys[rows] == keys[likely]
        return likely[found], self._values[rows[found]]


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
        if len(word) > 2 and not word.endswith("ss"):
            for ending, replacement in _DETACHMENTS:
                if word.endswith(ending):
                    shortened.append(word[: -len(ending)] + replacement)
                    of_word.append(number)
    known = find_rows(index.synonym_words, word_hashes(shortened))
    chosen, first = np.unique(np.asarray(of_word, dtype=np.int64)[known >= 0], return_index=True)
    owners.append(chosen)
    rows.append(known[known >= 0][first])
    return np.concatenate(owners), np.concatenate(rows)


def _synonym_pairs(index: MeteorIndex, words: Sequence[str]) -> tuple[Integers, Integers]:
    """Pairs of different words that share a WordNet synset, both ways round."""
    owner, row = _synonym_rows(index, words)
    starts = index.synset_starts[row].astype(np.int64)
    entry, position = expand(starts, index.synset_starts[row + 1] - starts)
    word, synset = owner[entry], index.synsets[position]
    order = np.argsort(synset, kind="stable")
    word, synset = word[order], synset[order]
    borders = np.flatnonzero(np.concatenate(([True], synset[1:] != synset[:-1]))) if len(synset) else word
    sizes = np.diff(np.concatenate((borders, [len(word)])))
    member, partner = expand(np.repeat(borders, sizes), np.repeat(sizes, sizes))
    keys = np.unique(word[member] * len(words) + word[partner])
    first, second = keys // max(1, len(words)), keys % max(1, len(words))
    return first[first != second], second[first != second]


@dataclass(frozen=True)
class Matches:
    """All possible matches of Q caption pairs, ordered by pair, reference position and the order of METEOR's search.

    Attributes:
        pair, reference_start, start: (M,) int64, which pair, where in the reference, where in the candidate.
        reference_length, length: (M,) int64, words covered on either side.
        module: (M,) int64, EXACT .. PARAPHRASE.
    """

    pair: Integers
    reference_start: Integers
    start: Integers
    reference_length: Integers
    length: Integers
    module: Integers


class MatchFinder:
    """Distinct captions with everything about their words that does not depend on the partner.

    Args:
        index: synonyms and paraphrases.
        captions: C lists of normalised words.
    """

    def __init__(self, index: MeteorIndex, captions: Sequence[Sequence[str]]) -> None:
        number_of: dict[str, int] = {}
        flat = [number_of.setdefault(word, len(number_of)) for word in chain.from_iterable(captions)]
        self.words = np.asarray(flat, dtype=np.int64)
        self.lengths = np.asarray([len(caption) for caption in captions], dtype=np.int64)
        self.offsets = np.concatenate(([0], np.cumsum(self.lengths)))
        vocabulary = list(number_of)
        self.is_function_word = np.asarray([word in index.function_words for word in vocabulary], dtype=bool)[
            self.words
        ]
        stem_numbers: dict[str, int] = {}
        self._stems = np.asarray(
            [stem_numbers.setdefault(stem(word), len(stem_numbers)) for word in vocabulary], dtype=np.int64
        )
        first, second = _synonym_pairs(index, vocabulary)
        self._synonyms = _PairTable(first, second, np.zeros_like(first), len(vocabulary))
        self._find_phrases(index, vocabulary)

    def _find_phrases(self, index: MeteorIndex, vocabulary: Sequence[str]) -> None:
        """Find the n-grams that have a paraphrase among the n-grams of these captions."""
        hashes, shifts = word_hashes(vocabulary)[self.words], word_shifts(vocabulary)[self.words]
        room = np.repeat(self.offsets[1:], self.lengths) - np.arange(len(self.words))
        tail = hashes
        positions: list[Integers] = []
        found: list[NDArray[np.uint64]] = []
        for length in range(1, _LONGEST_PHRASE + 1):
            if length > 1:
                hashes = joined(tail[: len(tail) - length + 1], shifts[: len(tail) - length + 1], hashes[1:])
            inside = np.flatnonzero((room[: len(hashes)] >= length) & maybe_phrases(index, hashes))
            positions.append(inside * (_LONGEST_PHRASE + 1) + length)
            found.append(hashes[inside])
            if len(hashes) <= 1:
                break
        distinct, number = np.unique(np.concatenate(found), return_inverse=True)
        row_of_distinct = find_rows(index.phrases, distinct)
        self._relate_phrases(index, row_of_distinct[row_of_distinct >= 0])
        local = np.cumsum(row_of_distinct >= 0) - 1
        place = np.concatenate(positions)
        useful = row_of_distinct[number] >= 0
        useful[useful] = self._is_related[local[number[useful]]]
        order = np.argsort(place[useful])
        place = place[useful][order]
        self._phrase = local[number[useful]][order]
        self._phrase_start, self._phrase_length = place // (_LONGEST_PHRASE + 1), place % (_LONGEST_PHRASE + 1)
        self._phrase_offsets = np.searchsorted(self._phrase_start, self.offsets)

    def _relate_phrases(self, index: MeteorIndex, present: Integers) -> None:
        """Keep of the paraphrase table what is about phrases that are present (sorted rows of `index.phrases`)."""
        starts = index.paraphrase_starts[present].astype(np.int64)
        owner, position = expand(starts, index.paraphrase_starts[present + 1] - starts)
        target = index.paraphrases[position]
        local_number = np.full(len(index.phrases), -1, dtype=np.int32)
        local_number[present] = np.arange(len(present), dtype=np.int32)
        partner = local_number[target].astype(np.int64)
        inside = partner >= 0
        owner, partner, rank = owner[inside], partner[inside], (position - starts[owner])[inside]
        self._paraphrases = _PairTable(owner, partner, rank, len(present))
        self._is_related = np.zeros(len(present), dtype=bool)
        self._is_related[owner] = True
        self._is_related[partner] = True

    def find(self, candidates: Integers, references: Integers) -> Matches:
        """Return the possible matches of Q pairs of captions, given by their numbers."""
        identical, words = self._word_matches(candidates, references)
        parts = [words, self._phrase_matches(candidates, references, identical)]
        columns = [np.concatenate([part[column] for part in parts]) for column in range(8)]
        pair, reference_start, start, reference_length, length, module, stage, rank = columns
        longest = int(max(self.lengths[references].max(initial=0), 1))
        order = np.lexsort((rank, (pair * longest + reference_start) * 8 + stage))
        return Matches(*(column[order] for column in (pair, reference_start, start, reference_length, length, module)))

    def _word_matches(
        self, candidates: Integers, references: Integers
    ) -> tuple[NDArray[np.bool_], tuple[Integers, ...]]:
        """(Q,) whether both captions are the same, and the columns of the matches of single words."""
        lengths, reference_lengths = self.lengths[candidates], self.lengths[references]
        pair, cell = expand(np.zeros(len(candidates), dtype=np.int64), lengths * reference_lengths)
        reference_start, start = np.divmod(cell, np.maximum(lengths, 1)[pair])
        word = self.words[self.offsets[candidates][pair] + start]
        reference_word = self.words[self.offsets[references][pair] + reference_start]
        is_same = word == reference_word
        exact = np.flatnonzero(is_same)
        # Captions with the same words match exactly and in no other way.
        same_count = np.bincount(pair[is_same & (start == reference_start)], minlength=len(candidates))
        identical = (lengths == reference_lengths) & (same_count == lengths)
        other = np.flatnonzero(~is_same & ~identical[pair])
        stems = other[self._stems[word[other]] == self._stems[reference_word[other]]]
        synonyms = other[self._synonyms.find(word[other], reference_word[other])[0]]
        chosen = np.concatenate((exact, stems, synonyms))
        module = np.repeat([EXACT, STEM, SYNONYM], [len(exact), len(stems), len(synonyms)])
        one = np.ones_like(chosen)
        columns = (pair[chosen], reference_start[chosen], start[chosen], one, one, module, module, start[chosen])
        return identical, columns

    def _phrase_matches(
        self, candidates: Integers, references: Integers, identical: NDArray[np.bool_]
    ) -> tuple[Integers, ...]:
        """The columns of the paraphrase matches."""
        first, reference_first = self._phrase_offsets[candidates], self._phrase_offsets[references]
        count = self._phrase_offsets[candidates + 1] - first
        reference_count = self._phrase_offsets[references + 1] - reference_first
        count = np.where(identical, 0, count)
        pair, cell = expand(np.zeros(len(candidates), dtype=np.int64), count * reference_count)
        reference_cell, own_cell = np.divmod(cell, np.maximum(count, 1)[pair])
        own, other = first[pair] + own_cell, reference_first[pair] + reference_cell
        phrase, reference_phrase = self._phrase[own], self._phrase[other]
        columns: list[list[Integers]] = [[] for _ in range(8)]
        # METEOR looks the reference's phrases up first, then the candidate's: a pair that the table has both ways round
        # is found twice, and that counts when it asks whether a match is the only one.
        for stage, sides in ((PARAPHRASE, (reference_phrase, phrase)), (PARAPHRASE + 1, (phrase, reference_phrase))):
            hit, rank = self._paraphrases.find(*sides)
            start = self._phrase_start[own[hit]] - self.offsets[candidates][pair[hit]]
            length, reference_length = self._phrase_length[own[hit]], self._phrase_length[other[hit]]
            if stage == PARAPHRASE:
                order = ((reference_length << 20) + rank << 20) + start
            else:
                order = ((start << 3) + length << 20) + rank
            values = (
                *(pair[hit], self._phrase_start[other[hit]] - self.offsets[references][pair[hit]], start),
                *(reference_length, length, np.full_like(hit, PARAPHRASE), np.full_like(hit, stage), order),
            )
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return tuple(np.concatenate(column) for column in columns)
