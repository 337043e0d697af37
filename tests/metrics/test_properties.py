"""What must hold for any captions: order of images, repeated references, perfect candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfcap.metrics.rouge_l import longest_common_subsequences
from hfcap.metrics.shared.tokenizer import Vocabulary, encode_captions
from hfcap.metrics.suite import CaptionSuite

WORDS = st.sampled_from(["a", "dog", "cat", "man", "red", "on", "grass", "runs", "the"])
SENTENCE = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)
IMAGES = st.lists(st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=4)), min_size=2, max_size=8)
SUITE = CaptionSuite()


def _values(images: Sequence[tuple[str, Sequence[str]]], order: Sequence[int] | None = None) -> Mapping[str, float]:
    chosen = order if order is not None else range(len(images))
    candidates = {f"{number}": images[number][0] for number in chosen}
    references = {f"{number}": images[number][1] for number in chosen}
    values = SUITE.compute(candidates, references).values
    return {name: value for name, value in values.items() if value is not None}


@given(IMAGES, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_images_changes_nothing(images: list[tuple[str, list[str]]], random: object) -> None:
    order = list(range(len(images)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert _values(images, order) == pytest.approx(_values(images), abs=1e-12)


@given(IMAGES)
@settings(max_examples=60, deadline=None)
def test_repeated_references_change_nothing_where_the_best_one_counts(images: list[tuple[str, list[str]]]) -> None:
    repeated = [(candidate, [*group, group[0]]) for candidate, group in images]
    once, twice = _values(images), _values(repeated)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        assert twice[name] == pytest.approx(once[name], abs=1e-12), name


@given(IMAGES)
@settings(max_examples=60, deadline=None)
def test_doubling_all_references_leaves_cider_alone(images: list[tuple[str, list[str]]]) -> None:
    """CIDEr-D is a mean over references, and document frequencies count images, not captions."""
    doubled = [(candidate, [*group, *group]) for candidate, group in images]
    assert _values(doubled)["cider"] == pytest.approx(_values(images)["cider"], abs=1e-12)


@given(IMAGES)
@settings(max_examples=60, deadline=None)
def test_values_stay_in_their_ranges(images: list[tuple[str, list[str]]]) -> None:
    values = _values(images)
    assert all(0.0 <= values[name] <= 1.0 for name in values if name != "cider")
    assert 0.0 <= values["cider"] <= 10.0 + 1e-9


def test_candidate_equal_to_its_only_reference_reaches_the_maxima() -> None:
    sentences = ["one red dog runs", "two big cats sit here", "many old boats on water", "green hills behind my house"]
    values = _values([(sentence, [sentence]) for sentence in sentences])
    expected = {f"bleu_{order}": 1.0 for order in (1, 2, 3, 4)} | {"rouge_l": 1.0, "cider": 10.0}
    assert values == pytest.approx(expected, abs=1e-8)


def test_cider_of_one_image_alone_is_zero() -> None:
    assert _values([("a red dog", ["a red dog", "one dog"])])["cider"] == 0.0


def _longest_common(first: list[str], second: list[str]) -> int:
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for position, other in enumerate(second, start=1):
            above = row[position]
            row[position] = before + 1 if word == other else max(row[position], row[position - 1])
            before = above
    return row[-1]


@given(st.lists(st.tuples(st.lists(WORDS, max_size=90), st.lists(WORDS, max_size=90)), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_bit_parallel_subsequences_equal_the_textbook(pairs: list[tuple[list[str], list[str]]]) -> None:
    vocabulary = Vocabulary()
    first = encode_captions([" ".join(left) for left, _ in pairs], vocabulary)
    second = encode_captions([" ".join(right) for _, right in pairs], vocabulary)
    numbers = np.arange(len(pairs))
    found = longest_common_subsequences(first, second, numbers, numbers)
    assert found.tolist() == [_longest_common(left, right) for left, right in pairs]
