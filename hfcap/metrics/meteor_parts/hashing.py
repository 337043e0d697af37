"""64-bit hashes of words and phrases that numpy computes for millions of lines at once.

The hash of the bytes b_0 .. b_n is the sum of CODE[b_k] * BASE**k modulo 2**64. It composes: the hash of 'x y' follows
from the hashes of 'x' and 'y' and the length of 'x', so that the n-grams of a caption need no strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_LINE_FEED = 10
_BLANK = 32
_LONGEST_WORD = 1000
LARGEST_CHUNK = 1 << 20
"""Most bytes that one call of `line_hashes` takes."""


@cache
def _codes() -> NDArray[np.uint64]:
    """(256,) uint64 by SplitMix64 (Steele et al. 2014): fixed for ever, because stored indexes hold the hashes."""
    state = np.arange(1, 257, dtype=np.uint64) * np.uint64(_BASE)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@cache
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    powers = np.full(count, base, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def line_hashes(text: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hash of each line of UTF-8 text that ends with a line feed, (number of lines,) uint64."""
    assert len(text) <= LARGEST_CHUNK and (len(text) == 0 or text[-1] == _LINE_FEED)
    if len(text) == 0:
        return np.zeros(0, dtype=np.uint64)
    ends = np.flatnonzero(text == _LINE_FEED)
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    terms = np.take(_codes(), text)
    size = 1 << len(text).bit_length()  # few different sizes: the powers are kept
    terms *= _powers(_BASE, size)[: len(text)]
    np.cumsum(terms, out=sums[1:])
    starts = np.concatenate(([0], ends[:-1] + 1))
    return (sums[ends] - sums[starts]) * _powers(_INVERSE, size)[starts]


def word_hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return the hash of each word; no word contains a line feed."""
    found: list[NDArray[np.uint64]] = []
    piece: list[bytes] = []
    size = 0
    for word in _encoded(words):
        if size + len(word) + 1 > LARGEST_CHUNK:
            found.append(line_hashes(_as_lines(piece)))
            piece, size = [], 0
        piece.append(word)
        size += len(word) + 1
    found.append(line_hashes(_as_lines(piece)))
    return np.concatenate(found)


def _encoded(words: Sequence[str]) -> Iterable[bytes]:
    # A caption may hold half of a surrogate pair, which has no UTF-8 form of its own. No word of METEOR's lists is
    # anywhere near the limit, so that a longer one cannot be confused with them.
    return (word[:_LONGEST_WORD].encode("utf-8", "surrogatepass") for word in words)


def _as_lines(pieces: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(piece + b"\n" for piece in pieces), dtype=np.uint8)


def word_shifts(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return BASE ** (bytes of the word + 1): what the hash of the text after 'word ' is multiplied with."""
    lengths = np.fromiter((len(word) + 1 for word in _encoded(words)), dtype=np.int64, count=len(words))
    longest = int(lengths.max()) + 1 if len(words) else 1
    return _powers(_BASE, longest)[lengths]


def joined(
    first: NDArray[np.uint64], first_shift: NDArray[np.uint64], second: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return the hash of 'first second' from those of both parts."""
    blank = first_shift * np.uint64(_INVERSE) * _codes()[_BLANK]
    return first + blank + first_shift * second
