"""BLEU by hand, and its reward of single candidates against the metric of one image alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.bleu import Bleu, BleuReward
from hfcap.metrics.suite import score_captions
from tests.metrics.random_captions import random_captions


def test_statistics_by_hand() -> None:
    candidates = {"1": "the the the dog", "2": "", "3": "a cat"}
    references = {"1": ["the dog the", "a the dog sat on", "the the"], "2": ["a dog"], "3": ["cat a", "a cat a cat a"]}
    statistics = Bleu().statistics(CaptionSet(candidates, ReferenceSet(references)))
    assert statistics.dtype == np.float64
    assert statistics.tolist() == [
        # 'the' counts twice, as in the reference that has it most often, and 'dog' once; 'the the' and 'the dog' once
        # each; no trigram. Of the references of 3 and 5 words, equally far from 4, the shorter one counts.
        [3, 2, 0, 0, 4, 3, 2, 1, 4, 3],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        [2, 1, 0, 0, 2, 1, 0, 0, 2, 2],
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_values_of_sums_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matches = generator.integers(0, 50, 4)
    possible = matches + generator.integers(0, 30, 4)
    candidate, reference = [(80, 100), (100, 80)][seed - 1]
    logarithms = [math.log((m + 1e-15) / (p + 1e-9)) for m, p in zip(matches.tolist(), possible.tolist(), strict=True)]
    brevity = math.exp(1 - (reference + 1e-9) / (candidate + 1e-15)) if candidate < reference else 1.0
    expected = [brevity * math.exp(sum(logarithms[:order]) / order) for order in (1, 2, 3, 4)]
    sums = np.array([*matches, *possible, candidate, reference], dtype=np.float64)
    assert Bleu().from_sums(sums, 7).tolist() == pytest.approx(expected, rel=1e-12)
    assert Bleu().from_sums(np.stack([sums, sums])[None], 7).shape == (1, 2, 4)


def test_smoothing_is_that_of_the_coco_evaluation() -> None:
    """Without any match a value is its smoothing alone, and the length of the empty caption too."""
    sums = np.array([0.0, 0, 0, 0, 5, 4, 3, 2, 5, 5])
    product = math.prod(1e-15 / (count + 1e-9) for count in (5, 4, 3, 2))
    assert Bleu().from_sums(sums, 1)[3] == pytest.approx(product**0.25, rel=1e-9)
    nothing = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 0, 5])
    assert Bleu().from_sums(nothing, 1)[0] == 0.0  # the brevity of no words is exp(-5e15)
    both = np.zeros(10)
    assert Bleu().from_sums(both, 1)[0] == pytest.approx(1e-15 / 1e-9 * math.exp(1 - 1e-9 / 1e-15), abs=1e-300)


def _alone(candidate: str, references: list[str]) -> float:
    value = score_captions({"x": candidate}, {"x": references}, ("bleu",))["bleu_4"]
    assert value is not None
    return value


def _variants(references: dict[str, list[str]]) -> list[list[str]]:
    """Three candidates an image, near to what people wrote: a caption without its end, two in a row, and nothing."""
    return [[" ".join(group[0].split()[:6]), f"{group[-1]} {group[0]}", ""] for group in references.values()]


def test_reward_without_end_word_is_bleu_of_one_image() -> None:
    _, references = random_captions(20, 5)
    variants = dict(zip(references, _variants(references), strict=True))
    chosen = ["7", "0", "19", "7"]
    scores = BleuReward(references, end_word=False).scores(chosen, [variants[image_id] for image_id in chosen])
    expected = [[_alone(text, references[image_id]) for text in variants[image_id]] for image_id in chosen]
    assert scores.shape == (4, 3) and np.median(scores[:, :2]) > 0.05
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


@pytest.mark.parametrize("cut", [False, True])
def test_reward_counts_the_end_as_a_word(cut: bool) -> None:
    """The same as a word written behind every human caption and behind candidates that ended."""
    _, references = random_captions(20, 5)
    candidates = _variants(references)
    ended = np.arange(60).reshape(20, 3) % 4 != 0 if cut else None
    scores = BleuReward(references).scores(list(references), candidates, ended)
    for number, (group, of_image) in enumerate(zip(candidates, references.values(), strict=True)):
        for place, caption in enumerate(group):
            finished = ended is None or ended[number, place]
            written = [f"{reference} endword" for reference in of_image]
            expected = _alone(f"{caption} endword" if finished else caption, written)
            assert scores[number, place] == pytest.approx(expected, rel=1e-12, abs=1e-300), (number, place)
    assert np.median(scores) > 0.05


def test_a_fragment_gains_by_its_end_only_where_people_ended() -> None:
    reward = BleuReward({"1": ["a man on a horse rides away"]})
    whole, fragment, cut = reward.scores(
        ["1"],
        [["a man on a horse rides away", "a man on a horse", "a man on a horse"]],
        np.array([[True, True, False]]),
    )[0]
    assert whole == pytest.approx(1.0) and whole > cut > 0.5 and whole > fragment
