"""Which words and phrases of a candidate and a reference METEOR may align: exact, stem, synonym, paraphrase.

Everything is done once per distinct word, phrase or caption, and for many caption pairs at a time.
Shapes: C distinct captions, T words in all of them, V distinct words, Q caption pairs, M possible matches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.hashing import joined
from hfcap.metrics.meteor_parts.index import MeteorIndex, find_rows, maybe_phrases
from hfcap.metrics.meteor_parts.words import Integers, PairTable, WordTable, expand

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
N_MODULES = 4

_LONGEST_PHRASE = 7
# They stand for no word, and as positions from the end for the entries that are appended to what is known of words.
_NO_WORD, _NO_OTHER = -1, -2
_ENDS = np.asarray([_NO_OTHER, _NO_WORD], dtype=np.int32)
_NO_BITS = np.zeros(2, dtype=np.uint64)


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

    def of_pairs(self, chosen: NDArray[np.bool_]) -> Matches:
        """Return the matches of some of the Q pairs, given by (Q,) bool; these are numbered again."""
        if chosen.all():
            return self
        kept = np.flatnonzero(chosen[self.pair])
        number = np.cumsum(chosen) - 1
        others = (self.reference_start, self.start, self.reference_length, self.length, self.module)
        return Matches(number[self.pair[kept]], *(column[kept] for column in others))


def _places(found: NDArray[np.bool_]) -> tuple[Integers, Integers, Integers]:
    """Where an array of three axes is true; numpy's own `nonzero` takes many times as long."""
    row, last = np.divmod(np.flatnonzero(found), found.shape[2])
    first, middle = np.divmod(row, found.shape[1])
    return first, middle, last


class MatchFinder:
    """Distinct captions with everything about their words that does not depend on the partner.

    Args:
        table: knows the words.
        words: (T,) numbers in `table` of the normalised words of all captions, one caption after another.
        lengths: (C,) words of each caption.
    """

    def __init__(self, table: WordTable, words: Integers, lengths: Integers) -> None:
        self.words = words
        self.lengths = lengths
        self.offsets = np.concatenate(([0], np.cumsum(lengths)))
        self.is_function_word = table.is_function[words]
        self._table = table
        self._find_phrases()

    def _find_phrases(self) -> None:
        """Find the n-grams that have a paraphrase among the n-grams of these captions."""
        index = self._table.index
        hashes, shifts = self._table.hashes[self.words], self._table.shifts[self.words]
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
        self._paraphrases = PairTable(owner, partner, rank, len(present))
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
        width, reference_width = int(self.lengths[candidates].max()), int(self.lengths[references].max())
        # Nothing equals what stands where there is no word: no cell of the comparisons needs to be masked.
        here, there = self._padded(candidates, width, _NO_WORD), self._padded(references, reference_width, _NO_OTHER)
        # (Q, reference word, word): plain comparisons of small arrays, of which few are true.
        is_same = there[:, :, None] == here[:, None, :]
        shared = min(width, reference_width)
        same_place = is_same[:, np.arange(shared), np.arange(shared)].sum(axis=1)
        lengths = self.lengths[candidates]
        # Captions with the same words match exactly and in no other way.
        identical = (lengths == self.lengths[references]) & (same_place == lengths)
        synonyms = self._table.synonyms
        stems = np.append(self._table.stems.astype(np.int32), _ENDS)
        bits, partners = (np.append(each, _NO_BITS) for each in (synonyms.bits, synonyms.partners))
        # Equal words have equal stems.
        is_stem = (stems[there][:, :, None] == stems[here][:, None, :]) ^ is_same
        pair, reference_start, start = _places((partners[there][:, :, None] & bits[here][:, None, :]) != 0)
        other = np.flatnonzero(~is_same[pair, reference_start, start] & ~identical[pair])
        pair, reference_start, start = pair[other], reference_start[other], start[other]
        words = (here[pair, start].astype(np.int64), there[pair, reference_start].astype(np.int64))
        chosen = synonyms.find(*words)[0]
        stem_places = _places(is_stem)
        other = np.flatnonzero(~identical[stem_places[0]])
        parts = (
            _places(is_same),
            tuple(axis[other] for axis in stem_places),
            (pair[chosen], reference_start[chosen], start[chosen]),
        )
        pair, reference_start, start = (np.concatenate([part[axis] for part in parts]) for axis in range(3))
        module = np.repeat([EXACT, STEM, SYNONYM], [len(part[0]) for part in parts])
        one = np.ones_like(pair)
        return identical, (pair, reference_start, start, one, one, module, module, start)

    def _padded(self, captions: Integers, width: int, filler: int) -> NDArray[np.int32]:
        """(Q, width) words of captions, `filler` where there is none."""
        place = np.arange(width)
        is_word = place < self.lengths[captions][:, None]
        words = np.full(is_word.shape, filler, dtype=np.int32)
        words[is_word] = self.words[(self.offsets[captions][:, None] + place)[is_word]]
        return words

    def _likely_phrases(
        self, candidates: Integers, references: Integers, identical: NDArray[np.bool_]
    ) -> tuple[Integers, Integers, Integers]:
        """Pair, phrase of the candidate and phrase of the reference of all that may be paraphrases, and some more."""
        first, reference_first = self._phrase_offsets[candidates], self._phrase_offsets[references]
        count = self._phrase_offsets[candidates + 1] - first
        reference_count = self._phrase_offsets[references + 1] - reference_first
        pair, other = expand(reference_first, np.where(identical, 0, reference_count))
        place = np.arange(int(count.max(initial=0)))
        is_phrase = place < count[:, None]
        bits = np.zeros(is_phrase.shape, dtype=np.uint64)
        phrases = (first[:, None] + place)[is_phrase]
        bits[is_phrase] = self._paraphrases.bits[self._phrase[phrases]]
        partners = self._paraphrases.partners[self._phrase[other]]
        row, column = np.divmod(np.flatnonzero(bits[pair] & partners[:, None]), max(len(place), 1))
        return pair[row], first[pair[row]] + column, other[row]

    def _phrase_matches(
        self, candidates: Integers, references: Integers, identical: NDArray[np.bool_]
    ) -> tuple[Integers, ...]:
        """The columns of the paraphrase matches."""
        pair, own, other = self._likely_phrases(candidates, references, identical)
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
