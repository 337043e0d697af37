"""Metrics against human judgments: agreement with intervals, and paired tests between metrics.

Shapes: n judgments, C judged captions, N images, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hfcap import __version__
from hfcap.comparison.result import Difference
from hfcap.comparison.significance import PairedDifference
from hfcap.data.images import FileImage
from hfcap.errors import UserError
from hfcap.judgments.kendall import PairAccuracy, RankAgreement
from hfcap.judgments.published import KNOWN_SETS, PublishedValue
from hfcap.judgments.records import Judgments
from hfcap.metrics.shared.bootstrap import holm, percentile_intervals, resample_weights
from hfcap.metrics.shared.caption_files import Warn, warn_on_terminal
from hfcap.metrics.shared.images import Images, image_files
from hfcap.metrics.suite import DEFAULT_METRICS, CaptionSuite, checked_metric_names, metric_class
from hfcap.schema import CaptionedImage
from hfcap.scoring.images import images_of_records

Floats = NDArray[np.float64]
FEW_RESAMPLES = 100


@dataclass(frozen=True)
class MetricAgreement:
    """How well one value of a metric agrees with people.

    Attributes:
        output: its name in score files.
        values: tau_b and tau_c, or accuracy (of all pairs, and as accuracy_KIND of each kind).
        intervals: bootstrap over images, of the values that are defined in every resample.
        difference: to the best metric in the report's statistic; None for the best.
        published: statistic -> what a paper reports for this set, on the scale x 100.
    """

    output: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    difference: Difference | None
    published: dict[str, PublishedValue]


@dataclass(frozen=True)
class AgreementReport:
    """What metrics are worth on one set of human judgments.

    Attributes:
        title: name of the set; layout: how it was read.
        statistic: what orders and tests the metrics: the one that papers report of this set.
        n_images, n_captions, n_judgments: sizes.
        is_complete: whether the published values are of exactly this many judgments; None = not known.
        metrics: best first.
        signature: conditions of the metrics' values.
        settings: n_resamples, seed, confidence_level.
        notes: what was left out.
    """

    title: str
    layout: str
    statistic: str
    n_images: int
    n_captions: int
    n_judgments: int
    is_complete: bool | None
    metrics: tuple[MetricAgreement, ...]
    signature: dict[str, Any]
    settings: dict[str, Any]
    notes: tuple[str, ...]


def judge_metrics(
    judgments: Judgments,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    document_frequencies: str = "corpus",
    language: str = "en",
    n_resamples: int = 1000,
    seed: int = 0,
    confidence_level: float = 0.95,
    warn: Warn = warn_on_terminal,
) -> AgreementReport:
    """Score the judged captions with each metric and compare with what people said.

    Each judged caption is one item of the corpus, so that CIDEr-D's document frequencies are those of the published
    evaluations. Intervals and p-values are of the bootstrap over images: captions of one image are drawn together, and
    all metrics see the same draws.

    Raises:
        UserError: the human scores are all equal, a metric or option is wrong, images are missing, or no metric tells
            any captions apart.
    """
    if n_resamples < FEW_RESAMPLES:
        raise UserError(f"n_resamples must be at least {FEW_RESAMPLES} for intervals and tests, not {n_resamples}")
    known = KNOWN_SETS[judgments.layout]
    _require_differences(judgments)
    names = checked_metric_names(metrics)
    rows = {str(number): caption for number, caption in enumerate(judgments.captions)}
    options = _with_images(names, metric_options or {}, judgments)
    suite = CaptionSuite(names, document_frequencies, options, language)
    result = suite.compute(
        {key: caption.text for key, caption in rows.items()},
        {key: caption.references for key, caption in rows.items()},
    )
    notes = list(judgments.notes)
    columns = _usable(result.per_image(), _signs(suite), notes)
    agreements = {output: _agreement(judgments, column) for output, column in columns.items()}
    images, image_of = _images(judgments)
    draws = _resampled(agreements, image_of, len(images), n_resamples, seed)
    for note in notes[len(judgments.notes) :]:
        warn(note)
    found = _tested(agreements, draws, known.statistic, confidence_level)
    count = len(judgments)
    return AgreementReport(
        title=known.title,
        layout=judgments.layout,
        statistic=known.statistic,
        n_images=len(images),
        n_captions=len(judgments.captions),
        n_judgments=count,
        is_complete=None if known.n_judgments is None else known.n_judgments == count,
        metrics=tuple(
            MetricAgreement(output, values, intervals, difference, known.values.get(output, {}))
            for output, values, intervals, difference in found
        ),
        signature={"hfcap": __version__, **result.signature},
        settings={"n_resamples": n_resamples, "seed": seed, "confidence_level": confidence_level},
        notes=tuple(notes),
    )


def _require_differences(judgments: Judgments) -> None:
    scores = {rating.score for rating in judgments.ratings}
    if len(scores) == 1:
        raise UserError(
            f"human judgments: all {len(judgments):,} scores are {scores.pop():g}, so that no order can agree or "
            "disagree with them; give judgments that differ"
        )


def _with_images(
    names: Sequence[str], given: Mapping[str, Mapping[str, Any]], judgments: Judgments
) -> dict[str, dict[str, Any]]:
    """Options of all metrics; those that look at images get those of the judged captions."""
    options = {name: dict(given.get(name, {})) for name in (*names, *given)}
    for name in (name for name in options if metric_class(name).looks_at_images):
        options[name]["image_source"] = _image_source(judgments, options[name].get("images"))
    return options


def _image_source(judgments: Judgments, folder: str | Path | None) -> Images | None:
    """The images of the rows: of a folder, else those that the file or dataset holds; None where there are none."""
    captions = judgments.captions
    if folder is not None:
        names = dict.fromkeys(caption.image for caption in captions)
        files = image_files(Path(folder), tuple(names))
        sources = [(caption.image, FileImage(files[caption.image])) for caption in captions]
    elif all(caption.source is not None for caption in captions):
        return images_of_records(
            CaptionedImage(str(number), caption.image, (), caption.source)
            for number, caption in enumerate(captions)
            if caption.source is not None
        )
    else:
        return None
    return images_of_records(CaptionedImage(str(number), name, (), file) for number, (name, file) in enumerate(sources))


def _signs(suite: CaptionSuite) -> dict[str, float]:
    """Output -> -1 where lower is better, else 1."""
    return {
        output: -1.0 if metric.higher_is_better is False else 1.0
        for metric in suite.metrics
        for output in metric.outputs
    }


def _usable(columns: Mapping[str, Floats], signs: Mapping[str, float], notes: list[str]) -> dict[str, Floats]:
    """Values by which captions can be ordered; a note says of each other one why not."""
    usable: dict[str, Floats] = {}
    for output, column in columns.items():
        if not np.isfinite(column).all():
            notes.append(f"{output} has no value for single captions and is left out")
        elif (column == column[0]).all():
            notes.append(f"{output} gives every caption the same value, which orders nothing, and is left out")
        else:
            usable[output] = signs[output] * column
    if not usable:
        raise UserError(f"metrics: none of them orders these captions ({'; '.join(notes)}); choose others")
    return usable


def _agreement(judgments: Judgments, column: Floats) -> RankAgreement | PairAccuracy:
    if judgments.ratings:
        metric = column[[rating.caption for rating in judgments.ratings]]
        return RankAgreement(metric, np.asarray([rating.score for rating in judgments.ratings]))
    pairs = judgments.preferences
    better, worse = (column[[getattr(pair, side) for pair in pairs]] for side in ("better", "worse"))
    return PairAccuracy(better, worse, [pair.group for pair in pairs])


def _images(judgments: Judgments) -> tuple[dict[str, int], NDArray[np.int64]]:
    """Image -> its number, and (n,) the number of each judgment's image."""
    captions = [rating.caption for rating in judgments.ratings] or [pair.better for pair in judgments.preferences]
    numbers: dict[str, int] = {}
    of_judgment = [numbers.setdefault(judgments.captions[one].image, len(numbers)) for one in captions]
    return numbers, np.asarray(of_judgment)


def _resampled(
    agreements: Mapping[str, RankAgreement | PairAccuracy],
    image_of: NDArray[np.int64],
    n_images: int,
    n_resamples: int,
    seed: int,
) -> dict[str, Floats]:
    """Output -> (R, statistics) in resamples of the images, the same for all."""
    found: dict[str, list[Floats]] = {output: [] for output in agreements}
    for block in resample_weights(n_images, n_resamples, seed):
        for images in block:
            weights = images[image_of]
            for output, agreement in agreements.items():
                found[output].append(agreement.values(weights))
    return {output: np.stack(rows) for output, rows in found.items()}


_Tested = tuple[str, dict[str, float], dict[str, tuple[float, float]], Difference | None]


def _tested(
    agreements: Mapping[str, RankAgreement | PairAccuracy],
    draws: Mapping[str, Floats],
    statistic: str,
    confidence_level: float,
) -> list[_Tested]:
    """Metrics, best first: values, intervals, and difference to the best, with Holm's correction over all of them."""
    values = {
        output: dict(zip(agreement.NAMES, agreement.values().tolist(), strict=True))
        for output, agreement in agreements.items()
    }
    order = sorted(values, key=lambda output: -values[output][statistic])
    place = agreements[order[0]].NAMES.index(statistic)
    leading = draws[order[0]][:, place]
    paired: dict[str, PairedDifference] = {}
    for output in order[1:]:
        difference = draws[output][:, place] - leading
        observed = values[output][statistic] - values[order[0]][statistic]
        interval = percentile_intervals({output: difference}, confidence_level).get(output)
        if interval is not None:
            paired[output] = PairedDifference(observed, interval, _p_value(difference))
    corrected = holm([difference.p_value for difference in paired.values()])
    differences = {
        output: Difference(difference, p_value)
        for (output, difference), p_value in zip(paired.items(), corrected, strict=True)
    }
    found: list[_Tested] = []
    for output in order:
        columns = {name: draws[output][:, number] for number, name in enumerate(agreements[output].NAMES)}
        intervals = percentile_intervals(columns, confidence_level)
        found.append((output, values[output], intervals, differences.get(output)))
    return found


def _p_value(differences: Floats) -> float:
    """Two-sided p-value of the bootstrap: how rarely the difference has the other sign; never 0.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 15.
    """
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(differences) + 1))
