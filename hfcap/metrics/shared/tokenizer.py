"""The tokenisation of the COCO caption evaluation (Penn Treebank style, lower-cased, punctuation removed)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise, repeat

import numpy as np
from numpy.typing import NDArray

from hfcap.failures.garbage import no_search_for_cycles
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
_MARKED = re.compile('"?([A-Za-z]{2,}(?:-[A-Za-z]+)*|[0-9]+)(?:[?!;:,]|"[.,?!]?|[.,?!]")?')
_MOST_PIECES_KEPT = 500_000
_CAPTIONS_AT_ONCE = 16_384
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
        # A word or a number with quotation marks or what ends a sentence, all of which is removed.
        marked = _MARKED.fullmatch(piece)
        word = marked[1].lower() if marked else ""
        return (word,) if word and word not in SPLIT_OR_ABBREVIATED else None
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
        # Pieces between white space: row of each, and the words of a row in one array, one row after another.
        self._row_of_piece: dict[str, int] = {}
        self._piece_words: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._piece_starts: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self._needs_context: NDArray[np.bool_] = np.empty(0, dtype=bool)
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

    def numbers_of(self, words: list[str]) -> NDArray[np.int32]:
        """Return the number of each word, new ones for those that were never seen."""
        numbers = np.fromiter(map(self._numbers.get, words, repeat(-1)), dtype=np.int32, count=len(words))
        for place in np.flatnonzero(numbers < 0).tolist():
            numbers[place] = self.number(words[place])
        return numbers

    def _rows_of(self, pieces: list[str]) -> NDArray[np.int32]:
        """Row of each piece between white space; new pieces are tokenised."""
        rows = np.fromiter(map(self._row_of_piece.get, pieces, repeat(-1)), dtype=np.int32, count=len(pieces))
        words: list[int] = []
        ends: list[int] = []
        needs: list[bool] = []
        for place in np.flatnonzero(rows < 0).tolist():
            piece = pieces[place]
            row = self._row_of_piece.get(piece)
            if row is None:
                row = self._row_of_piece[piece] = len(self._row_of_piece)
                tokens = _tokens_or_none(piece)
                needs.append(tokens is None)
                words += map(self.number, tokens or ())
                ends.append(len(self._piece_words) + len(words))
            rows[place] = row
        self._piece_words = np.concatenate([self._piece_words, np.asarray(words, dtype=np.int32)])
        self._piece_starts = np.concatenate([self._piece_starts, np.asarray(ends, dtype=np.int64)])
        self._needs_context = np.concatenate([self._needs_context, np.asarray(needs, dtype=bool)])
        return rows

    def encoded(self, captions: Sequence[str]) -> TokenSequences:
        """Tokenise raw captions and number their words; nothing is done in Python for a piece that was seen before."""
        split = [caption.split() for caption in captions]
        n_pieces = np.fromiter(map(len, split), dtype=np.int64, count=len(split))
        rows = self._rows_of(list(chain.from_iterable(split)))
        starts = self._piece_starts[rows]
        counts = self._piece_starts[rows + 1] - starts
        owner = np.repeat(np.arange(len(captions)), n_pieces)
        is_whole = np.zeros(len(captions), dtype=bool)  # a piece depends on what follows: the caption is read as one
        is_whole[owner[self._needs_context[rows]]] = True
        whole = np.flatnonzero(is_whole)
        counts[is_whole[owner]] = 0
        lengths = np.bincount(owner, weights=counts, minlength=len(captions)).astype(np.int64)
        first = np.cumsum(counts) - counts
        tokens = self._piece_words[np.arange(int(counts.sum())) + np.repeat(starts - first, counts)]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if len(whole):
            scanned = [list(map(self.number, _scan(captions[number]))) for number in whole.tolist()]
            sizes = [len(numbers) for numbers in scanned]
            inserted = np.fromiter(chain.from_iterable(scanned), dtype=np.int32, count=sum(sizes))
            tokens = np.insert(tokens, np.repeat(offsets[whole], sizes), inserted)
            lengths[whole] = sizes
            offsets = np.concatenate([[0], np.cumsum(lengths)])
        return TokenSequences(tokens, offsets)

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
        tokens: (T,) int32 token numbers of all captions, one after another.
        offsets: (M + 1,) int64; caption i is tokens[offsets[i]:offsets[i + 1]].
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(M,) words per caption."""
        return np.diff(self.offsets)

    def part(self, start: int, end: int) -> TokenSequences:
        """Return captions `start` to `end`, without copying their tokens."""
        offsets = self.offsets[start : end + 1]
        return TokenSequences(self.tokens[offsets[0] : offsets[-1]], offsets - offsets[0])

    def chosen(self, numbers: NDArray[np.int64]) -> TokenSequences:
        """Return some of the captions."""
        lengths = self.lengths[numbers]
        ends = np.cumsum(lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(self.offsets[numbers] - ends + lengths, lengths)
        return TokenSequences(self.tokens[places], np.concatenate([[0], ends]))

    def as_strings(self, vocabulary: Vocabulary) -> list[str]:
        """Return the captions as words joined by one space."""
        words = list(map(vocabulary.words.__getitem__, self.tokens.tolist()))
        bounds = self.offsets.tolist()
        return [" ".join(words[start:end]) for start, end in pairwise(bounds)]


def _split_at_blanks(captions: Sequence[str], vocabulary: Vocabulary) -> TokenSequences:
    split = [caption.split() for caption in captions]
    lengths = np.fromiter(map(len, split), dtype=np.int64, count=len(split))
    tokens = vocabulary.numbers_of(list(chain.from_iterable(split)))
    return TokenSequences(tokens, np.concatenate([[0], np.cumsum(lengths)]))


def encode_captions(captions: Iterable[str], vocabulary: Vocabulary, *, tokenized: bool = False) -> TokenSequences:
    """Tokenise raw captions (or split them at blanks if they are `tokenized`) and number their words."""
    # Buffers that grow where they are: parts, and then all of them in one array, would stand in memory twice.
    tokens, offsets = bytearray(), bytearray(np.zeros(1, dtype=np.int64).tobytes())
    n_tokens = 0
    remaining = iter(captions)
    with no_search_for_cycles():
        while some := list(islice(remaining, _CAPTIONS_AT_ONCE)):
            part = _split_at_blanks(some, vocabulary) if tokenized else vocabulary.encoded(some)
            tokens += part.tokens.astype(np.int32).tobytes()
            offsets += (part.offsets[1:] + n_tokens).tobytes()
            n_tokens += len(part.tokens)
    return TokenSequences(np.frombuffer(tokens, dtype=np.int32), np.frombuffer(offsets, dtype=np.int64))
