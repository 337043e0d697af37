from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hfcap import registry
from hfcap.errors import UserError
from hfcap.metrics.base import ReferenceSet
from hfcap.metrics.suite import CaptionSuite, build_metric, checked_metric_names, metric_class, score_captions
from tests.metrics.random_captions import random_captions


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ciderr"], "did you mean 'cider'"),
        (["bleu_4"], "did you mean 'bleu'"),
        (["BLEU_4"], "did you mean 'bleu'"),
        ([], "no metrics"),
        (["nonsense"], "choose one of"),
    ],
)
def test_unknown_metrics_are_refused_with_a_hint(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CaptionSuite(names)


def test_repeated_names_count_once() -> None:
    assert checked_metric_names(["cider", "bleu", "cider"]) == ("cider", "bleu")


def test_unknown_option_is_refused_with_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'document_frequencies'"):
        build_metric("cider", {"document_frequency": "corpus"})
    with pytest.raises(UserError, match="there is none"):
        build_metric("bleu", {"smoothing": "none"})


def test_metrics_alone_and_together_give_the_same_values() -> None:
    candidates, references = random_captions(60, 20)
    together = CaptionSuite(("bleu", "rouge_l", "cider")).compute(candidates, references)
    alone = {
        name: value
        for metric in ("bleu", "rouge_l", "cider")
        for name, value in score_captions(candidates, references, (metric,)).items()
    }
    assert together.values == alone
    assert list(together.values) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]


def test_references_are_indexed_once() -> None:
    candidates, references = random_captions(30, 21)
    index = ReferenceSet(references)
    suite = CaptionSuite(("bleu", "cider"))
    suite.compute(candidates, index)
    first = [index.ngrams(order) for order in (1, 2, 3, 4)]
    other, _ = random_captions(30, 22)
    assert suite.compute(other, index).values == CaptionSuite(("bleu", "cider")).compute(other, references).values
    assert all(index.ngrams(order) is part for order, part in enumerate(first, start=1))


def test_order_of_predictions_does_not_matter() -> None:
    candidates, references = random_captions(30, 23)
    backwards = dict(reversed(candidates.items()))
    assert score_captions(backwards, references) == score_captions(candidates, references)


def test_different_images_are_refused() -> None:
    candidates, references = random_captions(5, 24)
    with pytest.raises(UserError, match="differ in 2 images"):
        CaptionSuite().compute(candidates | {"other": "a dog"}, {k: v for k, v in references.items() if k != "0"})


def test_values_follow_from_the_statistics() -> None:
    candidates, references = random_captions(25, 25)
    result = CaptionSuite().compute(candidates, references)
    for metric in result.metrics:
        rows = result.statistics[metric.name]
        assert np.isfinite(rows).all()
        values = metric.aggregate(rows)
        assert values.tolist() == pytest.approx([result.values[output] for output in metric.outputs])
        stacked = metric.aggregate(np.stack([rows, rows[::-1]]))
        assert stacked.shape == (2, len(metric.outputs))
        np.testing.assert_allclose(stacked[1], values)


def test_scoring_imports_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'evaluate', 'datasets'}"
    code = f"import sys, hfcap.scoring, hfcap.comparison; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {}, "no captions to score"),
        ({"1": None}, {"1": ["a dog"]}, "the caption of image '1' must be text"),
        ({"1": "a dog"}, {"1": []}, "image '1' needs a list of human captions"),
        ({"1": "a dog"}, {"1": [None]}, "image '1' needs a list of human captions"),
    ],
)
def test_captions_that_cannot_be_scored_are_refused(
    predictions: dict[str, str], references: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CaptionSuite().compute(predictions, references)


def test_a_string_in_place_of_a_list_of_references_is_refused() -> None:
    """Otherwise every letter would be a human caption."""
    with pytest.raises(UserError, match="give a list"):
        CaptionSuite().compute({"1": "a dog"}, {"1": "a dog"})


def test_the_documentation_names_values_and_options_of_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    cells = {row[0].strip(" `"): row for line in page.splitlines() if len(row := line.split("|")[1:-1]) == 6}
    for name in registry.names("metrics"):
        _, values, _, options, better, interval = (cell.strip() for cell in cells[name])
        found = metric_class(name)
        named = ("bleu_1 .. bleu_4",) if name == "bleu" else found.outputs
        assert values == ", ".join(named)
        assert set(re.findall(r"`(\w+)`", options)) == set(found.options_class.model_fields)
        assert better == {True: "higher", False: "lower", None: "-"}[found.higher_is_better]
        assert interval == ("yes" if found.summable else "no")
