"""What a retrieval captioner's index holds besides vectors: captions, their numbers, tables of the consensus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hfcap.errors import UserError
from hfcap.files import read_text
from hfcap.metrics.base import ReferenceSet
from hfcap.metrics.shared.caption_files import read_references
from hfcap.metrics.shared.document_frequencies import DocumentFrequencies
from hfcap.metrics.shared.ngrams import ORDERS


def read_corpus(path: Path) -> list[tuple[str, ...]]:
    """Read captions: a .txt file with one a line, or any file of human captions that hfcap scores against.

    Raises:
        UserError: the file is missing, malformed or holds no caption.
    """
    if path.suffix != ".txt":
        return list(read_references(path).values())
    lines = [line for line in read_text(path, "caption corpus").split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{path}: no caption in this file; name another one in model.corpus")
    return [(line,) for line in lines]


def numbers_of_texts(captions: Sequence[str]) -> torch.Tensor:
    """Number of the first caption with the same text, (M,) int32."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(text, number) for number, text in enumerate(captions)], dtype=torch.int32)


def agreement_tables(documents: Sequence[Sequence[str]], wanted: bool) -> dict[str, torch.Tensor]:
    """Return the buffers from which the model computes CIDEr-D between captions; empty ones where not wanted.

    Document frequencies are counted over `documents` (N groups, M captions in all). N-grams that only one caption
    holds are left out: they add to no pair, and their part of the norms is kept.
    """
    if not wanted:
        n_captions = sum(map(len, documents))
        return {
            "entry_starts": torch.zeros(n_captions + 1, dtype=torch.int64),
            "entry_ngrams": torch.zeros(0, dtype=torch.int32),
            "entry_counts": torch.zeros(0, dtype=torch.int16),
            "caption_norms": torch.zeros(n_captions, len(ORDERS)),
            "caption_words": torch.zeros(n_captions, dtype=torch.int32),
            "ngram_idf": torch.zeros(0),
            "ngram_orders": torch.zeros(0, dtype=torch.uint8),
        }
    references = ReferenceSet({str(number): group for number, group in enumerate(documents)})
    index = [references.ngrams(order) for order in ORDERS]
    frequencies = DocumentFrequencies.of_index(index, len(references))
    n_captions = len(references.tokens)
    norms, captions, ngrams, counts = np.zeros((n_captions, len(ORDERS)), dtype=np.float32), [], [], []
    idfs: list[NDArray[np.float64]] = []
    orders: list[NDArray[np.uint8]] = []
    for position, part in enumerate(index):
        idf = frequencies.idf(part.order, part.keys)
        weights = part.count * idf[part.item]
        norms[:, position] = np.sqrt(np.bincount(part.caption, weights=weights**2, minlength=n_captions))
        shared = (np.bincount(part.item, minlength=len(idf)) > 1) & (idf > 0)
        kept = shared[part.item]
        before = sum(map(len, idfs))
        captions.append(part.caption[kept])
        ngrams.append((np.cumsum(shared) - 1)[part.item[kept]] + before)
        counts.append(part.count[kept])
        idfs.append(idf[shared])
        orders.append(np.full(int(shared.sum()), position, dtype=np.uint8))
    caption, ngram = np.concatenate(captions), np.concatenate(ngrams)
    order = np.lexsort((ngram, caption))
    lengths = np.bincount(caption, minlength=n_captions)
    return {
        "entry_starts": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
        "entry_ngrams": torch.from_numpy(ngram[order].astype(np.int32)),
        "entry_counts": torch.from_numpy(np.minimum(np.concatenate(counts)[order], 32_767).astype(np.int16)),
        "caption_norms": torch.from_numpy(norms),
        "caption_words": torch.from_numpy(references.tokens.lengths.astype(np.int32)),
        "ngram_idf": torch.from_numpy(np.concatenate(idfs).astype(np.float32)),
        "ngram_orders": torch.from_numpy(np.concatenate(orders)),
    }
