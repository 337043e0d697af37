"""CIDEr-D and ROUGE-L by hand; test_against_pycocoevalcap.py compares them with other programs on many captions."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.cider import Cider, CiderReward, CiderScorer
from hfcap.metrics.rouge_l import RougeL, longest_common_subsequences
from hfcap.metrics.shared.document_frequencies import count_document_frequencies
from hfcap.metrics.shared.tokenizer import Vocabulary, encode_captions
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.random_captions import random_captions

REFERENCES = {
    "1": ["a red dog runs", "the dog runs on grass"],
    "2": ["a cat"],
    "3": ["two cats and a dog sit on a mat"],
    "4": ["a red bus"],
}


def _vector(caption: str, order: int) -> dict[tuple[str, ...], float]:
    """Counts times ln(images / images that have it) of the n-grams of one order."""

    def ngrams(text: str) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[place : place + order]) for place in range(len(words) - order + 1)]

    documents = Counter(n for group in REFERENCES.values() for n in {n for text in group for n in ngrams(text)})
    return {n: count * math.log(4 / max(1, documents[n])) for n, count in Counter(ngrams(caption)).items()}


def _similarity(candidate: str, reference: str) -> float:
    """CIDEr-D of a candidate with one human caption: the mean of four cosines, cut at the caption's own weights."""
    total = 0.0
    for order in (1, 2, 3, 4):
        ours, theirs = _vector(candidate, order), _vector(reference, order)
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in (ours, theirs)]
        if all(norms):
            shared = sum(min(weight, theirs.get(n, 0.0)) * theirs.get(n, 0.0) for n, weight in ours.items())
            total += shared / (norms[0] * norms[1])
    delta = max(len(candidate.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
    return 10 * total / 4 * math.exp(-(delta**2) / 72)


CANDIDATES = {"1": "a dog runs runs on red grass", "2": "", "3": "cat", "4": "a red bus"}


def test_cider_by_hand() -> None:
    expected = [
        np.mean([_similarity(CANDIDATES[key], reference) for reference in group]) for key, group in REFERENCES.items()
    ]
    result = CaptionSuite(("cider",)).compute(CANDIDATES, REFERENCES)
    assert result.statistics["cider"].shape == (4, 1) and expected[0] > 0.5 and expected[3] > 5
    assert result.per_image()["cider"].tolist() == pytest.approx(expected, rel=1e-12)
    assert result.values["cider"] == pytest.approx(np.mean(expected), rel=1e-12)


def test_pairs_with_single_human_captions() -> None:
    references = ReferenceSet(REFERENCES)
    scorer = CiderScorer(references)
    lines, images = ["a dog runs", "a red bus", "two cats", ""], np.array([0, 3, 0, 2])
    pairs = scorer.pairs(encode_captions(lines, references.vocabulary), images)
    groups = list(REFERENCES.values())
    first = [0, 2, 3, 4]
    expected = [
        (number, first[image] + place, _similarity(line, reference))
        for number, (line, image) in enumerate(zip(lines, images.tolist(), strict=True))
        for place, reference in enumerate(groups[image])
    ]
    assert pairs.candidate.tolist() == [row[0] for row in expected]
    assert pairs.reference.tolist() == [row[1] for row in expected]
    assert pairs.similarity.tolist() == pytest.approx([row[2] for row in expected], rel=1e-12)


def test_one_metric_scores_other_human_captions_too() -> None:
    """The index of the human captions is kept between calls, but not for others."""
    metric = Cider()
    first, second = ReferenceSet(REFERENCES), ReferenceSet({key: group[:1] for key, group in REFERENCES.items()})
    for references in (first, second, first):
        captions = CaptionSet(CANDIDATES, references)
        assert metric.statistics(captions).tolist() == Cider().statistics(captions).tolist()
    assert (
        metric.statistics(CaptionSet(CANDIDATES, first)).tolist()
        != Cider().statistics(CaptionSet(CANDIDATES, second)).tolist()
    )


def test_rewards_by_hand() -> None:
    reward = CiderReward(REFERENCES, end_word=False)
    scores = reward.scores(["4", "1", "4"], [["A red bus!", "bus"], ["a dog", ""], ["a cat", "a red bus"]])
    expected = [
        [np.mean([_similarity(text, r) for r in REFERENCES[key]]) for text in group]
        for key, group in (("4", ["a red bus", "bus"]), ("1", ["a dog", ""]), ("4", ["a cat", "a red bus"]))
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert reward.scores([], []).shape == (0, 0)
    with pytest.raises(UserError, match="no reference captions for image '9'"):
        reward.scores(["9"], [["a"]])
    with pytest.raises(AssertionError, match="differ in their number of candidates"):
        reward.scores(["1", "2"], [["a"], ["a", "b"]])


def test_rewards_with_frequencies_from_elsewhere(tmp_path: Path) -> None:
    """Of a corpus, of a larger one, and from the names that recipes know; the end word counts in the larger one too."""
    _, everything = random_captions(30, 1)
    part = {key: everything[key] for key in list(everything)[:5]}
    candidates = [[group[0], "a dog"] for group in part.values()]
    for end_word in (False, True):
        frequencies = count_document_frequencies(everything, "all", end_word=end_word)
        found = CiderReward(part, document_frequencies=frequencies, end_word=end_word).scores(list(part), candidates)
        whole = CiderReward(everything, end_word=end_word).scores(list(part), candidates)
        np.testing.assert_allclose(found, whole, rtol=1e-12)
        path = tmp_path / "all.json"
        path.write_text(json.dumps(everything))
        named = CiderReward(part, document_frequencies=str(path), end_word=end_word).scores(list(part), candidates)
        np.testing.assert_allclose(named, whole, rtol=1e-12)
        alone = CiderReward(part, end_word=end_word).scores(list(part), candidates)
        assert not np.allclose(alone, whole)
    assert CiderReward(part)._scorer._end_word, (
        "Rennie et al. (2017): without the end as a word, captions stop anywhere"
    )


def test_tokenised_captions_are_split_at_blanks_only() -> None:
    raw = CiderReward({"1": ["A dog!"], "2": ["x"]}, end_word=False).scores(["1"], [["a dog"]])
    split = CiderReward({"1": ["A dog!"], "2": ["x"]}, end_word=False, tokenized=True).scores(["1"], [["a dog"]])
    assert raw[0, 0] == pytest.approx(5.0) and split[0, 0] == 0.0  # two of four orders
    alike = CiderReward({"1": ["A dog!"], "2": ["x"]}, end_word=False, tokenized=True).scores(["1"], [["A dog!"]])
    assert alike[0, 0] == pytest.approx(5.0)


def test_rouge_by_hand() -> None:
    """Best precision and best recall may come from different human captions."""
    candidates = {"1": "a dog runs on the green grass", "2": "", "3": "x y", "4": "a b", "5": "dog"}
    references = {"1": ["a dog on grass", "the dog runs"], "2": ["a"], "3": ["a b"], "4": ["", "a b"], "5": ["dog"]}
    statistics = RougeL().statistics(CaptionSet(candidates, ReferenceSet(references, tokenized=True)))
    precision, recall = 4 / 7, 1.0
    recall_of_second = 2 / 3
    assert recall_of_second < recall
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert statistics[:, 0].tolist() == pytest.approx([expected, 0.0, 0.0, 1.0, 1.0], rel=1e-12)


@pytest.mark.parametrize("length", [8, 9, 40, 63, 64, 65, 66, 130])
def test_common_subsequences_around_the_width_of_a_machine_word(length: int) -> None:
    """Every second word in common, in captions as long as a group of them may be and one word longer."""
    vocabulary = Vocabulary()
    first = [" ".join(f"w{number}" for number in range(length)), "w0", ""]
    second = [" ".join(f"w{number}" if number % 2 else "other" for number in range(length)), f"w1 {first[0]}", "w1"]
    left, right = (encode_captions(lines, vocabulary, tokenized=True) for lines in (first, second))
    ours, theirs = np.array([0, 1, 2, 0, 0, 1]), np.array([0, 1, 0, 1, 2, 2])
    found = longest_common_subsequences(left, right, ours, theirs)
    assert found.tolist() == [length // 2, 1, 0, length, 1, 0]
    assert found.dtype == np.int64
