"""BLEU, ROUGE-L and CIDEr-D against the scorers of the COCO evaluation, which need no Java once captions are tokens."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from hfcap.metrics.base import ReferenceSet
from hfcap.metrics.cider import CiderReward
from hfcap.metrics.shared.document_frequencies import count_document_frequencies
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.random_captions import random_captions

pytestmark = pytest.mark.contract

pytest.importorskip("pycocoevalcap")

TOLERANCE = 1e-9


def _theirs(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, tuple[float, list[float]]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    lists = {key: [line] for key, line in candidates.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleu_each = Bleu(4).compute_score(references, lists)
    found = {f"bleu_{order}": (bleu[order - 1], bleu_each[order - 1]) for order in (1, 2, 3, 4)}
    found["rouge_l"] = Rouge().compute_score(references, lists)
    found["cider"] = Cider().compute_score(references, lists)
    return found


@pytest.mark.parametrize(
    ("n_images", "seed", "longest", "most_references"),
    [(300, 0, 14, 6), (120, 1, 40, 1), (60, 2, 150, 5), (2, 3, 6, 2)],
    ids=["usual", "one reference", "longer than a machine word", "two images"],
)
def test_corpus_and_every_image_agree(n_images: int, seed: int, longest: int, most_references: int) -> None:
    candidates, references = random_captions(n_images, seed, longest=longest, most_references=most_references)
    # The other side divides by the length of a candidate, so that it cannot score empty ones.
    candidates = {key: line or "a" for key, line in candidates.items()}
    result = CaptionSuite().compute(candidates, ReferenceSet(references, tokenized=True))
    each = result.per_image()
    for output, (corpus, per_image) in _theirs(candidates, references).items():
        assert result.values[output] == pytest.approx(corpus, abs=TOLERANCE), output
        np.testing.assert_allclose(each[output], per_image, atol=TOLERANCE, rtol=0, err_msg=output)


def test_empty_candidates_score_zero() -> None:
    candidates, references = random_captions(50, 4)
    candidates |= {"3": "", "7": ""}
    each = CaptionSuite().compute(candidates, ReferenceSet(references, tokenized=True)).per_image()
    for output, column in each.items():
        assert column[[3, 7]] == pytest.approx(0.0, abs=1e-6), output


def test_reward_equals_the_metric_of_each_candidate() -> None:
    _, references = random_captions(40, 5)
    rounds = [random_captions(40, seed)[0] for seed in (6, 7, 8)]
    rounds = [{key: line or "a" for key, line in candidates.items()} for candidates in rounds]
    reward = CiderReward(references, end_word=False, tokenized=True)
    ids = list(references)
    scores = reward.scores(ids, [[candidates[key] for candidates in rounds] for key in ids])
    assert scores.shape == (40, 3)
    for column, candidates in enumerate(rounds):
        np.testing.assert_allclose(scores[:, column], _theirs(candidates, references)["cider"][1], atol=TOLERANCE)


def test_reward_of_some_images_uses_the_frequencies_of_all() -> None:
    candidates, references = random_captions(40, 9)
    reward = CiderReward(references, end_word=False, tokenized=True)
    chosen = ["5", "31", "5"]
    expected = np.asarray(_theirs({k: v or "a" for k, v in candidates.items()}, references)["cider"][1])
    scores = reward.scores(chosen, [[candidates[key] or "a"] for key in chosen])
    np.testing.assert_allclose(scores[:, 0], expected[[5, 31, 5]], atol=TOLERANCE)


def test_end_word_is_a_word_of_all_captions() -> None:
    candidates, references = random_captions(40, 10)
    with_word = {key: [f"{line} endword" for line in group] for key, group in references.items()}
    expected = _theirs({key: f"{line} endword" for key, line in candidates.items()}, with_word)["cider"][1]
    reward = CiderReward(references, end_word=True, tokenized=True)
    scores = reward.scores(list(candidates), [[line] for line in candidates.values()])
    np.testing.assert_allclose(scores[:, 0], expected, atol=TOLERANCE)


def test_candidates_cut_short_lose_the_end_word() -> None:
    candidates, references = random_captions(40, 11)
    with_word = {key: [f"{line} endword" for line in group] for key, group in references.items()}
    ended = np.arange(40) % 3 != 0
    given = {
        key: f"{line} endword" if ended[number] else line or "a"
        for number, (key, line) in enumerate(candidates.items())
    }
    expected = _theirs(given, with_word)["cider"][1]
    reward = CiderReward(references, end_word=True, tokenized=True)
    lines = [line if ended[number] else line or "a" for number, line in enumerate(candidates.values())]
    scores = reward.scores(list(candidates), [[line] for line in lines], ended[:, None])
    np.testing.assert_allclose(scores[:, 0], expected, atol=TOLERANCE)


def test_frequencies_from_elsewhere_are_those_of_a_larger_corpus() -> None:
    """Scoring a part of the images with the frequencies of all gives the values the whole corpus gives."""
    candidates, references = random_captions(80, 12)
    candidates = {key: line or "a" for key, line in candidates.items()}
    expected = _theirs(candidates, references)["cider"][1]
    part = list(references)[:30]
    frequencies = count_document_frequencies(references, "all")
    reward = CiderReward(
        {key: references[key] for key in part}, document_frequencies=frequencies, end_word=False, tokenized=True
    )
    scores = reward.scores(part, [[candidates[key]] for key in part])
    np.testing.assert_allclose(scores[:, 0], expected[:30], atol=TOLERANCE)
