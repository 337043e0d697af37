"""Several caption metrics on the same captions, tokenised once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hfcap import registry
from hfcap.errors import UserError, shown
from hfcap.metrics.base import CaptionMetric, CaptionSet, ReferenceSet
from hfcap.metrics.shared.languages import tokenizer_of

DEFAULT_METRICS = ("bleu", "rouge_l", "cider")

_IMAGES_AT_ONCE = 65_536
_MOST_IMAGES_KEPT = 65_536
"""Of more images what is found out about their human captions is not kept from one metric to the next."""


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found out about N images.

    Attributes:
        image_ids: N ids, the order of all arrays.
        metrics: the metric objects, in the order they were asked for.
        values: output name -> corpus value; None where undefined.
        statistics: metric name -> (N, S) float64 sufficient statistics.
        signature: tokeniser and the conditions of each metric, as JSON values.
    """

    image_ids: tuple[str, ...]
    metrics: tuple[CaptionMetric, ...]
    values: dict[str, float | None]
    statistics: dict[str, NDArray[np.float64]]
    signature: dict[str, Any]

    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """Return output name -> (N,) float64 values of each image alone; NaN = undefined."""
        columns: dict[str, NDArray[np.float64]] = {}
        n_images = len(self.image_ids)
        for metric in self.metrics:
            rows = self.statistics[metric.name]
            # In parts, because what is in between takes several times the memory of the result.
            starts = range(0, max(n_images, 1), _IMAGES_AT_ONCE)
            parts = [metric.per_image(rows[start : start + _IMAGES_AT_ONCE]) for start in starts]
            columns |= {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
        return columns


def number_or_none(value: float) -> float | None:
    """Return a JSON-safe number: None in place of NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def metric_class(name: str) -> type[CaptionMetric]:
    """Return a metric's class.

    Raises:
        UserError: no metric has this name; the message offers the nearest.
    """
    found: type[CaptionMetric] = registry.load("metrics", name).REGISTERED
    return found


def build_metric(name: str, options: Mapping[str, Any] | None = None) -> CaptionMetric:
    """Build a metric by name.

    Args:
        options: fields of its `options_class`, and what else its constructor takes (`image_source` of CLIPScore).

    Raises:
        UserError: no metric or option has this name (the message offers the nearest), or a value is wrong; all
            problems with the options at once.
    """
    found = metric_class(name)
    build: Callable[..., CaptionMetric] = found
    fields = found.options_class.model_fields
    inputs = {key for key in inspect.signature(found).parameters if key not in ("options", "args", "kwargs")}
    given = dict(options or {})
    objects = {key: given.pop(key) for key in list(given) if key in inputs}
    try:
        checked = found.options_class.model_validate(given)
    except ValidationError as error:
        problems = [_problem(detail, (*fields, *sorted(inputs))) for detail in error.errors(include_url=False)]
        raise UserError("\n".join(f"metric {name!r}: {problem}" for problem in dict.fromkeys(problems))) from None
    return build(checked, **objects) if fields else build(**objects)


def _problem(detail: Mapping[str, Any], known: Sequence[str]) -> str:
    key = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"unknown option {key!r}{registry.did_you_mean(key, known)}"
    if detail["type"] == "value_error":  # of a check of ours, whose value may be a secret
        return f"option {key!r}: {detail['msg'].removeprefix('Value error, ').removeprefix(f'{key}: ')}"
    return f"option {key!r}: {detail['msg']}, not {shown(detail['input'])}"


def metric_for_statistics(name: str) -> CaptionMetric:
    """Return a metric that only turns statistics into values, without the resources it needs to make them.

    Comparing score files must not need METEOR's tables, a CLIP model or Java; `from_sums` uses none of them.

    Raises:
        UserError: no metric has this name.
    """
    return object.__new__(metric_class(name))


def checked_metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names without repetitions.

    Raises:
        UserError: a name is not that of a metric (the message offers the nearest), or there is none.
    """
    if not names:
        raise UserError("no metrics: choose some of " + ", ".join(registry.names("metrics")))
    known = registry.names("metrics")
    for name in names:
        if name not in known:
            raise UserError(f"unknown metric {name!r}{registry.did_you_mean(name, known)}")
    return tuple(dict.fromkeys(names))


def _check_captions(predictions: Mapping[str, str], references: ReferenceSet) -> None:
    if not predictions:
        raise UserError("predictions: no captions to score; give some")
    for image_id, caption in predictions.items():
        if not isinstance(caption, str):
            raise UserError(f"the caption of image {image_id!r} must be text, not {shown(caption)}")
    for image_id, group in zip(references.image_ids, references.captions, strict=True):
        if not group or not all(isinstance(caption, str) for caption in group):
            raise UserError(
                f"image {image_id!r} needs a list of human captions, all of them text, not {shown(list(group))}"
            )


class CaptionSuite:
    """A set of metrics that share one tokenisation; build it once and use it for any number of predictions.

    Args:
        metrics: names of files in hfcap/metrics.
        document_frequencies: CIDEr-D's n-gram weights: "corpus", "coco-train", "coco-val" or a file.
        options: metric name -> its options (see `build_metric`).
        language: of the captions, an ISO 639 code; it chooses the tokeniser.

    Raises:
        UserError: unknown metric or option, options of a metric that is not computed, a metric's resources are
            missing, or it knows English only and the language is another.
    """

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT_METRICS,
        document_frequencies: str = "corpus",
        options: Mapping[str, Mapping[str, Any]] | None = None,
        language: str = "en",
    ) -> None:
        self.tokenizer = tokenizer_of(language)
        names = checked_metric_names(metrics)
        given = {name: dict((options or {}).get(name, {})) for name in names}
        for name in options or {}:
            if name not in given:
                raise UserError(f"options of metric {name!r}, which is not computed; add it to the metrics")
        if "cider" in given:
            named = given["cider"].setdefault("document_frequencies", document_frequencies)
            if document_frequencies not in (named, "corpus"):
                raise UserError(f"document frequencies of CIDEr-D are {document_frequencies!r} and {named!r}; give one")
        if not self.tokenizer.is_english:
            self._require_any_language(names, given.get("cider", {}).get("document_frequencies", "corpus"))
        self.metrics: tuple[CaptionMetric, ...] = tuple(build_metric(name, given[name]) for name in names)

    def _require_any_language(self, names: Sequence[str], document_frequencies: str) -> None:
        english = [name for name in names if metric_class(name).english_only]
        if english:
            raise UserError(
                f"metrics: {', '.join(english)} knows English only, and the captions are in "
                f"{self.tokenizer.language!r}; use bleu, rouge_l, cider, length or diversity, or with a multilingual "
                "CLIP clip_score"
            )
        if document_frequencies in ("coco-train", "coco-val"):
            raise UserError(
                f"document frequencies {document_frequencies!r} are of English captions, and the captions are in "
                f"{self.tokenizer.language!r}; use corpus"
            )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of all values, metric after metric."""
        return tuple(output for metric in self.metrics for output in metric.outputs)

    def signature(self) -> dict[str, Any]:
        """Return the tokeniser, the language where it is not English, and the conditions of each metric."""
        language = {} if self.tokenizer.is_english else {"language": self.tokenizer.language}
        return {
            "tokenizer": self.tokenizer.name,
            **language,
            "metrics": {metric.name: metric.signature() for metric in self.metrics},
        }

    def compute(
        self, predictions: Mapping[str, str], references: Mapping[str, Sequence[str]] | ReferenceSet
    ) -> SuiteResult:
        """Score one caption per image.

        Args:
            predictions: image id -> caption.
            references: image id -> human captions; a ReferenceSet is tokenised and indexed only once.

        Raises:
            UserError: predictions and references are not about the same images, an image has no human caption, or a
                caption is not text.
        """
        if not isinstance(references, ReferenceSet):
            keeps_parts = len(references) <= _MOST_IMAGES_KEPT
            references = ReferenceSet(references, words=self.tokenizer.words, keeps_parts=keeps_parts)
        _check_captions(predictions, references)
        if len(predictions) != len(references) or any(key not in predictions for key in references.image_ids):
            only_one = set(predictions) ^ set(references.image_ids)
            raise UserError(
                f"predictions and references differ in {len(only_one):,} images, for example "
                f"{sorted(only_one)[0]!r}; give both for the same images"
            )
        captions = CaptionSet({image_id: predictions[image_id] for image_id in references.image_ids}, references)
        statistics = self._statistics(captions)
        values: dict[str, float | None] = {}
        for metric in self.metrics:
            found = metric.values(captions, statistics[metric.name])
            values |= {
                output: number_or_none(value) for output, value in zip(metric.outputs, found.tolist(), strict=True)
            }
        return SuiteResult(captions.image_ids, self.metrics, values, statistics, self.signature())

    def _statistics(self, captions: CaptionSet) -> dict[str, NDArray[np.float64]]:
        """Metric name -> (N, S) statistics; metrics that can work on parts of the images do so together."""
        statistics: dict[str, NDArray[np.float64]] = {}
        parted = [metric for metric in self.metrics if metric.in_parts]
        start = 0
        for part in captions.parts() if parted else ():
            for metric in parted:
                rows = metric.statistics(part)
                whole = statistics.setdefault(metric.name, np.empty((len(captions), rows.shape[1])))
                whole[start : start + len(part)] = rows
            start += len(part)
        for metric in self.metrics:
            if not metric.in_parts:
                statistics[metric.name] = metric.statistics(captions)
            shape = statistics[metric.name].shape
            assert len(shape) == 2 and shape[0] == len(captions), f"{metric.name}: statistics {shape}"
            assert metric.n_statistics in (None, shape[1]), f"{metric.name}: n_statistics is not {shape[1]}"
        return statistics


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]] | ReferenceSet,
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> dict[str, float | None]:
    """Return the corpus values of some metrics, without intervals: output name -> value, None where undefined.

    Raises:
        UserError: unknown metric, or predictions and references are not about the same images.
    """
    return CaptionSuite(metrics).compute(predictions, references).values
