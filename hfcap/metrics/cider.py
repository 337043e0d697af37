"""CIDEr-D (Vedantam et al. 2015) as a metric and as the reward of self-critical training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions, ReferenceSet
from hfcap.metrics.shared.document_frequencies import (
    DocumentFrequencies,
    indexed,
    load_document_frequencies,
    with_end_word,
)
from hfcap.metrics.shared.ngrams import ORDERS, NgramTable
from hfcap.metrics.shared.tokenizer import TokenSequences, encode_captions
from hfcap.places import FrequencyFile

_SIGMA = 6.0


@dataclass(frozen=True, slots=True)
class CiderPairs:
    """CIDEr-D of single candidates with single human captions of the same image.

    Attributes:
        candidate: (P,) int64, ascending.
        reference: (P,) int64 position among the captions of the reference set.
        similarity: (P,) float64 on the published scale (10 = alike in all orders).
    """

    candidate: NDArray[np.int64]
    reference: NDArray[np.int64]
    similarity: NDArray[np.float64]


class CiderScorer:
    """CIDEr-D against human captions that are tokenised, counted and weighted once.

    Args:
        references: R images and their captions.
        document_frequencies: n-gram weights; None counts them in `references`.
        end_word: the end token counts as a word of every human caption and of every candidate that ended.
    """

    def __init__(
        self,
        references: ReferenceSet,
        document_frequencies: DocumentFrequencies | None = None,
        *,
        end_word: bool = False,
    ) -> None:
        self.references = references
        self._end_word = end_word
        self._index = indexed(references, end_word)
        self.document_frequencies = document_frequencies or (
            DocumentFrequencies.of_index(self._index, len(references))
            if end_word
            else DocumentFrequencies.of_references(references)
        )
        self._weights = [
            part.count * self.document_frequencies.idf(part.order, part.keys)[part.item] for part in self._index
        ]
        self._norms = [
            np.sqrt(np.bincount(part.caption, weights=weights**2, minlength=len(references.tokens)))
            for part, weights in zip(self._index, self._weights, strict=True)
        ]
        self._bigrams = np.maximum(references.tokens.lengths + int(end_word) - 1, 0)
        self._first_caption = np.concatenate([[0], np.cumsum(references.counts)])

    def score(
        self, candidates: TokenSequences, images: NDArray[np.int64], ended: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float64]:
        """Return CIDEr-D of C candidates, (C,) float64, on the published scale (mean cosine x 10).

        Args:
            candidates: C captions in the numbers of the references' vocabulary.
            images: (C,) positions in the reference set; several candidates may belong to one image.
            ended: (C,) whether the caption ended with the end token; None = all did. Only used with `end_word`.
        """
        if self._end_word:
            candidates = with_end_word(candidates, self.references.vocabulary, ended)
        tables = [NgramTable.of(candidates, self.references.vocabulary, order) for order in ORDERS]
        matches = [part.join(table, images) for part, table in zip(self._index, tables, strict=True)]
        return self._score(tables, matches, candidates.lengths, images)

    def pairs(self, candidates: TokenSequences, images: NDArray[np.int64]) -> CiderPairs:
        """Return CIDEr-D of C candidates with each human caption of their images alone; `score` is its mean."""
        assert not self._end_word
        tables = [NgramTable.of(candidates, self.references.vocabulary, order) for order in ORDERS]
        matches = [part.join(table, images) for part, table in zip(self._index, tables, strict=True)]
        candidate, reference, similarity = self._pairs(tables, matches, candidates.lengths, images)
        return CiderPairs(candidate, reference, similarity * (10.0 / len(ORDERS)))

    def score_set(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return CIDEr-D of one candidate per image, (N,) float64, from n-grams that other metrics share."""
        assert captions.reference_set is self.references and not self._end_word
        tables = [captions.ngrams(order) for order in ORDERS]
        matches = [captions.ngram_matches(order) for order in ORDERS]
        return self._score(tables, matches, captions.candidate_tokens.lengths, np.arange(len(captions)))

    def _score(
        self,
        tables: Sequence[NgramTable],
        matches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        lengths: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        candidate, _, similarity = self._pairs(tables, matches, lengths, images)
        total = np.bincount(candidate, weights=similarity, minlength=len(images))
        return 10.0 * total / (len(ORDERS) * self.references.counts[images])

    def _pairs(
        self,
        tables: Sequence[NgramTable],
        matches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        lengths: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Candidate, human caption and summed cosines of every pair, (P,) each."""
        n_references = self.references.counts[images]
        # One pair per candidate and human caption of its image, candidate after candidate.
        first_pair = np.concatenate([[0], np.cumsum(n_references)])
        candidate_of_pair = np.repeat(np.arange(len(images)), n_references)
        to_caption = self._first_caption[images] - first_pair[:-1]
        caption_of_pair = np.arange(first_pair[-1]) + to_caption[candidate_of_pair]
        similarity = np.zeros(len(caption_of_pair))
        for part, reference_weights, reference_norms, table, (entry, reference_entry) in zip(
            self._index, self._weights, self._norms, tables, matches, strict=True
        ):
            weights = table.count * self.document_frequencies.idf(part.order, table.keys)[table.item]
            norms = np.sqrt(np.bincount(table.caption, weights=weights**2, minlength=len(images)))
            pair = part.caption[reference_entry] - to_caption[table.caption[entry]]
            theirs = reference_weights[reference_entry]
            shared = np.bincount(pair, weights=np.minimum(weights[entry], theirs) * theirs, minlength=len(similarity))
            scale = norms[candidate_of_pair] * reference_norms[caption_of_pair]
            similarity += np.divide(shared, scale, out=np.zeros(len(shared)), where=scale > 0)
        delta = np.maximum(lengths - 1, 0)[candidate_of_pair] - self._bigrams[caption_of_pair]
        similarity *= np.exp(-(delta.astype(np.float64) ** 2) / (2 * _SIGMA**2))
        return candidate_of_pair, caption_of_pair, similarity


class CiderReward:
    """CIDEr-D of many candidates per image, for self-critical training; the references are indexed once.

    Args:
        references: image id -> human captions, raw, or already tokenised words joined by blanks.
        document_frequencies: "corpus" counts n-grams in `references` (give the whole training split), "coco-train",
            "coco-val", or a file (see `load_document_frequencies`).
        end_word: count the end token as a word (Rennie et al. 2017 need it: without it, captions that stop in the
            middle of a phrase are rewarded).
        tokenized: captions are tokenised already; split them at blanks only.
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        *,
        document_frequencies: DocumentFrequencies | str = "corpus",
        end_word: bool = True,
        tokenized: bool = False,
    ) -> None:
        self._tokenized = tokenized
        reference_set = ReferenceSet(references, tokenized=tokenized)
        frequencies = (
            load_document_frequencies(document_frequencies, end_word=end_word)
            if isinstance(document_frequencies, str)
            else document_frequencies
        )
        self._position = {image_id: number for number, image_id in enumerate(reference_set.image_ids)}
        self._scorer = CiderScorer(reference_set, frequencies, end_word=end_word)

    def scores(
        self,
        image_ids: Sequence[str],
        candidates: Sequence[Sequence[str]],
        ended: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Return CIDEr-D of K candidates for each of B images, (B, K) float64, on the published scale (1.28).

        Args:
            image_ids: B ids, repeated ids allowed.
            candidates: B lists of K captions.
            ended: (B, K) whether the candidate ended with the end token, None = all did.

        Raises:
            UserError: an image id has no references.
        """
        n_candidates = len(candidates[0]) if candidates else 0
        assert all(len(group) == n_candidates for group in candidates), "images differ in their number of candidates"
        try:
            images = np.repeat([self._position[image_id] for image_id in image_ids], n_candidates).astype(np.int64)
        except KeyError as error:
            raise UserError(f"no reference captions for image {error.args[0]!r}; add some") from None
        flat = [caption for group in candidates for caption in group]
        tokens = encode_captions(flat, self._scorer.references.vocabulary, tokenized=self._tokenized)
        flat_ended = None if ended is None else np.asarray(ended, dtype=bool).reshape(-1)
        return self._scorer.score(tokens, images, flat_ended).reshape(len(image_ids), n_candidates)


class CiderOptions(MetricOptions):
    """Options of CIDEr-D."""

    document_frequencies: FrequencyFile = Field(
        "corpus",
        description="n-gram weights: corpus (the human captions scored against), coco-train, coco-val or a file",
    )


class Cider(CaptionMetric):
    """CIDEr-D: consensus with the human captions, n-grams weighted by their rarity; mean over images, x 10.

    Raises:
        UserError: the document frequencies cannot be found (see `load_document_frequencies`).
    """

    name = "cider"
    outputs = ("cider",)
    in_parts = True
    summary = "CIDEr-D (Vedantam et al. 2015): n-grams shared with the human captions, weighted by rarity"
    citation = "Vedantam et al. (2015): CIDEr: Consensus-based Image Description Evaluation. CVPR"

    options_class = CiderOptions

    def __init__(self, options: CiderOptions | None = None) -> None:
        self._fixed = load_document_frequencies((options or CiderOptions()).document_frequencies)
        self._scorer: CiderScorer | None = None

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return CIDEr-D of each image, (N, 1)."""
        scorer = self._scorer
        if scorer is None or scorer.references is not captions.reference_set:
            scorer = CiderScorer(captions.reference_set, self._fixed)
        # The index of the human captions is kept: validation scores against the same ones again and again. That of a
        # part of many would hold all of them.
        self._scorer = None if captions.reference_set.is_part else scorer
        return scorer.score_set(captions)[:, None]

    def signature(self) -> dict[str, Any]:
        """Return the source of the document frequencies and what identifies them."""
        conditions: dict[str, Any] = {"variant": "CIDEr-D", "sigma": _SIGMA, "document_frequencies": "corpus"}
        if self._fixed is not None:
            # Of a file the name alone: where it lies on this machine is nobody's business.
            conditions["document_frequencies"] = self._fixed.source
            conditions |= {"df_images": self._fixed.n_images, "df_fingerprint": self._fixed.fingerprint()}
        return conditions


REGISTERED = Cider
