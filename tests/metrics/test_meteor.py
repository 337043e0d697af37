"""METEOR against its jar: recorded answers about our own sentences, and a live comparison on COCO captions."""

from __future__ import annotations

import json
import random
import zipfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfcap.metrics import meteor as meteor_module
from hfcap.metrics.base import CaptionSet, ReferenceSet
from hfcap.metrics.meteor import Meteor, meteor_statistics
from hfcap.metrics.meteor_parts.alignment import LONGEST_TOGETHER, align_together
from hfcap.metrics.meteor_parts.bounds import upper_bounds
from hfcap.metrics.meteor_parts.index import INDEX_VERSION, MeteorIndex, open_index
from hfcap.metrics.meteor_parts.matching import Matches, MatchFinder
from hfcap.metrics.meteor_parts.normalize import normalize
from hfcap.metrics.meteor_parts.score import N_STATISTICS, scores_of
from hfcap.metrics.meteor_parts.stemmer import stem
from hfcap.metrics.meteor_parts.words import WordTable
from hfcap.metrics.suite import CaptionSuite
from tests.metrics.meteor_jar import GOLDEN, HAS_JAR, jar_scores

pytest.importorskip("pycocoevalcap")

TOLERANCE = 1e-9
_GOLDEN: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def meteor_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all workers of a test run, so that the real index is built once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "meteor-cache"


@pytest.fixture(scope="session")
def index(meteor_cache: Path) -> MeteorIndex:
    return open_index(cache=meteor_cache)


def _scores(index: MeteorIndex, pairs: list[tuple[str, list[str]]]) -> tuple[list[float], float]:
    statistics = meteor_statistics(index, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return scores_of(statistics).tolist(), float(scores_of(statistics.sum(axis=0)))


def test_normalisation_equals_the_jar(index: MeteorIndex) -> None:
    found = normalize([row["caption"] for row in _GOLDEN["normalization"]], index.prefixes)
    for row, words in zip(_GOLDEN["normalization"], found, strict=True):
        assert " ".join(words) == row["words"], row["caption"]


@pytest.mark.parametrize("separator", ["\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_line_separator_inside_a_caption_is_a_blank(index: MeteorIndex, separator: str) -> None:
    captions = ["a cat", f"a dog,{separator}running", "one more, here"]
    expected = [["a", "cat"], ["a", "dog", ",", "running"], ["one", "more", ",", "here"]]
    assert normalize(captions, index.prefixes) == expected


def test_a_caption_of_blanks_has_no_words(index: MeteorIndex) -> None:
    assert normalize(["", "  ", "\t", "\u3000", "\n"], index.prefixes) == [[]] * 5


def test_captions_do_not_touch_each_other(index: MeteorIndex) -> None:
    captions = [row["caption"] for row in _GOLDEN["normalization"]]
    alone = [normalize([caption], index.prefixes)[0] for caption in captions]
    assert normalize(captions[::-1], index.prefixes)[::-1] == alone


def test_stems_equal_the_jar() -> None:
    assert {word: stem(word) for word in _GOLDEN["stems"]} == _GOLDEN["stems"]


@pytest.mark.parametrize("search", ["together", "alone"])
def test_scores_equal_the_jar(index: MeteorIndex, monkeypatch: pytest.MonkeyPatch, search: str) -> None:
    if search == "alone":  # the search for captions that are too long for the other one
        monkeypatch.setattr(meteor_module, "LONGEST_TOGETHER", 0)
    pairs = [(row["candidate"], row["references"]) for row in _GOLDEN["segments"]]
    scores, corpus = _scores(index, pairs)
    for row, score in zip(_GOLDEN["segments"], scores, strict=True):
        assert score == pytest.approx(row["score"], abs=TOLERANCE), row["candidate"]
    assert corpus == pytest.approx(_GOLDEN["corpus"], abs=TOLERANCE)


def test_scores_of_one_pair_after_the_other_equal_the_jar(index: MeteorIndex) -> None:
    """Also where no word matches, and where every phrase that was found belongs to this one pair."""
    for row in _GOLDEN["segments"]:
        scores, _ = _scores(index, [(row["candidate"], row["references"])])
        assert scores == [pytest.approx(row["score"], abs=TOLERANCE)], row["candidate"]


def test_small_batches_keep_their_limits_and_give_the_same_scores(
    index: MeteorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in _GOLDEN["segments"] if len(row["candidate"]) < 60]
    monkeypatch.setattr(meteor_module, "_PAIRS_PER_BATCH", 3)
    monkeypatch.setattr(meteor_module, "_CELLS_PER_BATCH", 100)
    batches: list[list[int]] = []
    find = MatchFinder.find

    def noted(finder: MatchFinder, candidates: Any, references: Any) -> Matches:
        batches.append((finder.lengths[candidates] * finder.lengths[references]).tolist())
        return find(finder, candidates, references)

    monkeypatch.setattr(MatchFinder, "find", noted)
    scores, _ = _scores(index, [(row["candidate"], row["references"]) for row in rows])
    assert scores == pytest.approx([row["score"] for row in rows], abs=TOLERANCE)
    assert sum(map(len, batches)) == sum(len(row["references"]) for row in rows)
    assert all(len(cells) <= 3 and (len(cells) == 1 or sum(cells) <= 100) for cells in batches)
    # None is smaller than it must be: with the first pair of the next one it would be too large.
    assert all(len(cells) == 3 or sum(cells) + after[0] > 100 for cells, after in pairwise(batches))


def _coco_pairs(n_images: int) -> list[tuple[str, list[str]]]:
    """Images of val2014 with their captions as pycocoevalcap hands them to METEOR."""
    import pycocoevalcap

    jar = Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar"
    with zipfile.ZipFile(jar) as archive:
        rows = json.loads(archive.read("coco/annotations/captions_val2014.json"))["annotations"]
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        groups[str(row["image_id"])].append(row["caption"])
    chosen = random.Random(7).sample(sorted(groups), n_images)
    candidates = {key: groups[key][0] for key in chosen}
    captions = CaptionSet(candidates, ReferenceSet({key: groups[key][1:] for key in chosen}))
    return list(zip(captions.tokenized_candidates, captions.tokenized_references, strict=True))


@pytest.mark.skipif(not HAS_JAR, reason="needs Java and pycocoevalcap")
def test_coco_captions_equal_the_jar(index: MeteorIndex) -> None:
    pairs = _coco_pairs(300)
    expected, expected_corpus = jar_scores(pairs)
    scores, corpus = _scores(index, pairs)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
    assert corpus == pytest.approx(expected_corpus, abs=TOLERANCE)


def test_metric_in_the_suite(meteor_cache: Path, index: MeteorIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(meteor_cache))
    rows = [row for row in _GOLDEN["segments"] if row["candidate"].replace(" ", "").isalpha()]
    assert len(rows) > 20
    candidates = {str(number): row["candidate"] for number, row in enumerate(rows)}
    references = ReferenceSet({str(n): row["references"] for n, row in enumerate(rows)}, tokenized=True)
    result = CaptionSuite(["meteor"]).compute(candidates, references)
    each = result.per_image()["meteor"]
    assert each.tolist() == pytest.approx([row["score"] for row in rows], abs=TOLERANCE)
    # The corpus score comes from summed statistics and is not the mean of the segments.
    assert result.values["meteor"] == pytest.approx(float(scores_of(result.statistics["meteor"].sum(axis=0))))
    assert result.values["meteor"] != pytest.approx(float(each.mean()), abs=1e-3)
    signature = Meteor().signature()
    assert len(signature.pop("resources")) == 48
    assert signature == {
        "version": "1.5",
        "language": "en",
        "normalized": True,
        "modules": "exact stem synonym paraphrase",
        "beam": 40,
        "index": INDEX_VERSION,
    }


_WORDS = "a the of dog dogs man person bike bicycle is running in front next to it 's , ."
_captions = st.lists(st.sampled_from(_WORDS.split()), max_size=14).map(" ".join)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_captions, st.lists(_captions, min_size=1, max_size=4)), min_size=1, max_size=6), st.data())
def test_what_must_not_matter(index: MeteorIndex, pairs: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    scores, corpus = _scores(index, pairs)
    assert all(0 <= score <= 1 for score in scores)
    # Neither the other images in the batch ...
    assert [_scores(index, [pair])[0][0] for pair in pairs] == pytest.approx(scores, abs=TOLERANCE)
    # ... nor their order ...
    order = data.draw(st.permutations(range(len(pairs))))
    shuffled, shuffled_corpus = _scores(index, [pairs[number] for number in order])
    assert shuffled == pytest.approx([scores[number] for number in order], abs=TOLERANCE)
    assert shuffled_corpus == pytest.approx(corpus, abs=TOLERANCE)
    # ... nor a repeated reference.
    assert _scores(index, [(c, [*r, r[0]]) for c, r in pairs])[0] == pytest.approx(scores, abs=TOLERANCE)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_scored(index: MeteorIndex, first: str, second: str) -> None:
    scores, _ = _scores(index, [(first, [second]), ("a dog", ["a dog"]), (second, [first, second])])
    assert scores[1] == 1.0
    assert scores[2] == (1.0 if normalize([second], index.prefixes)[0] else 0.0)
    assert 0 <= scores[0] <= 1


def test_words_of_tokens_are_those_of_the_captions(
    meteor_cache: Path, index: MeteorIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metric takes the tokens that all metrics share; what METEOR's rules change goes through them as text."""
    monkeypatch.setenv("HFCAP_CACHE", str(meteor_cache))
    odd = ("it's a man-made dog, isn't it?", "the u.s. mr. smith", "caf\u00e9 12:30 pm", "", "plan B.", "a -- b ... c")
    draw = random.Random(3)
    words = _WORDS.split()
    captions = [*odd, *(" ".join(draw.choices(words, k=draw.randint(0, 12))) for _ in range(60))]
    references = {str(n): draw.choices(captions, k=draw.randint(1, 4)) for n in range(len(captions))}
    given_set = CaptionSet({str(n): caption for n, caption in enumerate(captions)}, ReferenceSet(references))
    expected = meteor_statistics(index, given_set.tokenized_candidates, given_set.tokenized_references)
    metric = Meteor()
    for _ in range(2):  # with words that are looked up, and with words that are known
        np.testing.assert_array_equal(metric.statistics(given_set), expected)
    monkeypatch.setattr("hfcap.metrics.base.IMAGES_AT_ONCE", 9)
    parts = CaptionSuite(["meteor"]).compute(dict(zip(references, captions, strict=True)), references)
    np.testing.assert_array_equal(parts.statistics["meteor"], expected)


def test_a_caption_of_hundreds_of_words(index: MeteorIndex) -> None:
    long = " ".join(["a man and a dog walk to the house"] * 40)
    scores, _ = _scores(index, [(long, [long, "a dog"]), ("x" * 5000, ["y" * 5000])])
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize("n_words", [LONGEST_TOGETHER - 1, LONGEST_TOGETHER, LONGEST_TOGETHER + 1])
def test_both_searches_agree_where_one_takes_over(
    index: MeteorIndex, monkeypatch: pytest.MonkeyPatch, n_words: int
) -> None:
    words = random.Random(n_words).choices(["a", "the", "dog", "dogs", "of", "man"], k=n_words)
    pair = (" ".join(words), [" ".join(words[7:] + words[:5])])
    scores = _scores(index, [pair])
    assert 0.3 < scores[0][0] < 1
    monkeypatch.setattr(meteor_module, "LONGEST_TOGETHER", 0)
    assert _scores(index, [pair]) == scores


def test_no_pairs_have_no_alignment() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    alignment = align_together(Matches(*[nothing] * 6), nothing, nothing)
    for found in (alignment.chosen, alignment.chunks):
        assert found.shape == (0,) and found.dtype == np.int64


def test_no_captions(index: MeteorIndex) -> None:
    assert meteor_statistics(index, [], []).shape == (0, N_STATISTICS)


def _groups(seed: int, n_images: int) -> list[tuple[str, list[str]]]:
    """Candidates and references of a few words that match in every way, so that many alignments are nearly as good."""
    draw = random.Random(seed)
    words = [
        "a",
        "the",
        "dog",
        "dogs",
        "puppy",
        "runs",
        "running",
        "is",
        "going to",
        "go",
        "large",
        "big",
        "in front of",
    ]
    words += ["quickly", "next to", "near", "a lot of", "many", "children", "kids", "of", "on"]

    def caption(shortest: int, longest: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(shortest, longest)))

    groups = []
    for number in range(n_images):
        own = caption(0, 14)
        human = [caption(1, 14) for _ in range(draw.randint(1, 6))]
        # The candidate itself, its beginning, and a reference twice: equal and nearly equal scores.
        human += [own or "a dog", " ".join(own.split()[:-1]) or "a", human[0]][: number % 4]
        groups.append((own, draw.sample(human, len(human))))
    return groups


@pytest.mark.parametrize("seed", range(3))
def test_pairs_that_are_not_aligned_could_not_have_won(index: MeteorIndex, seed: int) -> None:
    """The best of each pair scored alone, the first of equals, is what all together give, to the last bit."""
    groups = _groups(seed, 150)
    together = meteor_statistics(index, [own for own, _ in groups], [human for _, human in groups])
    pairs = [(own, one) for own, human in groups for one in human]
    alone = meteor_statistics(index, [own for own, _ in pairs], [[one] for _, one in pairs])
    scores = scores_of(alone)
    start = 0
    for row, (_, human) in zip(together, groups, strict=True):
        best = start + int(np.argmax(scores[start : start + len(human)]))
        assert row.tobytes() == alone[best].tobytes()
        start += len(human)


@pytest.mark.parametrize("seed", range(3))
def test_no_pair_scores_more_than_its_bound(index: MeteorIndex, seed: int) -> None:
    groups = _groups(seed, 150)
    pairs = [(own, one) for own, human in groups for one in human]
    words = normalize([text for pair in pairs for text in pair], index.prefixes)
    table = WordTable(index)
    numbers = table.numbers_of([word for caption in words for word in caption])
    finder = MatchFinder(table, numbers, np.asarray([len(caption) for caption in words]))
    own, human = np.arange(0, len(words), 2), np.arange(1, len(words), 2)
    bounds = upper_bounds(finder, finder.find(own, human), own, human)
    scores = scores_of(meteor_statistics(index, [own for own, _ in pairs], [[one] for _, one in pairs]))
    assert (bounds >= scores).all()
    assert np.median((bounds - scores)[scores > 0]) < 0.2  # a bound of one would prove nothing
