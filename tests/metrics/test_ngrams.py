"""N-grams as integers against counting words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcap.metrics.shared.ngrams import ORDERS, NgramTable, ReferenceNgrams, ngram_keys
from hfcap.metrics.shared.tokenizer import Vocabulary, encode_captions

CAPTION = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=7).map(" ".join)


def _ngrams(caption: str, order: int) -> list[tuple[str, ...]]:
    words = caption.split()
    return [tuple(words[place : place + order]) for place in range(len(words) - order + 1)]


def _key(ngram: Sequence[str]) -> int:
    """The key that files of document frequencies hold, in Python's integers: it must never change."""
    vocabulary = Vocabulary()
    for word in ngram:
        vocabulary.number(word)
    hashes = dict(zip(vocabulary.words, vocabulary.hashes.tolist(), strict=True))
    key = len(ngram)
    for word in ngram:
        key = (key * 0x9E3779B97F4A7C15 + hashes[word]) % 2**64
        key = (key ^ (key >> 31)) * 0xBF58476D1CE4E5B9 % 2**64
        key ^= key >> 31
    return key


@pytest.mark.parametrize("order", ORDERS)
def test_keys_are_those_of_the_words_in_their_order(order: int) -> None:
    captions = ["a b a c d", "b", "", "d a b a b a", "c d a b"]
    vocabulary = Vocabulary()
    keys, caption = ngram_keys(encode_captions(captions, vocabulary), vocabulary, order)
    expected = [(_key(ngram), number) for number, text in enumerate(captions) for ngram in _ngrams(text, order)]
    assert list(zip(keys.tolist(), caption.tolist(), strict=True)) == expected
    assert keys.dtype == np.uint64


@given(st.lists(CAPTION, max_size=6), st.sampled_from(ORDERS))
@settings(max_examples=60, deadline=None)
def test_counts_of_candidates(captions: list[str], order: int) -> None:
    vocabulary = Vocabulary()
    table = NgramTable.of(encode_captions(captions, vocabulary), vocabulary, order)
    assert table.keys.tolist() == sorted({_key(ngram) for text in captions for ngram in _ngrams(text, order)})
    found = list(zip(table.caption.tolist(), table.keys[table.item].tolist(), table.count.tolist(), strict=True))
    counted = [Counter(map(_key, _ngrams(text, order))) for text in captions]
    assert found == [(number, key, count) for number, of in enumerate(counted) for key, count in sorted(of.items())]


@given(st.lists(st.tuples(CAPTION, st.lists(CAPTION, max_size=3)), max_size=5), st.sampled_from(ORDERS))
@settings(max_examples=60, deadline=None)
def test_matches_of_candidates_with_the_references_of_their_image(
    images: list[tuple[str, list[str]]], order: int
) -> None:
    vocabulary = Vocabulary()
    references = [text for _, group in images for text in group]
    owner = np.repeat(np.arange(len(images)), [len(group) for _, group in images])
    index = ReferenceNgrams(encode_captions(references, vocabulary), vocabulary, order, owner)
    # Candidates in another order than the images, one of them twice.
    asked = [*range(len(images))[::-1], *range(min(1, len(images)))]
    candidates = [images[number][0] for number in asked]
    table = NgramTable.of(encode_captions(candidates, vocabulary), vocabulary, order)
    ours, theirs = index.join(table, np.asarray(asked, dtype=np.int64))
    assert ours.tolist() == sorted(ours.tolist())
    found = Counter(
        (table.caption[a], index.caption[b], table.keys[table.item[a]], table.count[a], index.count[b])
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
    )
    assert all(index.keys[index.item[b]] == table.keys[table.item[a]] for a, b in zip(ours, theirs, strict=True))
    expected = Counter(
        (place, number, _key(ngram), count, Counter(_ngrams(text, order))[ngram])
        for place, image in enumerate(asked)
        for ngram, count in Counter(_ngrams(candidates[place], order)).items()
        for number, text in enumerate(references)
        if owner[number] == image and ngram in _ngrams(text, order)
    )
    assert found == expected
    documents = Counter(
        ngram
        for number in range(len(images))
        for ngram in {n for text in images[number][1] for n in _ngrams(text, order)}
    )
    assert dict(zip(index.keys.tolist(), index.document_counts().tolist(), strict=True)) == {
        _key(ngram): count for ngram, count in documents.items()
    }


def test_images_that_all_say_one_word() -> None:
    """One n-gram in the whole index, so that images are numbered without any room between them."""
    vocabulary = Vocabulary()
    captions = encode_captions(["dog"] * 3, vocabulary)
    index = ReferenceNgrams(captions, vocabulary, 1, np.arange(3))
    ours, theirs = index.join(NgramTable.of(captions, vocabulary, 1), np.array([2, 0, 1]))
    assert ours.tolist() == [0, 1, 2] and index.caption[theirs].tolist() == [2, 0, 1]
    assert index.document_counts().tolist() == [3]
