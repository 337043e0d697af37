"""Random captions over a small vocabulary, so that n-grams repeat; used to compare with pycocoevalcap's scorers."""

from __future__ import annotations

import numpy as np

_COMMON = ("a", "the", "man", "woman", "dog", "cat", "horse", "red", "small", "big", "sits", "stands")
_RARE = ("runs", "on", "in", "near", "with", "grass", "street", "ball", "hat", "two", "three", "and")
_WORDS = (*_COMMON, *_RARE)


def random_captions(
    n_images: int, seed: int, *, longest: int = 14, most_references: int = 6
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return candidates and references of `n_images`; lengths vary, some candidates are empty."""
    generator = np.random.default_rng(seed)
    common = 1.0 / np.arange(1, len(_WORDS) + 1)

    def caption(shortest: int) -> str:
        length = int(generator.integers(shortest, longest + 1))
        return " ".join(generator.choice(_WORDS, size=length, p=common / common.sum()))

    candidates = {str(number): caption(0) for number in range(n_images)}
    references = {
        key: [caption(1) for _ in range(int(generator.integers(1, most_references + 1)))] for key in candidates
    }
    return candidates, references
