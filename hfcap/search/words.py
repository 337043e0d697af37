"""BM25 (Robertson and Zaragoza 2009) over the captions of images: which images are described with these words.

Shapes: N images, V words of the vocabulary, Q words of the query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.meteor_parts.stemmer import stem
from hfcap.metrics.shared.tokenizer import Vocabulary, encode_captions, tokenize

_K1, _B = 1.2, 0.75


class CaptionWords:
    """The captions of N images as stems of words; the captions of an image are one document."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.captions = captions
        self._vocabulary = Vocabulary()
        self._tokens = encode_captions([text for group in captions for text in group], self._vocabulary)
        owner = np.repeat(np.arange(len(captions)), [len(group) for group in captions])
        self._owner = np.repeat(owner, self._tokens.lengths)
        self._lengths = np.bincount(self._owner, minlength=len(captions)).astype(np.float64)
        self._stems = [stem(word) for word in self._vocabulary.words]

    def scores(self, query: str) -> NDArray[np.float64]:
        """Return BM25 of each image, (N,) float64; 0 where no word of the query occurs."""
        n_images = max(len(self.captions), 1)
        relative = self._lengths / max(float(self._lengths.mean()) if len(self._lengths) else 0.0, 1e-9)
        total = np.zeros(len(self.captions))
        for wanted in _stems(query):
            count = self._counts(wanted)
            holders = int((count > 0).sum())
            idf = np.log1p((n_images - holders + 0.5) / (holders + 0.5))
            total += idf * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * relative))
        return total

    def _counts(self, wanted: str) -> NDArray[np.float64]:
        matches = np.array([word == wanted for word in self._stems], dtype=bool)
        if not matches.any():
            return np.zeros(len(self.captions))
        return np.bincount(self._owner[matches[self._tokens.tokens]], minlength=len(self.captions)).astype(np.float64)

    def best_caption(self, number: int, query: str) -> str:
        """Return the caption of image `number` with most words of the query; its first one where none has any."""
        wanted = set(_stems(query))
        found = [len(wanted & {stem(word) for word in tokenize(text)}) for text in self.captions[number]]
        return self.captions[number][int(np.argmax(found))] if found else ""


def _stems(query: str) -> list[str]:
    return list(dict.fromkeys(stem(word) for word in tokenize(query)))
