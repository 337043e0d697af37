"""Minimum Bayes risk among candidate captions (Kumar and Byrne 2004): which one agrees most with all, by CIDEr-D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import ReferenceSet
from hfcap.metrics.cider import CiderScorer
from hfcap.metrics.shared.document_frequencies import DocumentFrequencies


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidate captions of one image, all texts different, and how likely each is held to be (any positive scale)."""

    captions: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RankedCaption:
    """A candidate with its expected CIDEr-D over the pool it comes from, on the published scale."""

    caption: str
    expected_cider: float


def pooled(candidates: Sequence[Sequence[str]], weights: Sequence[float]) -> Pool:
    """Join the candidate lists of several captioners for one image; white space does not tell captions apart.

    A captioner's weight is shared equally by its candidates, and a text that several propose has the sum. Empty
    captions are left out unless nothing else is there. A captioner of weight 0 proposes without a vote.
    """
    mass: dict[str, float] = {}
    for of_member, weight in zip(candidates, weights, strict=True):
        texts = [" ".join(text.split()) for text in of_member]
        for text in texts:
            mass[text] = mass.get(text, 0.0) + weight / len(texts)
    kept = {text: value for text, value in mass.items() if text} or {next(iter(mass), ""): 1.0}
    if not any(kept.values()):
        kept = dict.fromkeys(kept, 1.0)
    return Pool(tuple(kept), tuple(kept.values()))


def ranked_by_consensus(
    pools: Sequence[Pool], document_frequencies: DocumentFrequencies | None = None
) -> list[list[RankedCaption]]:
    """Rank the candidates of N images by expected CIDEr-D, highest first; earlier ones first among equals.

    The expectation of candidate c is the weighted mean of CIDEr-D(c, r) over all candidates r of its image, c among
    them, as minimum Bayes risk has it.

    Args:
        document_frequencies: n-gram weights; None counts in how many pools each n-gram occurs.
    """
    references = ReferenceSet({str(number): pool.captions for number, pool in enumerate(pools)})
    expected = expected_ciders(references, [value for pool in pools for value in pool.weights], document_frequencies)
    ranked, first = [], 0
    for pool in pools:
        values = expected[first : first + len(pool.captions)]
        first += len(pool.captions)
        # Equal values must not be told apart by rounding.
        order = np.argsort(-values.round(9), kind="stable")
        ranked.append([RankedCaption(pool.captions[place], float(values[place])) for place in order])
    return ranked


def expected_ciders(
    references: ReferenceSet, weights: Sequence[float], document_frequencies: DocumentFrequencies | None
) -> NDArray[np.float64]:
    """Return the weighted mean CIDEr-D of each of M captions to all captions of its image, (M,) float64."""
    scorer = CiderScorer(references, document_frequencies)
    images = references.image_of_caption
    pairs = scorer.pairs(references.tokens, images)
    mass = np.asarray(weights, dtype=np.float64)
    total = np.bincount(pairs.candidate, weights=pairs.similarity * mass[pairs.reference], minlength=len(mass))
    return total / np.bincount(images, weights=mass, minlength=len(references))[images]
