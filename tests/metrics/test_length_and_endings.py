import math

import numpy as np
import pytest

from hfcap.metrics.bad_endings import BadEndings
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.length import Length


def _captions(candidates: dict[str, str], references: dict[str, list[str]] | None = None) -> CaptionSet:
    return CaptionSet(candidates, ReferenceSet(references or {key: ["a dog"] for key in candidates}))


def test_length_counts_words_not_punctuation() -> None:
    captions = _captions({"1": "A dog, asleep.", "2": "Two dogs run in grass!"}, {"1": ["a b", "a b c d"], "2": ["a"]})
    metric = Length()
    mean, deviation, ratio = metric.values(captions, metric.statistics(captions)).tolist()
    assert (mean, deviation) == (4.0, 1.0)
    assert ratio == pytest.approx(8 / (3 + 1))


def test_length_of_single_images() -> None:
    captions = _captions({"1": "a dog", "2": "a big dog"}, {"1": ["a a a a"], "2": ["a a a"]})
    each = Length().per_image(Length().statistics(captions))
    assert each["length_mean"].tolist() == [2, 3]
    assert each["length_deviation"].tolist() == [0, 0]
    assert each["length_ratio"].tolist() == [0.5, 1.0]


def test_length_ratio_is_undefined_against_empty_references() -> None:
    captions = _captions({"1": "a dog"}, {"1": ["..."]})
    assert math.isnan(Length().values(captions, Length().statistics(captions))[2])


@pytest.mark.parametrize("caption", ["A man on a", "a dog sitting with", "two cats and.", "", "!"])
def test_bad_endings(caption: str) -> None:
    assert BadEndings().statistics(_captions({"1": caption})).tolist() == [[1.0]]


@pytest.mark.parametrize("caption", ["a man on a bench", "The dog it plays with a ball.", "an and gate", "cat"])
def test_good_endings(caption: str) -> None:
    assert BadEndings().statistics(_captions({"1": caption})).tolist() == [[0.0]]


def test_share_of_bad_endings() -> None:
    captions = _captions({"1": "a man on a", "2": "a man", "3": "dogs", "4": "a cat next to the"})
    metric = BadEndings()
    statistics = metric.statistics(captions)
    assert statistics.dtype == np.float64 and statistics.shape == (4, 1)
    np.testing.assert_array_equal(metric.values(captions, statistics), [0.5])


def test_values_of_sums() -> None:
    """Two corpora of four images: mean, deviation (of the population) and ratio of all words."""
    words = [2.0, 3.0, 3.0, 8.0]
    sums = np.array([[sum(words), sum(word**2 for word in words), 20.0], [12.0, 36.0, 0.0]])
    found = Length().from_sums(sums, 4)
    assert found[0].tolist() == pytest.approx([4.0, math.sqrt(np.var(words)), 0.8])
    assert found[1, :2].tolist() == [3.0, 0.0] and math.isnan(found[1, 2])
    assert np.isnan(Length().from_sums(np.zeros(3), 0)).tolist() == [True, True, True]


def test_rounding_gives_no_negative_variance() -> None:
    """Words of 0.1 an image do not occur, but resamples of a mean may round the difference below zero."""
    sums = np.array([0.3, 0.03 - 1e-17, 1.0])
    assert Length().from_sums(sums, 3)[1] == 0.0


def test_mean_words_of_the_references_of_each_image() -> None:
    captions = _captions({"1": "a", "2": "a b c"}, {"1": ["a b", "a b c d"], "2": ["a", "a", "a b c d"]})
    statistics = Length().statistics(captions)
    assert statistics.dtype == np.float64 and statistics.tolist() == [[1.0, 1.0, 3.0], [3.0, 9.0, 2.0]]
