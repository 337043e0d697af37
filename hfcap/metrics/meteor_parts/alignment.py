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

from hfcap.metrics.meteor_parts.matching import EXACT, Integers, Matches, expand

BEAM = 40
LONGEST_TOGETHER = 62
"""Most words of a candidate or reference that `align_together` takes: one bit per word."""

_COVER_BITS, _CHUNK_BITS, _DISTANCE_BITS = 8, 7, 30


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
        cover: words covered, as the ordering counts them.
        chunks: closed chunks.
        distance: what was charged.
        used: bit i is set when word i of the candidate is matched.
        busy_until: first reference position after the last match.
        end: candidate position after the last match while its chunk is open, else -1.
    """

    pair: Integers
    cover: Integers
    chunks: Integers
    distance: Integers
    used: Integers
    busy_until: Integers
    end: Integers

    @classmethod
    def empty(cls, n_pairs: int) -> _Paths:
        """Return one path of no match for each pair."""
        zeros = np.zeros(n_pairs, dtype=np.int64)
        return cls(np.arange(n_pairs), zeros, zeros, zeros, zeros, zeros, zeros - 1)

    def take(self, rows: Integers) -> _Paths:
        """Return these paths, in this order."""
        return _Paths(*(values[rows] for values in vars(self).values()))

    def best(self, n_pairs: int) -> Integers:
        """Rows in the order of the search, at most BEAM per pair."""
        if len(self.pair) == n_pairs:
            return np.arange(n_pairs)
        key = (self.pair << _COVER_BITS) + ((1 << _COVER_BITS) - 1 - self.cover)
        key = (((key << _CHUNK_BITS) + self.chunks) << _DISTANCE_BITS) + self.distance
        order = np.argsort(key, kind="stable")
        count = np.bincount(self.pair, minlength=n_pairs)
        if int(count.max()) <= BEAM:
            return order
        rank = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        return order[rank < BEAM]


class _Search:
    """The matches of Q pairs in the layout of the search."""

    def __init__(self, matches: Matches, lengths: Integers, reference_lengths: Integers) -> None:
        self.n_pairs = len(lengths)
        self.n_steps = int(reference_lengths.max(initial=0)) + 1
        place = matches.pair * self.n_steps + matches.reference_start
        counts = np.bincount(place, minlength=self.n_pairs * self.n_steps)
        self.counts = counts.reshape(self.n_pairs, self.n_steps)
        self.first = (np.cumsum(counts) - counts).reshape(self.n_pairs, self.n_steps)
        self.start, self.end = matches.start, matches.start + matches.length
        self.reference_end = matches.reference_start + matches.reference_length
        self.cover = _covered(matches)
        self.charge = np.abs(matches.start - matches.reference_start)
        self.words = ((np.int64(1) << matches.length) - 1) << matches.start
        self.is_only_choice = _only_choices(matches, lengths, reference_lengths)

    def step(self, paths: _Paths, position: int) -> tuple[_Paths, Integers, Integers]:
        """Extend all paths at one reference position: new paths, the row each came from, its match (-1 = none)."""
        waits = position < paths.busy_until
        count = np.where(waits, 0, self.counts[paths.pair, position])
        first = self.first[paths.pair, position]
        only = np.zeros(len(count), dtype=bool)
        some = count == 1
        only[some] = self.is_only_choice[first[some]]
        children = count + 1 - only
        if int(children.max(initial=1)) == 1 and not only.any():
            closes = (paths.end >= 0) & ~waits
            parent, match = np.arange(len(count)), np.full(len(count), -1, dtype=np.int64)
            new = _Paths(*vars(paths).values())
            new.chunks, new.end = paths.chunks + closes, np.where(waits, paths.end, -1)
            return new, parent, match
        parent, number = expand(np.zeros(len(count), dtype=np.int64), children)
        is_match = number < count[parent]
        match = np.where(is_match, first[parent] + number, -1)
        free = ~is_match | ((paths.used[parent] & self.words[match]) == 0)
        charge = np.where(is_match & free, self.charge[match], 0)
        charged = np.cumsum(charge) - charge
        charged -= charged[np.cumsum(children) - children][parent]
        kept = np.flatnonzero(free)
        parent, match, charged, is_match = parent[kept], match[kept], charged[kept], is_match[kept]
        new = paths.take(parent)
        waits = waits[parent]
        new.chunks += (new.end >= 0) & np.where(is_match, new.end != self.start[match], ~waits)
        new.distance += charged
        new.cover += np.where(is_match, self.cover[match], 0)
        new.used |= np.where(is_match, self.words[match], 0)
        new.busy_until = np.where(is_match, self.reference_end[match], new.busy_until)
        new.end = np.where(is_match, self.end[match], np.where(waits, new.end, -1))
        return new, parent, match

    def run(self) -> Alignment:
        """Search all pairs together and trace the best path of each back to its matches."""
        paths = _Paths.empty(self.n_pairs)
        history: list[tuple[Integers, Integers]] = []
        # The last step is after all references: it closes the open chunks and sorts once more.
        for position in range(self.n_steps):
            paths, parent, match = self.step(paths, position)
            order = paths.best(self.n_pairs)
            if len(order) != self.n_pairs or len(parent) != self.n_pairs:
                paths, parent, match = paths.take(order), parent[order], match[order]
            history.append((parent, match))
        row = np.searchsorted(paths.pair, np.arange(self.n_pairs))
        chunks = paths.chunks[row]
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
