"""Large sets are worked on part by part: the same numbers to the last bit as in one piece, whatever the parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.shared.ngrams import added_counts, ngram_keys
from hfcap.metrics.shared.tokenizer import Vocabulary, encode_captions, tokenize
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.random_captions import random_captions

CANDIDATES, REFERENCES = random_captions(47, 11)
ODD = ("It's a man-made dog, isn't it?", "plan B.", "A. B. C.", "call (02) now", "", "  ", "caf\u00e9 12:30pm", "no. 5")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("at_once", [1, 7, 46, 47])
def test_parts_change_no_bit(kept: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("bleu", "rouge_l", "cider", "length", "bad_endings", "diversity")
    whole = CaptionSuite(names).compute(CANDIDATES, REFERENCES)
    monkeypatch.setattr("hfcap.metrics.base.IMAGES_AT_ONCE", at_once)
    references = ReferenceSet(REFERENCES, keeps_parts=kept)
    for _ in range(2):  # the second time from what is kept
        parted = CaptionSuite(names).compute(CANDIDATES, references)
        for name, rows in whole.statistics.items():
            np.testing.assert_array_equal(parted.statistics[name], rows, err_msg=name)
        assert parted.values == whole.values


def test_a_suite_scores_in_parts_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than `_MOST_IMAGES_KEPT` images nothing is kept of a part, not even the indexes of n-grams."""
    whole = CaptionSuite().compute(CANDIDATES, REFERENCES)
    monkeypatch.setattr("hfcap.metrics.base.IMAGES_AT_ONCE", 10)
    monkeypatch.setattr("hfcap.metrics.suite._MOST_IMAGES_KEPT", 20)
    sizes: list[int] = []
    ngrams = ReferenceSet.ngrams

    def noted(self: ReferenceSet, order: int) -> object:
        sizes.append(len(self))
        return ngrams(self, order)

    monkeypatch.setattr(ReferenceSet, "ngrams", noted)
    parted = CaptionSuite().compute(CANDIDATES, REFERENCES)
    assert parted.values == whole.values
    assert max(sizes) == 10


def test_documents_are_those_of_the_whole_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.metrics.base.IMAGES_AT_ONCE", 8)
    references = ReferenceSet(REFERENCES, keeps_parts=False)
    expected: Counter[tuple[str, ...]] = Counter()
    for group in REFERENCES.values():
        split = [line.split() for line in group]
        expected.update({(one, two) for words in split for one, two in pairwise(words)})
    for part in references.parts():
        keys, counts = part.document_counts(2)
        assert part.n_documents == len(REFERENCES) and (np.diff(keys.astype(object)) > 0).all()
        found = {}
        for pair in expected:
            (key,), _ = ngram_keys(encode_captions([" ".join(pair)], references.vocabulary), references.vocabulary, 2)
            if key in keys:
                found[pair] = int(counts[np.searchsorted(keys, key)])
        several = {pair: count for pair, count in expected.items() if count > 1}
        assert 0 < len(several) < len(expected) and found == several and len(keys) == len(several)


KEY = st.integers(0, 30) | st.sampled_from([2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])


@given(st.lists(st.dictionaries(KEY, st.integers(1, 5), max_size=12), max_size=9), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_counts_add_up(tables: Sequence[dict[int, int]], at_once: int) -> None:
    given_tables = [
        (np.asarray(sorted(table), dtype=np.uint64), np.asarray([table[key] for key in sorted(table)], dtype=np.int64))
        for table in tables
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcap.metrics.shared.ngrams._ENTRIES_AT_ONCE", at_once)
        patch.setattr("hfcap.metrics.shared.ngrams._SORTED_AT_ONCE", at_once)
        keys, counts = added_counts(given_tables)
    expected = sum((Counter(table) for table in tables), Counter())
    assert keys.tolist() == sorted(expected)
    assert counts.tolist() == [expected[key] for key in sorted(expected)]


PIECE = st.one_of(
    st.sampled_from(["a", "dog", "dog.", "B.", "no.", "can't", "(02)", "5", "-", "U.S."]), st.text(max_size=4)
)


@given(st.lists(st.lists(PIECE, max_size=7).map(" ".join), max_size=6), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_many_captions_are_tokenised_as_single_ones(captions: list[str], at_once: int) -> None:
    """Pieces that were seen before are looked up together; the rules are those of `tokenize`."""
    vocabulary = Vocabulary()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfcap.metrics.shared.tokenizer._CAPTIONS_AT_ONCE", at_once)
        encoded = encode_captions([*captions, *ODD, *captions], vocabulary)
        split = encode_captions(captions, vocabulary, tokenized=True)
    expected = [" ".join(tokenize(caption)) for caption in [*captions, *ODD, *captions]]
    assert encoded.as_strings(vocabulary) == expected
    assert encoded.part(1, 5).as_strings(vocabulary) == expected[1:5]
    assert encoded.chosen(np.asarray([4, 0, 4])).as_strings(vocabulary) == [expected[4], expected[0], expected[4]]
    assert split.as_strings(vocabulary) == [" ".join(caption.split()) for caption in captions]


def test_parts_of_captions_share_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.metrics.base.IMAGES_AT_ONCE", 20)
    captions = CaptionSet(CANDIDATES, ReferenceSet(REFERENCES))
    parts = list(captions.parts())
    assert [len(part) for part in parts] == [20, 20, 7]
    assert [line for part in parts for line in part.tokenized_candidates] == captions.tokenized_candidates
    assert [group for part in parts for group in part.tokenized_references] == captions.tokenized_references
    assert all(np.shares_memory(part.candidate_tokens.tokens, captions.candidate_tokens.tokens) for part in parts)
