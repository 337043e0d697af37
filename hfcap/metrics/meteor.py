"""METEOR 1.5 for English (Denkowski and Lavie 2014) without Java, equal to the jar that pycocoevalcap runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet
from hfcap.metrics.meteor_parts.alignment import BEAM, LONGEST_TOGETHER, align_alone, align_together
from hfcap.metrics.meteor_parts.bounds import upper_bounds
from hfcap.metrics.meteor_parts.index import INDEX_VERSION, MeteorIndex, open_index
from hfcap.metrics.meteor_parts.matching import Matches, MatchFinder
from hfcap.metrics.meteor_parts.normalize import is_plain, normalize
from hfcap.metrics.meteor_parts.resources import MeteorResources
from hfcap.metrics.meteor_parts.score import (
    CHUNKS,
    CONTENT_MATCHES,
    FUNCTION_MATCHES,
    FUNCTION_WORDS,
    LENGTHS,
    MATCHED,
    N_STATISTICS,
    scores_of,
)
from hfcap.metrics.meteor_parts.words import Integers, WordTable
from hfcap.metrics.shared.tokenizer import TokenSequences, Vocabulary

_PAIRS_PER_BATCH = 4096
_CELLS_PER_BATCH = 1_000_000
_IMAGES_AT_ONCE = 8192


def _batches(finder: MatchFinder, candidates: Integers, references: Integers) -> Iterator[Integers]:
    """Positions of pairs that are worked on together: of similar length, and not too many."""
    lengths, reference_lengths = finder.lengths[candidates], finder.lengths[references]
    is_long = np.maximum(lengths, reference_lengths) > LONGEST_TOGETHER
    for position in np.flatnonzero(is_long):
        yield np.asarray([position])
    short = np.flatnonzero(~is_long)
    short = short[np.argsort(reference_lengths[short], kind="stable")]
    start = 0
    cells = np.concatenate(([0], np.cumsum((lengths * reference_lengths)[short])))
    while start < len(short):
        end = int(np.searchsorted(cells, cells[start] + _CELLS_PER_BATCH, side="right")) - 1
        end = max(start + 1, min(end, start + _PAIRS_PER_BATCH, len(short)))
        yield short[start:end]
        start = end


def _pair_statistics(
    finder: MatchFinder, matches: Matches, candidates: Integers, references: Integers
) -> NDArray[np.float64]:
    """(Q, 23) statistics of Q pairs of captions, given their possible matches."""
    sides = (candidates, references)
    lengths = [finder.lengths[side] for side in sides]
    if max(int(lengths[0].max()), int(lengths[1].max())) > LONGEST_TOGETHER:
        assert len(candidates) == 1, "long captions come alone"
        alignment = align_alone(matches, int(lengths[0][0]), int(lengths[1][0]))
    else:
        alignment = align_together(matches, lengths[0], lengths[1])
    result = np.zeros((len(candidates), N_STATISTICS))
    function_before = np.concatenate(([0], np.cumsum(finder.is_function_word)))
    places: list[Integers] = []
    amounts: list[Integers] = []
    pair, module = matches.pair[alignment.chosen], matches.module[alignment.chosen]
    for side, (captions, first, covered) in enumerate(
        zip(
            sides,
            (matches.start, matches.reference_start),
            (matches.length, matches.reference_length),
            strict=True,
        )
    ):
        offset = finder.offsets[captions]
        result[:, LENGTHS.start + side] = lengths[side]
        result[:, FUNCTION_WORDS.start + side] = function_before[offset + lengths[side]] - function_before[offset]
        start, length = offset[pair] + first[alignment.chosen], covered[alignment.chosen]
        function = function_before[start + length] - function_before[start]
        for column, words in ((CONTENT_MATCHES.start, length - function), (FUNCTION_MATCHES.start, function)):
            places.append(pair * N_STATISTICS + column + 2 * module + side)
            amounts.append(words)
        places.append(pair * N_STATISTICS + MATCHED.start + side)
        amounts.append(length)
    flat = np.bincount(np.concatenate(places), weights=np.concatenate(amounts), minlength=result.size)
    result += flat.reshape(result.shape)
    is_perfect = (result[:, MATCHED] == result[:, LENGTHS]).all(axis=1) & (alignment.chunks == 1)
    result[:, CHUNKS] = np.where(is_perfect, 0, alignment.chunks)
    return result


def meteor_statistics(
    index: MeteorIndex, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """Return the statistics of each candidate with its best reference (the first of equals), (N, 23) float64.

    Args:
        index: METEOR's resources.
        candidates: N captions.
        references: N lists of at least one caption.
    """
    if not candidates:
        return np.zeros((0, N_STATISTICS))
    table = WordTable(index)
    words = normalize([*candidates, *chain.from_iterable(references)], index.prefixes)
    lengths = np.asarray([len(caption) for caption in words], dtype=np.int64)
    finder = MatchFinder(table, table.numbers_of(list(chain.from_iterable(words))), lengths)
    return _best_statistics(finder, np.asarray([len(group) for group in references]))


def _best_statistics(finder: MatchFinder, counts: Integers) -> NDArray[np.float64]:
    """(N, 23) statistics of candidates with their best references.

    Args:
        finder: knows the N candidates, and after them all references.
        counts: (N,) references of each candidate.
    """
    first = np.concatenate(([0], np.cumsum(counts)))
    starts = range(0, len(counts), _IMAGES_AT_ONCE)
    parts = [slice(start, min(start + _IMAGES_AT_ONCE, len(counts))) for start in starts]
    found = [_best_of_part(finder, counts[part], part.start, len(counts) + int(first[part.start])) for part in parts]
    return np.concatenate(found) if found else np.zeros((0, N_STATISTICS))


def _best_of_part(
    finder: MatchFinder, counts: Integers, first_candidate: int, first_reference: int
) -> NDArray[np.float64]:
    """The same for some of the images; a pair that cannot beat another one of its image is not aligned."""
    image = np.repeat(np.arange(len(counts)), counts)
    candidates, references = first_candidate + image, first_reference + np.arange(len(image))
    batches = list(_batches(finder, candidates, references))
    matches = [finder.find(candidates[positions], references[positions]) for positions in batches]
    bounds = np.zeros(len(image))
    for positions, possible in zip(batches, matches, strict=True):
        bounds[positions] = upper_bounds(finder, possible, candidates[positions], references[positions])
    statistics = np.zeros((len(image), N_STATISTICS))
    starts = np.cumsum(counts) - counts
    likeliest = np.lexsort((-bounds, image))[starts]
    is_wanted = np.zeros(len(image), dtype=bool)
    is_wanted[likeliest] = True
    for _ in range(2):
        for positions, possible in zip(batches, matches, strict=True):
            wanted = is_wanted[positions]
            if wanted.any():
                chosen = positions[wanted]
                own = possible.of_pairs(wanted)
                statistics[chosen] = _pair_statistics(finder, own, candidates[chosen], references[chosen])
        is_wanted = bounds >= scores_of(statistics[likeliest])[image]
        is_wanted[likeliest] = False
    best_first = np.lexsort((np.arange(len(image)), -scores_of(statistics), image))
    return statistics[best_first[starts]]


class _Normaliser:
    """Turns tokenised captions into METEOR's words; tokens of letters and digits alone are words as they are."""

    def __init__(self, table: WordTable, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._table = table
        self._word_of_token = np.empty(0, dtype=np.int64)  # -1: METEOR's rules change it

    def words_of(self, tokens: TokenSequences) -> tuple[Integers, Integers]:
        """Return the numbers of all words, caption after caption, and how many each caption has."""
        new = self.vocabulary.words[len(self._word_of_token) :]
        plain = np.asarray([is_plain(word) for word in new], dtype=bool)
        numbers = np.full(len(new), -1, dtype=np.int64)
        numbers[plain] = self._table.numbers_of([word for word, kept in zip(new, plain.tolist(), strict=True) if kept])
        self._word_of_token = np.append(self._word_of_token, numbers)
        words = self._word_of_token[tokens.tokens]
        lengths = tokens.lengths
        owner = np.repeat(np.arange(len(tokens)), lengths)
        is_plain_caption = np.ones(len(tokens), dtype=bool)
        is_plain_caption[owner[words < 0]] = False
        others = np.flatnonzero(~is_plain_caption)
        if not len(others):
            return words, lengths
        lines = tokens.chosen(others).as_strings(self.vocabulary)
        normalised = normalize(lines, self._table.index.prefixes)
        theirs = self._table.numbers_of(list(chain.from_iterable(normalised)))
        lengths[others] = [len(caption) for caption in normalised]
        result = np.empty(int(lengths.sum()), dtype=np.int64)
        is_plain_word = np.repeat(is_plain_caption, lengths)
        result[is_plain_word] = words[is_plain_caption[owner]]
        result[~is_plain_word] = theirs
        return result, lengths


class Meteor(CaptionMetric):
    """METEOR 1.5, English, ranking task, with normalisation (`-l en -norm`), as pycocoevalcap calls it.

    The word lists and the paraphrase table come from the installed package pycocoevalcap; the first use converts them
    (10 seconds) into an index in $HFCAP_CACHE or ~/.cache/hfcap.

    Raises:
        MissingPackageError: pycocoevalcap is not installed.
        WorkError: the cache folder cannot be written.
    """

    name = "meteor"
    outputs = ("meteor",)
    n_statistics = N_STATISTICS
    in_parts = True
    english_only = True
    summary = "METEOR 1.5 (Denkowski and Lavie 2014), without Java; needs the package pycocoevalcap"
    citation = (
        "Denkowski and Lavie 2014: Meteor Universal: Language Specific Translation Evaluation for Any Target Language "
        "(WMT)"
    )

    def __init__(self) -> None:
        resources = MeteorResources.installed()
        self._fingerprint = resources.fingerprint()
        self._table = WordTable(open_index(resources))
        self._normaliser: _Normaliser | None = None

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """(N, 23): lengths, function words, matches by module, chunks and matched words of the best reference."""
        if self._normaliser is None or self._normaliser.vocabulary is not captions.vocabulary:
            self._normaliser = _Normaliser(self._table, captions.vocabulary)
        own, own_lengths = self._normaliser.words_of(captions.candidate_tokens)
        human, human_lengths = self._normaliser.words_of(captions.reference_tokens)
        finder = MatchFinder(self._table, np.concatenate((own, human)), np.concatenate((own_lengths, human_lengths)))
        return _best_statistics(finder, captions.reference_set.counts)

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        """METEOR of summed statistics; not the mean of the images' scores."""
        return scores_of(sums)[..., None]

    def signature(self) -> dict[str, Any]:
        """Version, parameters and the check sums of the word lists and the table."""
        return {
            "version": "1.5",
            "language": "en",
            "normalized": True,
            "modules": "exact stem synonym paraphrase",
            "beam": BEAM,
            "index": INDEX_VERSION,
            "resources": self._fingerprint,
        }


REGISTERED = Meteor
