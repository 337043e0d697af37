from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from hfcap import registry
from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric, CaptionSet, MetricOptions, ReferenceSet
from hfcap.metrics.suite import (
    CaptionSuite,
    build_metric,
    checked_metric_names,
    metric_class,
    metric_for_statistics,
    number_or_none,
    score_captions,
)
from tests.metrics.random_captions import random_captions


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ciderr"], "did you mean 'cider'"),
        (["bleu_4"], r"did you mean 'bleu'\?"),
        (["BLEU-4"], r"did you mean 'bleu'\?"),
        (["CIDEr-D"], r"did you mean 'cider'\?"),
        (["ROUGE-L"], r"did you mean 'rouge_l'\?"),
        (["CLIPScore"], r"did you mean 'clip_score'\?"),
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
    page = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")
    cells = {row[0].strip(" `"): row for line in page.splitlines() if len(row := line.split("|")[1:-1]) == 6}
    for name in registry.names("metrics"):
        _, values, _, options, better, interval = (cell.strip() for cell in cells[name])
        found = metric_class(name)
        named = ("bleu_1 .. bleu_4",) if name == "bleu" else found.outputs
        assert values == ", ".join(named)
        assert set(re.findall(r"`(\w+)`", options)) == set(found.options_class.model_fields)
        assert better == {True: "higher", False: "lower", None: "-"}[found.higher_is_better]
        assert interval == ("yes" if found.summable else "no")


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_every_metric_says_how_many_statistics_its_values_follow_from(name: str) -> None:
    """Score files are read without a metric's resources; the suite asserts the number where it computes them."""
    metric = metric_for_statistics(name)
    width = len(metric.outputs) if metric.is_mean or not metric.summable else metric.n_statistics
    assert width is not None, "set n_statistics"
    if metric.summable:
        assert metric.from_sums(np.ones((2, width)), 3).shape == (2, len(metric.outputs))
        with pytest.raises(UserError, match=f"here: statistics.{name} has {width + 1} numbers .* has {width}; score"):
            metric.check_width(np.ones((2, width + 1)), "here")


class Needy(CaptionMetric):
    """Needs what only whoever makes statistics has."""

    name = "needy"
    outputs = ("first", "second")
    summary = "a mean and twice the mean"

    def __init__(self) -> None:
        raise UserError("no resources")

    def statistics(self, captions: CaptionSet) -> NDArray[np.float64]:
        raise AssertionError

    def from_sums(self, sums: NDArray[np.float64], n_images: int) -> NDArray[np.float64]:
        return np.concatenate([sums, 2 * sums], axis=-1) / n_images


def test_statistics_become_values_without_the_metric_s_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "load", lambda kind, name: SimpleNamespace(REGISTERED={("metrics", "needy"): Needy}[kind, name])
    )
    with pytest.raises(UserError, match="no resources"):
        build_metric("needy")
    metric = metric_for_statistics("needy")
    rows = np.array([[1.0], [2.0], [6.0]])
    assert metric.aggregate(rows).tolist() == [3.0, 6.0]
    assert metric.aggregate(np.stack([rows, 2 * rows])).tolist() == [[3.0, 6.0], [6.0, 12.0]]
    each = metric.per_image(rows)
    assert {name: values.tolist() for name, values in each.items()} == {"first": [1, 2, 6], "second": [2, 4, 12]}
    assert not metric.is_mean and metric.signature() == {}


def test_which_metrics_are_means_of_their_images() -> None:
    assert {name: build_metric(name).is_mean for name in ("cider", "rouge_l", "bleu", "length", "diversity")} == {
        "cider": True,
        "rouge_l": True,
        "bleu": False,
        "length": False,
        "diversity": False,
    }


def test_a_mean_over_no_images_is_undefined() -> None:
    assert np.isnan(build_metric("rouge_l").aggregate(np.zeros((0, 1)))).tolist() == [True]
    assert build_metric("rouge_l").from_sums(np.array([[3.0], [1.0]]), 4).tolist() == [[0.75], [0.25]]


def test_numbers_that_json_does_not_know() -> None:
    assert [number_or_none(value) for value in (0.5, math.nan, math.inf, -math.inf, 0)] == [0.5, None, None, None, 0.0]
    assert type(number_or_none(np.float64(0.5))) is float


def test_all_problems_with_options_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        build_metric("clip_score", {"modle": "x", "scale": "much", "image_source": None})
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, "the images are no option and no problem"
    assert "metric 'clip_score': unknown option 'modle'; did you mean 'model'?" in lines
    assert all(line.startswith("metric 'clip_score': ") for line in lines)
    with pytest.raises(UserError, match="unknown option 'image_sorce'; did you mean 'image_source'"):
        build_metric("clip_score", {"image_sorce": None})
    with pytest.raises(UserError, match=r"metric 'cider': option 'document_frequencies': .*, not 3"):
        build_metric("cider", {"document_frequencies": 3})


@pytest.mark.parametrize("name", ["bleu", "cider"])
@pytest.mark.parametrize("key", ["options", "args", "kwargs"])
def test_parameters_of_the_constructor_are_no_options(name: str, key: str) -> None:
    with pytest.raises(UserError, match=f"metric '{name}': unknown option '{key}'"):
        build_metric(name, {key: {}})


class Looking(Needy):
    """Has an option and needs something that is not one."""

    class Options(MetricOptions):
        scale: float = 1.0

    options_class = Options

    def __init__(self, options: Options, image_source: object = None) -> None:
        self.given = (options.scale, image_source)


class Open(Needy):
    """Hands on whatever it is given, as subclasses in plugins do."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        assert not args and not kwargs


@pytest.mark.parametrize("key", ["args", "kwargs"])
def test_an_open_constructor_names_no_options(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name: SimpleNamespace(REGISTERED=Open))
    assert isinstance(build_metric("open"), Open)
    with pytest.raises(UserError, match=f"metric 'open': unknown option '{key}'"):
        build_metric("open", {key: {}})


def test_options_and_other_inputs_reach_the_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda kind, name: SimpleNamespace(REGISTERED=Looking))
    images = object()
    given = {"scale": 2, "image_source": images}
    assert cast("Looking", build_metric("looking", given)).given == (2.0, images)
    assert given == {"scale": 2, "image_source": images}


def test_options_belong_to_metrics_that_are_computed() -> None:
    with pytest.raises(UserError, match="options of metric 'diversity', which is not computed; add it to the metrics"):
        CaptionSuite(("bleu",), options={"diversity": {}})
    with pytest.raises(UserError, match="are 'coco-val' and 'coco-train'; give one"):
        CaptionSuite(
            ("cider",), document_frequencies="coco-val", options={"cider": {"document_frequencies": "coco-train"}}
        )
    suite = CaptionSuite(("bleu", "diversity"), options={"diversity": {"training_captions": ["a dog"]}})
    assert suite.signature()["metrics"]["diversity"] == {"training_captions": 1, "candidates": None}
    given = {"cider": {"document_frequencies": "corpus"}}
    assert CaptionSuite(("cider",), options=given).outputs == ("cider",)
    assert given == {"cider": {"document_frequencies": "corpus"}}
    assert CaptionSuite(("bleu",), document_frequencies="coco-val").outputs[0] == "bleu_1"  # nobody asks for them


def test_messages_name_what_is_wrong() -> None:
    with pytest.raises(UserError, match=r"no metrics: choose some of .*bleu, .*cider"):
        checked_metric_names([])
    candidates, references = random_captions(3, 24)
    with pytest.raises(
        UserError,
        match=r"^predictions and references differ in 1 images, for example '2'; give both for the same images$",
    ):
        CaptionSuite().compute({k: v for k, v in candidates.items() if k != "2"}, references)
    with pytest.raises(UserError, match="the caption of image '1' must be text, not 7"):
        CaptionSuite().compute(cast("dict[str, str]", {**candidates, "1": 7}), references)
    with pytest.raises(UserError, match=r"image '1' needs a list of human captions, all of them text, not \['a', 3\]"):
        CaptionSuite().compute(candidates, cast("dict[str, list[str]]", {**references, "1": ["a", 3]}))
    with pytest.raises(UserError, match="references of image 'x' are one text; give a list of human captions"):
        ReferenceSet({"x": "a dog"})


def test_results_keep_ids_metrics_and_values_in_order() -> None:
    suite = CaptionSuite(("rouge_l", "length"))
    result = suite.compute({"b": "a dog", "a": ""}, {"a": ["..."], "b": ["a dog"]})
    assert result.image_ids == ("a", "b") and result.metrics == suite.metrics
    assert result.values == {"rouge_l": 0.5, "length_mean": 1.0, "length_deviation": 1.0, "length_ratio": 1.0}
    each = result.per_image()
    assert list(each) == list(suite.outputs)
    assert each["rouge_l"].tolist() == [0.0, 1.0] and each["length_mean"].tolist() == [0.0, 2.0]
    nothing = CaptionSuite(("length",)).compute({"a": "a"}, {"a": ["."]})
    assert nothing.values["length_ratio"] is None


def test_captions_of_a_set_are_tokenised_once_and_by_image() -> None:
    references = ReferenceSet({"1": ["A dog.", "One dog"], "2": ["two cats"]})
    captions = CaptionSet({"1": "Dogs!", "2": ""}, references)
    assert len(captions) == len(references) == 2
    assert captions.references == (("A dog.", "One dog"), ("two cats",))
    assert captions.tokenized_references == [["a dog", "one dog"], ["two cats"]]
    assert captions.tokenized_candidates == ["dogs", ""]
    assert references.counts.tolist() == [2, 1] and references.image_of_caption.tolist() == [0, 0, 1]
    assert captions.ngrams(2) is captions.ngrams(2) and captions.ngram_matches(1) is captions.ngram_matches(1)
    assert captions.vocabulary is references.vocabulary
    split = ReferenceSet({"1": ["A dog."]}, tokenized=True)
    assert CaptionSet({"1": "Dogs! x"}, split).tokenized_candidates == ["Dogs! x"] and split.tokenized == [["A dog."]]
    with pytest.raises(AssertionError, match="same images in order"):
        CaptionSet({"2": "", "1": "Dogs!"}, references)
