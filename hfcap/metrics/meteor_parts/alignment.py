"""METEOR's alignment: a beam search over reference positions, for many caption pairs at once.

A path is a partial alignment. At each position it is extended by every possible match whose candidate words are free,
in their order, and last by nothing. Paths are kept in the order (more covered words, fewer closed chunks, less
distance), ties in the order they came about, 40 at most. Three peculiarities of METEOR 1.5 decide between alignments:
a match that is not exact covers half its words, rounded down on each side, so that a single stem match covers nothing;
the distance of a match is charged to the path it extends, and therefore to the extensions that come after it; a chunk
counts from the moment it is closed, by an unmatched position or by a match elsewhere.
A match that is the only one of all its words on both sides is always taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.matching import EXACT, Matches
from hfcap.metrics.meteor_parts.words import Integers, expand

BEAM = 40
LONGEST_TOGETHER = 62
"""Most words of a candidate or reference that `align_together` takes: one bit per word."""

_COVER_BITS, _CHUNK_BITS, _DISTANCE_BITS = 8, 7, 30
_CHUNK_SHIFT = _DISTANCE_BITS
_COVER_SHIFT = _CHUNK_SHIFT + _CHUNK_BITS
_PAIR_SHIFT = _COVER_SHIFT + _COVER_BITS


@dataclass(frozen=True)
class Alignment:
    """The alignments of Q pairs.

    Attributes:
        chosen: positions in Matches of the matches that were chosen, in any order.
        chunks: (Q,) int64, runs of matches that are adjacent on both sides.
    """

    chosen: Integers
    chunks: Integers


def _only_choices(matches: Matches, lengths: Integers, reference_lengths: Integers) -> NDArray[np.bool_]:
    """(M,) whether no other match touches any word of this one, on either side."""

    def is_alone(start: Integers, length: Integers, sizes: Integers) -> NDArray[np.bool_]:
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        first = offsets[matches.pair] + start
        _, touched = expand(first, length)
        uses = np.concatenate(([0], np.cumsum(np.bincount(touched, minlength=int(offsets[-1])))))
        return uses[first + length] - uses[first] == length

    return is_alone(matches.start, matches.length, lengths) & is_alone(
        matches.reference_start, matches.reference_length, reference_lengths
    )


def _covered(matches: Matches) -> Integers:
    halves = matches.length // 2 + matches.reference_length // 2
    return np.where(matches.module == EXACT, matches.length + matches.reference_length, halves)


@dataclass
class _Paths:
    """Partial alignments of all pairs, grouped by pair, best first; all arrays have one entry per path.

    Attributes:
        key: the pair, words that are not covered, closed chunks and what was charged, in this order from the highest
            bits on: the order of the search is that of these numbers.
        used: bit i is set when word i of the candidate is matched.
        busy_until: first reference position after the last match.
        end: candidate position after the last match while its chunk is open, else -1.
    """

    key: Integers
    used: Integers
    busy_until: Integers
    end: Integers

    @property
    def pair(self) -> Integers:
        """Which pair each path belongs to."""
        return self.key >> _PAIR_SHIFT

    @classmethod
    def empty(cls, n_pairs: int) -> _Paths:
        """Return one path of no match for each pair."""
        zeros = np.zeros(n_pairs, dtype=np.int64)
        nothing_covered = ((1 << _COVER_BITS) - 1) << _COVER_SHIFT
        return cls((np.arange(n_pairs) << _PAIR_SHIFT) + nothing_covered, zeros, zeros, zeros - 1)


def _best(key: Integers, n_pairs: int) -> Integers:
    """Rows in the order of the search, at most BEAM per pair."""
    order = np.argsort(key, kind="stable")
    if len(key) < n_pairs + BEAM:  # every pair has a path, so that none has more than BEAM
        return order
    count = np.bincount(key >> _PAIR_SHIFT, minlength=n_pairs)
    if int(count.max()) <= BEAM:
        return order
    rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    return order[rank < BEAM]


class _Search:
    """The matches of Q pairs in the layout of the search; what is known of matches ends with an entry for no match."""

    def __init__(self, matches: Matches, lengths: Integers, reference_lengths: Integers) -> None:
        self.n_pairs = len(lengths)
        self.n_steps = int(reference_lengths.max(initial=0)) + 1
        place = matches.reference_start * self.n_pairs + matches.pair
        counts = np.bincount(place, minlength=self.n_pairs * self.n_steps)
        self.counts = counts.reshape(self.n_steps, self.n_pairs)
        by_pair = counts.reshape(self.n_steps, self.n_pairs).T.ravel()
        first = (np.cumsum(by_pair) - by_pair).reshape(self.n_pairs, self.n_steps)
        self.first = np.ascontiguousarray(first.T)
        self.start = np.append(matches.start, -2)
        self.end = np.append(matches.start + matches.length, -1)
        self.reference_end = np.append(matches.reference_start + matches.reference_length, 0)
        self.cover = np.append(_covered(matches) << _COVER_SHIFT, 0)
        self.charge = np.abs(matches.start - matches.reference_start)
        self.words = np.append(((np.int64(1) << matches.length) - 1) << matches.start, 0)
        self.is_only_choice = _only_choices(matches, lengths, reference_lengths)

    def step(self, paths: _Paths, position: int) -> tuple[_Paths, Integers, Integers]:
        """Extend all paths at one reference position: new paths, the row each came from, its match (-1 = none)."""
        waits = position < paths.busy_until
        pair = paths.pair
        count = self.counts[position][pair]
        count[waits] = 0
        first = self.first[position][pair]
        # Where the only match of its words stands, nothing else can come.
        is_only = np.zeros(len(count), dtype=bool)
        single = np.flatnonzero(count == 1)
        is_only[single] = self.is_only_choice[first[single]]
        children = count + 1 - is_only
        if int(children.max(initial=1)) == 1:
            parent = np.arange(len(count))
            match = np.where(is_only, first, -1)
            charged = np.zeros(1, dtype=np.int64)
        else:
            parent, number = expand(np.zeros(len(count), dtype=np.int64), children)
            is_match = number < count[parent]
            match = np.where(is_match, first[parent] + number, -1)
            free = (paths.used[parent] & self.words[match]) == 0
            charge = np.zeros(len(match), dtype=np.int64)
            charging = np.flatnonzero(free & is_match)
            charge[charging] = self.charge[match[charging]]
            before = np.cumsum(charge) - charge
            charged = before - before[np.cumsum(children) - children][parent]
            if not free.all():
                kept = np.flatnonzero(free)
                parent, match, charged = parent[kept], match[kept], charged[kept]
        waits, end = waits[parent], paths.end[parent]
        closes = (end >= 0) & (end != self.start[match]) & ~waits
        key = paths.key[parent] + (closes.astype(np.int64) << _CHUNK_SHIFT) + charged - self.cover[match]
        if len(key) != self.n_pairs:
            order = _best(key, self.n_pairs)
            key, parent, match, waits, end = key[order], parent[order], match[order], waits[order], end[order]
        new = _Paths(
            key,
            paths.used[parent] | self.words[match],
            np.maximum(paths.busy_until[parent], self.reference_end[match]),
            np.where(waits, end, self.end[match]),
        )
        return new, parent, match

    def run(self) -> Alignment:
        """Search all pairs together and trace the best path of each back to its matches."""
        paths = _Paths.empty(self.n_pairs)
        history: list[tuple[Integers, Integers]] = []
        # The last step is after all references: it closes the open chunks and sorts once more.
        for position in range(self.n_steps):
            paths, parent, match = self.step(paths, position)
            history.append((parent, match))
        row = np.searchsorted(paths.pair, np.arange(self.n_pairs))
        chunks = (paths.key[row] >> _CHUNK_SHIFT) & ((1 << _CHUNK_BITS) - 1)
        chosen: list[Integers] = []
        for parent, match in reversed(history):
            taken = match[row]
            chosen.append(taken[taken >= 0])
            row = parent[row]
        return Alignment(np.concatenate(chosen), chunks)


def align_together(matches: Matches, lengths: Integers, reference_lengths: Integers) -> Alignment:
    """Align Q pairs of captions of at most LONGEST_TOGETHER words.

    Args:
        matches: the possible matches.
        lengths: (Q,) words of the candidates.
        reference_lengths: (Q,) words of the references.
    """
    if len(lengths) == 0:
        return Alignment(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert max(int(lengths.max()), int(reference_lengths.max())) <= LONGEST_TOGETHER
    if len(matches.pair) == 0:
        return Alignment(np.zeros(0, dtype=np.int64), np.zeros(len(lengths), dtype=np.int64))
    return _Search(matches, lengths, reference_lengths).run()


def align_alone(matches: Matches, length: int, reference_length: int) -> Alignment:
    """Align one pair of captions of any length: the same search, path by path."""
    sizes = np.asarray([length]), np.asarray([reference_length])
    is_only_choice = _only_choices(matches, *sizes).tolist()
    covered = _covered(matches).tolist()
    starts, lengths = matches.start.tolist(), matches.length.tolist()
    reference_lengths = matches.reference_length.tolist()
    at_position: list[list[int]] = [[] for _ in range(reference_length + 1)]
    for number, position in enumerate(matches.reference_start.tolist()):
        at_position[position].append(number)
    # (negated cover, closed chunks, distance), used words, busy until, end of the open chunk, chosen matches
    paths: list[tuple[tuple[int, int, int], int, int, int, tuple[int, ...]]] = [((0, 0, 0), 0, 0, -1, ())]
    for position, numbers in enumerate(at_position):
        longer = []
        for path in paths:
            (cover, chunks, distance), used, busy_until, end, chosen = path
            if position < busy_until:
                longer.append(path)
                continue
            for number in numbers:
                words = ((1 << lengths[number]) - 1) << starts[number]
                if used & words:
                    continue
                key = (cover - covered[number], chunks + (end >= 0 and end != starts[number]), distance)
                after = position + reference_lengths[number]
                longer.append((key, used | words, after, starts[number] + lengths[number], (*chosen, number)))
                distance += abs(starts[number] - position)
            if not (len(numbers) == 1 and is_only_choice[numbers[0]]):
                longer.append(((cover, chunks + (end >= 0), distance), used, busy_until, -1, chosen))
        longer.sort(key=lambda path: path[0])
        paths = longer[:BEAM]
    (_, chunks, _), _, _, _, chosen = paths[0]
    return Alignment(np.asarray(chosen, dtype=np.int64), np.asarray([chunks]))
