"""The tokenisation of the COCO caption evaluation (Penn Treebank style, lower-cased, punctuation removed)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from hfcap.metrics.shared.ptb_rules import (
    NEEDS_CONTEXT,
    REMOVED,
    REWRITTEN,
    SPELLING,
    SPLIT_OR_ABBREVIATED,
    token_pattern,
)

TOKENIZER_VERSION = "ptb-coco-2"
"""Changes whenever any caption could be tokenised differently."""

LINE_SEPARATORS = re.compile("[\n\r\v\f\x85\u2028\u2029]")
"""Characters at which the Java tool starts a new caption; here they are blanks like any other."""

_ORDINARY = re.compile("([A-Za-z]+(?:-[A-Za-z]+)*)('s)?([.,]?)")
_MOST_PIECES_KEPT = 500_000
_tokens_of_piece: dict[str, tuple[str, ...] | None] = {}


def _scan(text: str) -> tuple[str, ...]:
    words: list[str] = []
    for match in token_pattern().finditer(text):
        token = match.group()
        if token in REMOVED or (token[0] == "-" and not token.strip("-")):
            continue
        if len(token) > 1 and token[-1] in "()[]" and token[0] in ":;=<>":  # a smiley: its bracket is spelled out
            token = token[:-1] + REWRITTEN[token[-1]]
        if token[0] == "(" and len(token) > 1:  # a telephone number: one token there, with a blank inside
            words += token.replace("(", REWRITTEN["("]).replace(")", REWRITTEN[")"]).split()
            continue
        word = REWRITTEN.get(token) or token.lower().translate(SPELLING)
        if word:  # a soft hyphen alone is nothing
            words.append(word)
    return tuple(words)


def _tokens_of_ordinary(piece: str) -> tuple[str, ...] | None:
    """Tokens of the pieces that make up nearly all text, a hundred times faster than the full rules; else None."""
    match = _ORDINARY.fullmatch(piece)
    if match is None:
        return None
    word, possessive, stop = match.groups()
    word = word.lower()
    if word in SPLIT_OR_ABBREVIATED or (stop and len(word) == 1):
        return None
    return (word, "'s") if possessive else (word,)


def _tokens_or_none(piece: str) -> tuple[str, ...] | None:
    """Tokens of a piece between white space; None where they depend on what follows."""
    try:
        return _tokens_of_piece[piece]
    except KeyError:
        if len(_tokens_of_piece) >= _MOST_PIECES_KEPT:
            _tokens_of_piece.clear()
        tokens = _tokens_of_ordinary(piece)
        if tokens is None and not NEEDS_CONTEXT.search(piece):
            tokens = _scan(piece)
        _tokens_of_piece[piece] = tokens
        return tokens


def tokenize(caption: str) -> list[str]:
    """Return the words of one caption, lower-cased, punctuation removed; no word contains white space.

    The result depends on this caption alone, whatever characters it holds. Source: Stanford's PTBTokenizer with
    `-preserveLines -lowerCase` and the punctuation filter of the COCO evaluation; scripts/conformance_tokenizer.py
    compares the two.
    """
    words: list[str] = []
    for piece in caption.split():
        tokens = _tokens_or_none(piece)
        if tokens is None:
            return list(_scan(caption))
        words.extend(tokens)
    return words


class Vocabulary:
    """Numbers for words, given in order of appearance; grows whenever a new word is seen."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._numbers: dict[str, int] = {}
        self._numbers_of_piece: dict[str, tuple[int, ...]] = {}
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

    def numbers_of(self, caption: str) -> list[int]:
        """Tokenise a raw caption and return the numbers of its words."""
        numbers: list[int] = []
        known = self._numbers_of_piece
        for piece in caption.split():
            found = known.get(piece)
            if found is None:
                tokens = _tokens_or_none(piece)
                if tokens is None:
                    return list(map(self.number, _scan(caption)))
                found = known[piece] = tuple(map(self.number, tokens))
            numbers += found
        return numbers

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


def _sequences(numbered: list[list[int]]) -> TokenSequences:
    offsets = np.zeros(len(numbered) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, numbered), dtype=np.int64, count=len(numbered)), out=offsets[1:])
    tokens = np.fromiter(chain.from_iterable(numbered), dtype=np.int64, count=int(offsets[-1]))
    return TokenSequences(tokens, offsets)


def encode_captions(captions: Sequence[str], vocabulary: Vocabulary, *, tokenized: bool = False) -> TokenSequences:
    """Tokenise raw captions (or split them at blanks if they are `tokenized`) and number their words."""
    if tokenized:
        return _sequences([list(map(vocabulary.number, caption.split())) for caption in captions])
    return _sequences([vocabulary.numbers_of(caption) for caption in captions])
