import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, ReferenceSet
from hfcap.metrics.diversity import Diversity, mutual_bleu
from hfcap.metrics.suite import CaptionSuite, build_metric


def _values(metric: CaptionMetric, candidates: dict[str, str]) -> dict[str, float]:
    captions = CaptionSet(candidates, ReferenceSet({key: ["a dog"] for key in candidates}))
    values = metric.values(captions, metric.statistics(captions)).tolist()
    return dict(zip(metric.outputs, values, strict=True))


def test_distinct_ngrams_and_vocabulary() -> None:
    values = _values(Diversity(), {"1": "a dog runs", "2": "a dog sits", "3": "Cat."})
    assert values["distinct_1"] == pytest.approx(5 / 7)  # a dog runs sits cat
    assert values["distinct_2"] == pytest.approx(3 / 4)  # 'runs a' across captions is no bigram
    assert values["vocabulary_size"] == 5
    assert math.isnan(values["novel_captions"])
    assert math.isnan(values["m_bleu_4"])


def test_words_of_references_are_not_counted() -> None:
    captions = CaptionSet({"1": "cat"}, ReferenceSet({"1": ["many other words stand here"]}))
    metric = Diversity()
    assert metric.values(captions, metric.statistics(captions))[2] == 1


def test_equal_captions_are_not_diverse() -> None:
    values = _values(Diversity(), {str(key): "a b c d" for key in range(10)})
    assert values["distinct_1"] == pytest.approx(0.1)
    assert values["distinct_2"] == pytest.approx(0.1)


def test_novel_ignores_case_and_final_dot(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "A dog runs."}]}))
    candidates = {"1": "a dog runs", "2": "a dog sleeps", "3": "a DOG runs", "4": "a dog runs fast"}
    assert _values(build_metric("diversity", {"training_captions": path}), candidates)["novel_captions"] == 0.5
    assert (
        _values(build_metric("diversity", {"training_captions": ["a dog runs"]}), candidates)["novel_captions"] == 0.5
    )


def test_a_captioner_that_repeats_its_training_captions_has_no_novel_one() -> None:
    """0, which is a value, and not NaN, which says that nothing is known."""
    metric = build_metric("diversity", {"training_captions": ["a dog runs", "a cat"]})
    assert _values(metric, {"1": "a dog runs", "2": "A cat."})["novel_captions"] == 0.0
    assert metric.signature() == {"training_captions": 2, "candidates": None}
    assert Diversity().signature() == {"training_captions": None, "candidates": None}


def test_mutual_bleu_extremes() -> None:
    same = "a dog runs on the grass"
    mutual = mutual_bleu({"same": [same] * 3, "different": [same, "two red cats sleep indoors"], "single": [same]})
    assert set(mutual) == {"same", "different"}
    assert mutual["same"] == pytest.approx(1.0)
    assert mutual["different"] < 1e-3
    written = [same, "A dog runs on the grass."]
    assert mutual_bleu({"1": written})["1"] == pytest.approx(1.0), "captions are tokenised first"
    four_in_common = (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25  # dog runs on the
    assert mutual_bleu({"1": written}, tokenized=True)["1"] == pytest.approx(four_in_common, rel=1e-6)


def test_mutual_bleu_is_bleu_of_each_against_the_others() -> None:
    lines = ["a dog runs on the grass", "a dog runs on the beach", "one dog runs on the grass"]
    pairs = {str(k): line for k, line in enumerate(lines)}
    others = {str(k): [line for j, line in enumerate(lines) if j != k] for k in range(3)}
    bleu = [CaptionSuite(["bleu"]).compute({k: pairs[k]}, {k: others[k]}).values["bleu_4"] for k in pairs]
    assert mutual_bleu({"1": lines})["1"] == pytest.approx(sum(value or 0.0 for value in bleu) / 3)


def test_candidates_from_a_predictions_file(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    rows = [
        {"image_id": "1", "caption": "a b c d", "candidates": ["a b c d", "a b c d"]},
        {"image_id": "2", "caption": "a b", "candidates": ["a b"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _values(build_metric("diversity", {"candidates": path}), {"1": "a b c d", "2": "a b"})[
        "m_bleu_4"
    ] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "content", "option"),
    [
        ("p.jsonl", '{"image_id": 1, "candidates": "a b"}\n', "candidates"),
        ("t.json", "[1, 2]", "training_captions"),
        ("t.json", '{"annotations": [{"image_id": 1}]}', "training_captions"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, content: str, option: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=name):
        build_metric("diversity", {option: path})


def test_works_in_the_suite() -> None:
    result = CaptionSuite(["diversity", "length"]).compute({"1": "a dog"}, {"1": ["one dog"]})
    assert result.values["vocabulary_size"] == 2
    assert result.values["novel_captions"] is None
    assert set(result.per_image()) >= {"novel_captions", "m_bleu_4", "length_mean"}


def test_values_of_single_images_are_those_that_are_known() -> None:
    options = {"training_captions": ["a dog"], "candidates": {"2": ["a b c d", "a b c d"], "9": ["x", "y"]}}
    metric = build_metric("diversity", options)
    captions = CaptionSet({"1": "A dog.", "2": "a cat"}, ReferenceSet({"1": ["a dog"], "2": ["a cat"]}))
    statistics = metric.statistics(captions)
    assert statistics.tolist() == [[0.0, -1.0], [1.0, pytest.approx(1.0)]]
    each = metric.per_image(statistics)
    assert list(each) == ["novel_captions", "m_bleu_4"]
    assert each["novel_captions"].tolist() == [0.0, 1.0]
    assert math.isnan(each["m_bleu_4"][0]) and each["m_bleu_4"][1] == pytest.approx(1.0)
    values = metric.values(captions, statistics)
    assert values[3:].tolist() == [0.5, pytest.approx(1.0)], "what is not known counts neither as 0 nor as an image"
    # Alike to the last word or not at all: 0 is a value, and not 'not known'.
    assert metric.per_image(statistics * 0)["m_bleu_4"].tolist() == [0.0, 0.0]


def test_captions_without_words_or_pairs_have_no_distinct_ngrams() -> None:
    values = _values(Diversity(), {"1": "...", "2": "dog"})
    assert values["distinct_1"] == 1.0 and math.isnan(values["distinct_2"]) and values["vocabulary_size"] == 1
    assert math.isnan(_values(Diversity(), {"1": "..."})["distinct_1"])


def test_distinct_bigrams_by_counting() -> None:
    """Words that occur in many orders: a pair is one only if both words are the same in the same order."""
    lines = ["a b a b b a", "b a", "c a b", "", "a", "b b b"]
    pairs = [pair for line in lines for pair in pairwise(line.split())]
    values = _values(Diversity(), {str(number): line for number, line in enumerate(lines)})
    assert values["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))
    assert values["distinct_1"] == pytest.approx(3 / sum(len(line.split()) for line in lines))


@pytest.mark.parametrize(
    "row", ['{"candidates": ["a"]}', '{"image_id": 1, "candidates": "a"}', '{"image_id": 1, "candidates": [1]}']
)
def test_predictions_without_candidates_are_named_with_their_line(row: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"image_id": 7, "candidates": ["a b", "c"]}\n{"image_id": 8}\n' + row + "\n")
    with pytest.raises(UserError, match=r"p\.jsonl: line 3 needs 'image_id' and 'candidates', a list of captions"):
        build_metric("diversity", {"candidates": path})
    path.write_text('{"image_id": 7, "candidates": ["a b", "c"]}\n{"image_id": 8}\n')
    # Numbers are ids as texts; an image without a list has no candidates.
    assert build_metric("diversity", {"candidates": path}).signature()["candidates"] == 2
    path.write_text('{"image_id": [7], "candidates": ["a"]}\n')
    with pytest.raises(UserError, match=r"p\.jsonl: line 1"):
        build_metric("diversity", {"candidates": path})
    with pytest.raises(UserError, match=r"none\.jsonl.*predictions file|predictions file.*none\.jsonl"):
        build_metric("diversity", {"candidates": tmp_path / "none.jsonl"})
