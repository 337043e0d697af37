"""In how many images' human captions each n-gram occurs: the weights of CIDEr-D.

Shapes: U distinct n-grams of one order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.metrics._ngrams import ReferenceNgrams


@dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies of the n-grams of orders 1 to 4.

    Attributes:
        source: where they come from ("corpus", "coco-train", "coco-val" or a file name), for the signature.
        n_images: the number of images they were counted in.
        keys: per order, (U,) uint64 n-gram keys (see _ngrams.ngram_keys), sorted.
        counts: per order, (U,) int64 images that have the n-gram.
    """

    source: str
    n_images: int
    keys: tuple[NDArray[np.uint64], ...]
    counts: tuple[NDArray[np.int64], ...]

    @classmethod
    def of_index(cls, index: Sequence[ReferenceNgrams], n_images: int, source: str = "corpus") -> DocumentFrequencies:
        """Count the images whose captions contain each n-gram, once per image however often it occurs."""
        counts = tuple(part.document_counts() for part in index)
        return cls(source, n_images, tuple(part.keys for part in index), counts)

    def idf(self, order: int, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return ln N - ln max(1, df) of n-grams, (G,) float64; those never counted have df = 0."""
        known, counts = self.keys[order - 1], self.counts[order - 1]
        frequency = np.ones(len(keys))
        if len(known):
            position = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            frequency = np.where(known[position] == keys, counts[position], 1).astype(np.float64)
        return math.log(max(self.n_images, 1)) - np.log(frequency)

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change when any frequency does."""
        digest = hashlib.sha256(str(self.n_images).encode())
        for keys, counts in zip(self.keys, self.counts, strict=True):
            digest.update(keys.astype("<u8").tobytes())
            digest.update(counts.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def load_document_frequencies(name: str, *, end_word: bool = False) -> DocumentFrequencies | None:
    """Resolve a named source of document frequencies: None for "corpus" (count in the references that are scored).

    Raises:
        UserError: the name is neither "corpus" nor anything that can be read.
    """
    if name == "corpus":
        return None
    raise UserError(f"document_frequencies {name!r}: only 'corpus' so far")
