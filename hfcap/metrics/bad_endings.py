"""Share of captions that stop in the middle, with a word that cannot end a sentence ("a man on a")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.base import CaptionMetric, CaptionSet

_WORDS = (
    "a an the this his her its their my your our some several each every "
    "of with and or but in on at to from for by as into onto near next while that which "
    "is are was were be being has have holding wearing"
)

BAD_ENDINGS = frozenset(_WORDS.split())
"""Words after which an English caption has to go on. Our own list: articles, determiners, conjunctions, prepositions
that hardly ever end a sentence, auxiliaries, and the two participles that most often lack their object."""


def ends_badly(words: Sequence[str]) -> bool:
    """Whether a tokenised caption stops in the middle; one without any word does."""
    return not words or words[-1] in BAD_ENDINGS


class BadEndings(CaptionMetric):
    """Share of captions whose last word is one of `BAD_ENDINGS`; captions without any word count too.

    Optimising CIDEr-D without an end token in the reward produces such captions (Rennie et al. 2017 discuss the end
    token; Guo et al. 2018 count the endings), and n-gram metrics hardly notice them.
    """

    name = "bad_endings"
    outputs = ("bad_endings",)
    english_only = True
    summary = "share of captions whose last word cannot end a sentence"
    higher_is_better = False
    citation = (
        "Guo et al. (2018): Improving Reinforcement Learning Based Image Captioning with Natural Language Prior. EMNLP"
    )

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        """Return 1 for each caption that ends badly, else 0, (N, 1)."""
        lines = captions.tokenized_candidates
        return np.asarray([[ends_badly(line.split())] for line in lines], dtype=np.float64)

    def signature(self) -> dict[str, Any]:
        """Return the number of listed words; the list is part of the version of hfcap."""
        return {"words": len(BAD_ENDINGS)}


REGISTERED = BadEndings
