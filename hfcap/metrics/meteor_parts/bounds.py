"""How well METEOR can score a pair of captions at most, from its possible matches alone.

An image keeps its best human caption. The search for an alignment takes most of METEOR's time, and a pair that cannot
beat one that is aligned already needs none. Shapes: Q pairs, M matches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.matching import Matches, MatchFinder
from hfcap.metrics.meteor_parts.score import ALPHA, BETA, DELTA, GAMMA, MODULE_WEIGHTS
from hfcap.metrics.meteor_parts.words import Integers, expand

Numbers = NDArray[np.float64]

SLACK = 1e-9
"""What rounding may take from a bound."""

_LEAST = float(MODULE_WEIGHTS.min()) * min(DELTA, 1 - DELTA)
"""What a matched word counts at least."""


@dataclass(frozen=True)
class _Side:
    """The candidates or the references of Q pairs.

    Attributes:
        weight: what all words count. matched: what those that have a match count, each in its best one.
        n_words: words. n_matched: words that have a match.
        n_links: neighbours that some chunk can hold together.
    """

    weight: Numbers
    matched: Numbers
    n_words: Integers
    n_matched: Integers
    n_links: Integers


def _side(
    finder: MatchFinder,
    captions: Integers,
    module: Integers,
    pair: Integers,
    start: Integers,
    length: Integers,
    follows: Integers,
) -> _Side:
    """What is known of one side.

    Args:
        captions: (Q,) which of the finder's.
        module, pair, start, length: (M,) of the matches on this side.
        follows: matches that can stand in a chunk right after another one.
    """
    sizes = finder.lengths[captions]
    owner, words = expand(finder.offsets[captions], sizes)
    value = np.where(finder.is_function_word[words], 1 - DELTA, DELTA)
    first = (np.cumsum(sizes) - sizes)[pair] + start
    covered_by, covered = expand(first, length)
    best = np.zeros(len(words))
    np.maximum.at(best, covered, MODULE_WEIGHTS[module][covered_by])
    is_linked = np.zeros(len(words), dtype=bool)  # with the word before it
    is_linked[first[follows]] = True
    phrases = np.flatnonzero(length > 1)
    is_linked[expand(first[phrases] + 1, length[phrases] - 1)[1]] = True
    counts = [np.bincount(owner, weights=of_word, minlength=len(captions)) for of_word in (best > 0, is_linked)]
    weights: list[Numbers] = [
        np.bincount(owner, weights=of_word, minlength=len(captions)).astype(np.float64)
        for of_word in (value, value * best)
    ]
    return _Side(weights[0], weights[1], sizes, counts[0].astype(np.int64), counts[1].astype(np.int64))


def _following(matches: Matches) -> Integers:
    """Matches that begin where another match of their pair ends, on both sides."""
    longest = 1 + int(max((matches.start + matches.length).max(initial=0), 1))
    longest_reference = 1 + int(max((matches.reference_start + matches.reference_length).max(initial=0), 1))

    def places(start: Integers, reference_start: Integers) -> Integers:
        return (matches.pair * longest + start) * longest_reference + reference_start

    ends = np.sort(places(matches.start + matches.length, matches.reference_start + matches.reference_length))
    starts = places(matches.start, matches.reference_start)
    return np.flatnonzero(ends[np.minimum(np.searchsorted(ends, starts), len(ends) - 1)] == starts)


def _mean(side: _Side, reference: _Side, lost: Numbers, reference_lost: Numbers) -> Numbers:
    """The weighted harmonic mean of precision and recall where matched words of some weight are left out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(side.weight > 0, (side.matched - lost) / side.weight, 0.0)
        recall = np.where(reference.weight > 0, (reference.matched - reference_lost) / reference.weight, 0.0)
        mean = 1.0 / ((1.0 - ALPHA) / precision + ALPHA / recall)
    return np.where((precision > 0) & (recall > 0), mean, 0.0)


def upper_bounds(finder: MatchFinder, matches: Matches, candidates: Integers, references: Integers) -> Numbers:
    """Return what each of Q pairs can score at most, (Q,).

    Every word counts with its best match. Chunks are at least the matched words less the neighbours that can stand in
    one. Where no phrases match, both sides have the same number of matched words: with each of the numbers that may be,
    those left out cost what a word counts at least. Where phrases do, one chunk is assumed.

    Args:
        matches: the possible matches of the pairs.
        candidates, references: (Q,) captions of the finder.
    """
    if not len(matches.pair):
        return np.zeros(len(candidates))
    follows, module, pair = _following(matches), matches.module, matches.pair
    side = _side(finder, candidates, module, pair, matches.start, matches.length, follows)
    reference = _side(finder, references, module, pair, matches.reference_start, matches.reference_length, follows)
    has_phrases = np.zeros(len(candidates), dtype=bool)
    has_phrases[pair[(matches.length > 1) | (matches.reference_length > 1)]] = True
    most = np.minimum(side.n_matched, reference.n_matched)
    links = np.where(has_phrases, most, np.minimum(side.n_links, reference.n_links))
    is_whole = (side.n_matched == side.n_words) & (reference.n_matched == reference.n_words)
    most_words = np.where(has_phrases, (side.n_matched + reference.n_matched) / 2, most)
    bounds = np.zeros(len(candidates))
    # With fewer words than it takes to make one chunk of them, nothing is gained.
    for fewer in range(int(np.maximum(most - links, 1).max())):
        words = np.where(has_phrases, most_words, most - fewer)
        chunks = np.maximum(most - fewer - links, 1)
        lost = np.where(has_phrases, 0, side.n_matched - words) * _LEAST
        reference_lost = np.where(has_phrases, 0, reference.n_matched - words) * _LEAST
        # Captions that match from beginning to end in one chunk count none.
        none = is_whole & (chunks == 1) & (fewer == 0)
        fragmentation = np.where(none, 0, chunks / np.maximum(words, 1))
        score = _mean(side, reference, lost, reference_lost) * (1.0 - GAMMA * np.minimum(fragmentation, 1) ** BETA)
        bounds = np.maximum(bounds, np.where(words > 0, score, 0.0))
    return bounds + SLACK
