"""Minimum Bayes risk consensus against loops over pycocoevalcap's CIDEr-D."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcap.metrics.shared.consensus import Pool, pooled, ranked_by_consensus
from hfcap.metrics.shared.document_frequencies import count_document_frequencies
from tests.metrics.random_captions import random_captions
from tests.metrics.reference_cider import reference_cider


def _pools(n_images: int, seed: int) -> list[Pool]:
    draw = np.random.default_rng(seed)
    groups = [tuple(dict.fromkeys(group)) for group in random_captions(n_images, seed)[1].values()]
    return [Pool(group, tuple(draw.uniform(0.1, 2.0, len(group)).tolist())) for group in groups]


@pytest.mark.parametrize("source", ["corpus", "training captions"])
def test_expected_cider_of_every_candidate(source: str) -> None:
    pools = _pools(25, seed=1)
    documents = [pool.captions for pool in pools]
    frequencies = None
    if source != "corpus":
        training = random_captions(40, seed=2)[1]
        documents = [tuple(group) for group in training.values()]
        frequencies = count_document_frequencies(training, "training")
    ranked = ranked_by_consensus(pools, frequencies)
    for pool, found in zip(pools, ranked, strict=True):
        expected = {
            caption: sum(
                weight * reference_cider(caption, [other], documents)
                for other, weight in zip(pool.captions, pool.weights, strict=True)
            )
            / sum(pool.weights)
            for caption in pool.captions
        }
        assert {item.caption: item.expected_cider for item in found} == pytest.approx(expected, abs=1e-9)
        assert [item.expected_cider for item in found] == pytest.approx(sorted(expected.values(), reverse=True))


def test_majority_wins_and_a_heavy_member_outvotes_it() -> None:
    lists = [["two dogs run on the grass"], ["two dogs run on grass"], ["a red bus in a street"]]
    others = [pooled([["a cat on a mat"], ["one horse"], ["a man with a hat"]], [1, 1, 1])] * 5
    [equal, *_] = ranked_by_consensus([pooled(lists, [1, 1, 1]), *others])
    assert equal[0].caption.startswith("two dogs")
    [heavy, *_] = ranked_by_consensus([pooled(lists, [1, 1, 9]), *others])
    assert heavy[0].caption == "a red bus in a street"


def test_pooling_joins_equal_texts_and_drops_empty_ones() -> None:
    pool = pooled([["a  dog", "a cat"], ["a dog"], ["", " "]], [1.0, 2.0, 5.0])
    assert pool.captions == ("a dog", "a cat")
    assert pool.weights == pytest.approx((2.5, 0.5))
    assert pooled([["", ""], [" "]], [1, 1]) == Pool(("",), (1.0,))


def test_a_captioner_of_weight_0_proposes_without_a_vote() -> None:
    pool = pooled([["a dog"], ["a cat", "a dog"]], [2.0, 0.0])
    assert pool == Pool(("a dog", "a cat"), (2.0, 0.0))
    # Where nobody has a vote, all have the same.
    assert pooled([["a dog"], ["a cat"]], [0.0, 0.0]) == Pool(("a dog", "a cat"), (1.0, 1.0))
    assert pooled([], []) == Pool(("",), (1.0,))
    with pytest.raises(ValueError, match="shorter"):
        pooled([["a dog"], ["a cat"]], [1.0])


def test_equals_keep_their_order() -> None:
    """Captions in another order of words, none like the other: rounding must not decide."""
    pools = [Pool(("one two", "red sun", "big sea", "old man"), (0.1, 0.1, 0.1, 0.1)), Pool(("x",), (1.0,))]
    ranked, alone = ranked_by_consensus(pools)
    assert [item.caption for item in ranked] == ["one two", "red sun", "big sea", "old man"]
    assert [item.expected_cider for item in ranked] == pytest.approx([5.0 / 4] * 4)
    assert [item.caption for item in alone] == ["x"]


@given(st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=4), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_text_is_ranked_and_nothing_is_lost(lists: list[list[str]]) -> None:
    pool = pooled(lists, [1.0] * len(lists))
    [ranked] = ranked_by_consensus([pool])
    assert sorted(item.caption for item in ranked) == sorted(pool.captions)
    assert all(np.isfinite(item.expected_cider) for item in ranked)
