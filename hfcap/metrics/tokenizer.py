"""The tokenisation of the COCO caption evaluation (Penn Treebank style, lower-cased, punctuation removed)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics._ptb_rules import PATTERN, REMOVED, REWRITTEN

TOKENIZER_VERSION = "ptb-coco-1"
"""Changes whenever any caption could be tokenised differently."""

LINE_SEPARATORS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def tokenize(caption: str) -> list[str]:
    """Return the words of one caption, lower-cased, punctuation removed."""
    words: list[str] = []
    for match in PATTERN.finditer(LINE_SEPARATORS.sub(" ", caption)):
        token = match.group()
        if token in REMOVED or (token[0] in "-." and not token.strip("-.")):
            continue
        words.extend(REWRITTEN.get(token) or [token.lower()])
    return words


class Vocabulary:
    """Numbers for words, given in order of appearance; grows whenever a new word is seen."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}
        self._hashes: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        return len(self.words)

    def number(self, word: str) -> int:
        """Return the number of `word`, a new one if it was never seen."""
        number = self._numbers.get(word)
        if number is None:
            number = self._numbers[word] = len(self.words)
            self.words.append(word)
        return number

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(V,) 64-bit hash of each word, the same in every process."""
        new = self.words[len(self._hashes) :]
        if new:
            digests = b"".join(
                hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in new
            )
            self._hashes = np.concatenate([self._hashes, np.frombuffer(digests, dtype="<u8").astype(np.uint64)])
        return self._hashes


@dataclass(frozen=True, slots=True)
class TokenSequences:
    """M tokenised captions in one array.

    Attributes:
        tokens: (T,) int64 token numbers of all captions, one after another.
        offsets: (M + 1,) int64; caption i is tokens[offsets[i]:offsets[i + 1]].
    """

    tokens: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) words per caption."""
        return np.diff(self.offsets)

    def as_strings(self, vocabulary: Vocabulary) -> list[str]:
        """Return the captions as words joined by one space."""
        words = list(map(vocabulary.words.__getitem__, self.tokens.tolist()))
        bounds = self.offsets.tolist()
        return [" ".join(words[start:end]) for start, end in pairwise(bounds)]


def encode_words(sentences: Iterable[Sequence[str]], vocabulary: Vocabulary) -> TokenSequences:
    """Number the words of tokenised sentences."""
    numbered = [[vocabulary.number(word) for word in words] for words in sentences]
    offsets = np.zeros(len(numbered) + 1, dtype=np.int64)
    np.cumsum([len(numbers) for numbers in numbered], out=offsets[1:])
    tokens = np.fromiter(chain.from_iterable(numbered), dtype=np.int64, count=int(offsets[-1]))
    return TokenSequences(tokens, offsets)


def encode_captions(captions: Sequence[str], vocabulary: Vocabulary, *, tokenized: bool = False) -> TokenSequences:
    """Tokenise raw captions (or split them at blanks if they are `tokenized`) and number their words."""
    return encode_words(map(str.split, captions) if tokenized else map(tokenize, captions), vocabulary)
