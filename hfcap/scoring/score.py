"""Predictions + references -> a score file, from files alone.

The score file holds the values, their bootstrap intervals, the per-image values and statistics that later comparisons
resample, and a signature: the conditions without which the numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hfcap import __version__
from hfcap.cells import captions_of_cell
from hfcap.errors import MissingPackageError, UserError
from hfcap.metrics.shared.bootstrap import percentile_intervals, resampled_values
from hfcap.metrics.shared.caption_files import (
    Warn,
    read_file_names,
    read_image_rows,
    read_predictions,
    read_references,
    warn_on_terminal,
)
from hfcap.metrics.shared.caption_table import caption_table
from hfcap.metrics.shared.image_ids import matched_ids
from hfcap.metrics.shared.images import Images
from hfcap.metrics.shared.languages import CODES, language_code, tokenizer_of
from hfcap.metrics.shared.scripts import has_words, is_latin, unspaced_language, unspaced_problem
from hfcap.metrics.shared.tokenizer import LINE_SEPARATORS
from hfcap.metrics.suite import (
    DEFAULT_METRICS,
    CaptionSuite,
    SuiteResult,
    checked_metric_names,
    metric_class,
)
from hfcap.schema import ScoreReport
from hfcap.scoring.columns import groups_by
from hfcap.scoring.error_slices import find_error_slices
from hfcap.scoring.image_values import ImageValues, Rows
from hfcap.scoring.report_files import write_scores
from hfcap.scoring.signature import data_signature, predictions_hash
from hfcap.scoring.slices import slice_scores
from hfcap.scoring.verdict import FEW_IMAGES

Predictions = Path | Mapping[str, str]
"""A file of predicted captions, or image id -> caption."""
References = Path | Mapping[str, Sequence[str]]
"""A file of human captions, or image id -> captions."""
Human = Mapping[str, tuple[str, ...]]
"""Image id -> human captions; those of files are a CaptionTable."""


def _read_matched(
    given: tuple[Predictions, References], split: str | None, language: str | None, allow_missing: bool, warn: Warn
) -> tuple[dict[str, str], Human, int]:
    """Predictions, the references of the predicted images, and how many images lack a prediction."""
    predictions, references = _read(given, split, "en" if language is None else language_code(language), warn)
    prediction_path = given[0] if isinstance(given[0], Path) else "predictions"
    reference_path = given[1] if isinstance(given[1], Path) else "the references"
    if any(image_id not in references for image_id in predictions):
        names = read_file_names(given[1]) if isinstance(given[1], Path) else {}
        meant = matched_ids(predictions, references, names)
        if meant:
            warn(f"{len(meant):,} image ids are matched by file name or number, for example {next(iter(meant))!r}")
        predictions = {meant.get(image_id, image_id): caption for image_id, caption in predictions.items()}
    extra = [image_id for image_id in predictions if image_id not in references]
    if extra:
        hint = ""
        if len(extra) == len(predictions):
            hint = f" (ids there look like {next(iter(references))!r})"
        raise UserError(
            f"{prediction_path}: {len(extra):,} of {len(predictions):,} ids, for example {extra[0]!r}, are not in "
            f"{reference_path}{hint}; give the references of the same split"
        )
    missing = [image_id for image_id in references if image_id not in predictions]
    if missing and not allow_missing:
        raise UserError(
            f"{prediction_path}: no caption for {len(missing):,} of {len(references):,} images of {reference_path}, "
            f"for example {missing[0]!r}; caption them, choose the split, or allow missing images to score the others"
        )
    if missing:
        warn(f"{len(missing):,} of {len(references):,} images have no prediction; the score is about the others only")
        chosen = ((image_id, references[image_id]) for image_id in references if image_id in predictions)
        references = caption_table(chosen)
    return predictions, references, len(missing)


def _read(
    given: tuple[Predictions, References], split: str | None, language: str, warn: Warn
) -> tuple[dict[str, str], Human]:
    predictions, references = given
    predicted = read_predictions(predictions, warn=warn) if isinstance(predictions, Path) else dict(predictions)
    if isinstance(references, Path):
        human = read_references(references, split, language=language, warn=warn)
        return human.with_own_ids(predicted), human
    return predicted, {
        image_id: tuple(text for cell in cells for text in captions_of_cell(cell, f"references: image {image_id}"))
        for image_id, cells in references.items()
    }


def _lines_of(references: Human) -> Iterator[str]:
    return (line for group in references.values() for line in group)


def _warn_about_data(predictions: dict[str, str], references: Human, suite: CaptionSuite, warn: Warn) -> None:
    n_images = len(references)
    if n_images < FEW_IMAGES:
        cider = suite.signature()["metrics"].get("cider", {}).get("document_frequencies") == "corpus"
        warn(
            f"only {n_images} images: the values are unstable"
            + (", and CIDEr-D, which weighs n-grams by their rarity among these images, is distorted" if cider else "")
        )
    if all(len(group) == 1 for group in references.values()):
        warn("one human caption per image: values are lower than, and not comparable with, those of five")
    broken = sum(LINE_SEPARATORS.search(caption.strip()) is not None for caption in predictions.values())
    broken += sum(LINE_SEPARATORS.search(line.strip()) is not None for line in _lines_of(references))
    if broken:
        warn(f"captions with line separators inside, which are read as spaces: {broken:,}")
    _warn_about_language(predictions, references, suite, warn)


def _warn_about_language(predictions: dict[str, str], references: Human, suite: CaptionSuite, warn: Warn) -> None:
    spaced = suite.tokenizer.is_english
    for what, captions in (("human captions", _lines_of(references)), ("predictions", iter(predictions.values()))):
        if spaced and (language := unspaced_language(captions)):
            warn(f"the {what} are {unspaced_problem(language)}; give their language, {CODES[language]}")
    english = [metric.name for metric in suite.metrics if metric.english_only]
    if english and not is_latin(_lines_of(references)):
        warn(f"the human captions are not English, but {', '.join(english)} knows English only: leave it out")
    wordless = [image_id for image_id, caption in predictions.items() if caption.strip() and not has_words(caption)]
    if wordless:
        warn(f"{len(wordless):,} captions hold no letter or digit, and score 0 (image {wordless[0]})")


def found_language(references: Mapping[str, Sequence[str]], warn: Warn) -> str:
    """Return the code of a language without spaces between words if the human captions are in one, else English's.

    The captions are split into words by the rules of that language, and a warning says so.
    """
    found = unspaced_language(line for group in references.values() for line in group)
    if found is None:
        return "en"
    try:
        tokenizer = tokenizer_of(CODES[found])
    except MissingPackageError as error:
        warn(str(error))
        return "en"
    warn(
        f"the human captions look {found} and are split into words as {tokenizer.name} does; name the language "
        f"({tokenizer.language}) to be sure of it"
    )
    return tokenizer.language


def _check_bootstrap(confidence_level: float, n_resamples: int) -> None:
    if not 0 < confidence_level < 1:
        raise UserError(f"confidence_level must lie between 0 and 1, not {confidence_level}")
    if n_resamples < 0:
        raise UserError(f"n_resamples must not be negative, not {n_resamples}")


def score_files(
    predictions: Predictions,
    references: References,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequencies: str = "corpus",
    language: str | None = None,
    output: Path | None = None,
    split: str | None = None,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    signature: Mapping[str, Any] | None = None,
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    image_source: Images | None = None,
    allow_missing: bool = False,
    by: Sequence[str] = (),
    find_slices: bool = False,
    warn: Warn = warn_on_terminal,
) -> ScoreReport:
    """Score predictions against references, each a file or a mapping, and write the score file if `output` is given.

    Args:
        metrics: names of files in hfcap/metrics.
        document_frequencies: CIDEr-D's n-gram weights: "corpus", "coco-train", "coco-val" or a file.
        language: of the captions, an ISO 639 code; None = see `found_language`.
        split: which images of a reference file with split labels; also the label of the report.
        confidence_level, n_resamples: of the bootstrap intervals, between 0 and 1; 0 resamples = no intervals.
        seed: of the resampling; equal seeds draw the same images for every system.
        signature: conditions only the caller knows (model, decoding), kept under "run".
        metric_options: metric name -> its options (`options_class` of the metric).
        image_source: for metrics that look at images; in place of their option `images`.
        allow_missing: score only the predicted images where others have no prediction.
        by: columns of the files, or of `columns.FROM_CAPTIONS`, whose values are also scored apart.
        find_slices: also find words and other groups of images that score significantly worse than all others.

    Raises:
        UserError: a file, metric, column or argument is wrong, or the files are not about the same images.
    """
    _check_bootstrap(confidence_level, n_resamples)
    metrics = checked_metric_names(metrics)
    predicted, human, n_missing = _read_matched((predictions, references), split, language, allow_missing, warn)
    options = _with_images(metrics, metric_options or {}, image_source, tuple(human), (predictions, references))
    suite = CaptionSuite(metrics, document_frequencies, options, language or found_language(human, warn))
    _warn_about_data(predicted, human, suite, warn)
    result = suite.compute(predicted, human)
    groups = groups_by(by, _rows_of_images(predictions, references, by), human, suite.tokenizer.words, warn)
    bootstrap: dict[str, Any] = {"confidence_level": confidence_level, "n_resamples": n_resamples, "seed": seed}
    conditions = {"hfcap": __version__, **data_signature(human, split or "all", n_missing), **result.signature}
    agreement = {output: said for metric in result.metrics for output, said in metric.agreement().items()}
    conditions |= {"agreement_with_people": agreement} if agreement else {}
    conditions |= {"bootstrap": bootstrap, **({"run": dict(signature)} if signature else {})}
    report = _report(result, predicted, groups, conditions)
    if find_slices:
        found = find_error_slices(result, human, predicted, suite.tokenizer.words, **bootstrap)
        report = replace(report, error_slices=found)
    if output is not None:
        write_scores(report, output)
    return report


def _report(
    result: SuiteResult,
    predicted: Mapping[str, str],
    groups: dict[str, dict[str, str]],
    conditions: dict[str, Any],
) -> ScoreReport:
    """Values with intervals, of all images and of each slice."""
    bootstrap = conditions["bootstrap"]
    resampled = resampled_values(result.metrics, result.statistics, bootstrap["n_resamples"], bootstrap["seed"])
    return ScoreReport(
        split=conditions["split"],
        n_images=len(predicted),
        metrics=result.values,
        intervals=percentile_intervals(resampled, bootstrap["confidence_level"]),
        signature=conditions,
        per_image=_per_image_rows(result),
        statistics=_statistics_rows(result),
        predictions_sha256=predictions_hash(predicted),
        groups=groups,
        slices=slice_scores(result, groups, **bootstrap),
    )


def _with_images(
    metrics: Sequence[str],
    metric_options: Mapping[str, Mapping[str, Any]],
    image_source: Images | None,
    image_ids: tuple[str, ...],
    given: tuple[Predictions, References],
) -> dict[str, dict[str, Any]]:
    """Options of all metrics; those that look at images get the given ones, else those of the folder `images`."""
    options = {name: dict(metric_options.get(name, {})) for name in (*metrics, *metric_options)}
    for name in (name for name in options if metric_class(name).looks_at_images):
        folder = options[name].get("images")
        if image_source is None and folder is not None:
            from hfcap.scoring.images import images_of_folder

            files = [path for path in reversed(given) if isinstance(path, Path)]
            file_names = {key: name for path in files for key, name in read_file_names(path).items()}
            options[name]["image_source"] = images_of_folder(Path(folder), image_ids, file_names)
        else:
            options[name]["image_source"] = image_source
    return options


def _rows_of_images(predictions: Predictions, references: References, by: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Image id -> what the files say of it, the reference file where both do; nothing where nobody asks."""
    rows: dict[str, dict[str, Any]] = {}
    for path in (predictions, references):
        for image_id, row in (read_image_rows(path) if by and isinstance(path, Path) else {}).items():
            rows.setdefault(image_id, {}).update(row)
    return rows


def _statistics_rows(result: SuiteResult) -> dict[str, Rows]:
    """Statistics of metrics that per-image values do not hold already."""
    kept = [metric.name for metric in result.metrics if metric.summable and not metric.is_mean]
    return {name: Rows(result.statistics[name]) for name in kept}


def _per_image_rows(result: SuiteResult) -> ImageValues:
    columns = result.per_image()
    table = np.stack(list(columns.values()), axis=1) if columns else np.empty((len(result.image_ids), 0))
    return ImageValues(result.image_ids, tuple(columns), table)
