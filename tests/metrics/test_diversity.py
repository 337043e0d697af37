import json
import math
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


def test_mutual_bleu_extremes() -> None:
    same = "a dog runs on the grass"
    mutual = mutual_bleu({"same": [same] * 3, "different": [same, "two red cats sleep indoors"], "single": [same]})
    assert set(mutual) == {"same", "different"}
    assert mutual["same"] == pytest.approx(1.0)
    assert mutual["different"] < 1e-3


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
