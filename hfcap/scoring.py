"""Predictions + references -> a score file, from files alone: no model, no images, no torch.

The score file holds the values, their bootstrap intervals, the per-image values and statistics that later comparisons
resample, and a signature: the conditions without which the numbers mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfcap import __version__
from hfcap.errors import UserError
from hfcap.files import read_json, write_text
from hfcap.metrics.bootstrap import percentile_intervals, resampled_values
from hfcap.metrics.caption_files import Warn, read_predictions, read_references, warn_on_terminal
from hfcap.metrics.suite import DEFAULT_METRICS, CaptionSuite, SuiteResult, number_or_none, score_captions
from hfcap.metrics.tokenizer import LINE_SEPARATORS
from hfcap.schema import ScoreReport

__all__ = [
    "read_predictions",
    "read_references",
    "read_scores",
    "score_captions",
    "score_files",
    "signature_line",
    "write_scores",
]

_FEW_IMAGES = 100
_HASH_DIGITS = 16


def _hash_of(lines: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:_HASH_DIGITS]


def _data_signature(references: Mapping[str, Sequence[str]], split: str, n_missing: int) -> dict[str, Any]:
    """What was scored against: the images and their human captions, in any order of images."""
    ordered = sorted(references)
    counts = [len(group) for group in references.values()]
    signature: dict[str, Any] = {
        "split": split,
        "n_images": len(references),
        "image_ids_sha256": _hash_of(ordered),
        "references_sha256": _hash_of([line for key in ordered for line in (key, *references[key], "")]),
        "references_per_image": [min(counts), max(counts)],
    }
    if n_missing:
        signature["images_without_prediction"] = n_missing
    return signature


def _matched(
    predictions: dict[str, str],
    references: dict[str, tuple[str, ...]],
    paths: tuple[Path, Path],
    allow_missing: bool,
    warn: Warn,
) -> tuple[dict[str, tuple[str, ...]], int]:
    """Keep the references of predicted images: the kept ones, and how many images lack a prediction."""
    prediction_path, reference_path = paths
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
        references = {image_id: references[image_id] for image_id in references if image_id in predictions}
    return references, len(missing)


def _warn_about_data(
    predictions: dict[str, str], references: dict[str, tuple[str, ...]], suite: CaptionSuite, df: str, warn: Warn
) -> None:
    n_images = len(references)
    if n_images < _FEW_IMAGES:
        cider = any(metric.name == "cider" for metric in suite.metrics) and df == "corpus"
        warn(
            f"only {n_images} images: the values are unstable"
            + (", and CIDEr-D, which weighs n-grams by their rarity among these images, is distorted" if cider else "")
        )
    if all(len(group) == 1 for group in references.values()):
        warn("one human caption per image: values are lower than, and not comparable with, those of five")
    broken = sum(LINE_SEPARATORS.search(caption.strip()) is not None for caption in predictions.values())
    broken += sum(LINE_SEPARATORS.search(line.strip()) is not None for group in references.values() for line in group)
    if broken:
        warn(f"captions with line separators inside, which are read as spaces: {broken:,}")


def _check_bootstrap(confidence_level: float, n_resamples: int) -> None:
    if not 0 < confidence_level < 1:
        raise UserError(f"confidence_level must lie between 0 and 1, not {confidence_level}")
    if n_resamples < 0:
        raise UserError(f"n_resamples must not be negative, not {n_resamples}")


def score_files(
    predictions: Path,
    references: Path,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequencies: str = "corpus",
    output: Path | None = None,
    split: str | None = None,
    confidence_level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    signature: Mapping[str, Any] | None = None,
    metric_options: Mapping[str, Mapping[str, Any]] | None = None,
    allow_missing: bool = False,
    warn: Warn = warn_on_terminal,
) -> ScoreReport:
    """Score a prediction file against a reference file, and write the score file if `output` is given.

    Args:
        metrics: names of files in hfcap/metrics.
        document_frequencies: CIDEr-D's n-gram weights: "corpus", "coco-train", "coco-val" or a file.
        split: which images of a reference file with split labels; also the label of the report.
        confidence_level: of the bootstrap intervals, between 0 and 1.
        n_resamples: bootstrap resamples; 0 = no intervals.
        seed: of the resampling; equal seeds draw the same images for every system.
        signature: conditions only the caller knows (model, decoding), kept under "run".
        metric_options: metric name -> constructor arguments.
        allow_missing: score only the predicted images where others have no prediction.

    Raises:
        UserError: a file, metric or argument is wrong, or the files are not about the same images.
    """
    _check_bootstrap(confidence_level, n_resamples)
    suite = CaptionSuite(metrics, document_frequencies, metric_options)
    predicted = read_predictions(predictions, warn=warn)
    human, n_missing = _matched(
        predicted, read_references(references, split, warn=warn), (predictions, references), allow_missing, warn
    )
    _warn_about_data(predicted, human, suite, document_frequencies, warn)
    result = suite.compute(predicted, human)
    resampled = resampled_values(result.metrics, result.statistics, n_resamples, seed)
    label = split or "all"
    bootstrap = {"confidence_level": confidence_level, "n_resamples": n_resamples, "seed": seed}
    conditions = {"hfcap": __version__, **_data_signature(human, label, n_missing), **result.signature}
    conditions |= {"bootstrap": bootstrap} | ({"run": dict(signature)} if signature else {})
    report = ScoreReport(
        split=label,
        n_images=len(human),
        metrics=result.values,
        intervals=percentile_intervals(resampled, confidence_level),
        signature=conditions,
        per_image=_per_image_rows(result),
        statistics=_statistics_rows(result),
    )
    if output is not None:
        write_scores(report, output)
    return report


def _statistics_rows(result: SuiteResult) -> dict[str, list[list[float]]]:
    """Statistics of metrics that per-image values do not hold already."""
    kept = [metric.name for metric in result.metrics if metric.summable and not metric.is_mean]
    return {name: result.statistics[name].tolist() for name in kept}


def _per_image_rows(result: SuiteResult) -> dict[str, dict[str, float | None]]:
    columns = {
        output: [number_or_none(value) for value in column.tolist()] for output, column in result.per_image().items()
    }
    names = tuple(columns)
    return {
        image_id: dict(zip(names, row, strict=True))
        for image_id, row in zip(result.image_ids, zip(*columns.values(), strict=True), strict=True)
    }


def _short(value: Any) -> Any:
    return [_short(entry) for entry in value] if isinstance(value, list) else int(value) if value % 1 == 0 else value


def write_scores(report: ScoreReport, path: Path) -> None:
    """Write a score file atomically: the summary indented, then one line per image."""
    head = {
        "schema_version": report.schema_version,
        "split": report.split,
        "n_images": report.n_images,
        "metrics": report.metrics,
        "intervals": report.intervals,
        "signature": report.signature,
    }
    encode = json.JSONEncoder(allow_nan=False).encode
    rows = ",\n".join(f"    {encode(image_id)}: {encode(row)}" for image_id, row in report.per_image.items())
    tables = ",\n".join(
        f"    {encode(name)}: [\n" + ",\n".join(f"      {encode(_short(row))}" for row in table) + "\n    ]"
        for name, table in report.statistics.items()
    )
    summary = json.dumps(head, indent=2, allow_nan=False)[: -len("\n}")]
    write_text(path, f'{summary},\n  "per_image": {{\n{rows}\n  }},\n  "statistics": {{\n{tables}\n  }}\n}}\n')


def _numbers(value: Any, path: Path, key: str) -> dict[str, float | None]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key!r} must map names to numbers; is this a score file?")
    for name, number in value.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise UserError(f"{path}: {key}.{name} must be a number or null, not {number!r}")
        if number is not None and not math.isfinite(number):
            raise UserError(f"{path}: {key}.{name} must be finite, not {number!r}")
    return value


def _check_table(table: Any, n_rows: int, where: str) -> None:
    try:
        shape = np.asarray(table, dtype=np.float64).shape
    except (TypeError, ValueError):
        raise UserError(f"{where} must be rows of numbers of equal length") from None
    if len(shape) != 2 or shape[0] != n_rows:
        raise UserError(f"{where} must have one row for each image of 'per_image'")


def read_scores(path: Path) -> ScoreReport:
    """Read a score file.

    Raises:
        UserError: the file is missing or not a score file; the message names the key.
    """
    value = read_json(path, "score file")
    if not isinstance(value, dict) or "metrics" not in value:
        raise UserError(f"{path}: not a score file (no 'metrics'); 'hfcap score' makes one")
    if value.get("schema_version") != 1:
        raise UserError(f"{path}: schema_version {value.get('schema_version')!r} is not 1; use a newer hfcap")
    for key in ("per_image", "intervals", "statistics", "signature"):
        if not isinstance(value.setdefault(key, {}), dict):
            raise UserError(f"{path}: {key!r} must be an object, not {value[key]!r}")
    for name, bounds in value["intervals"].items():
        if not isinstance(bounds, list) or len(bounds) != 2 or None in bounds:
            raise UserError(f"{path}: intervals.{name} must be [lower, upper], not {bounds!r}")
        _numbers(dict(zip(("lower", "upper"), bounds, strict=True)), path, f"intervals.{name}")
    per_image = value["per_image"]
    if value.setdefault("n_images", len(per_image)) != len(per_image) and per_image:
        raise UserError(f"{path}: n_images is {value['n_images']!r}, but 'per_image' has {len(per_image):,} images")
    for name, table in value["statistics"].items():
        _check_table(table, len(per_image), f"{path}: statistics.{name}")
    return ScoreReport(
        split=str(value.get("split", "all")),
        n_images=value["n_images"],
        metrics=_numbers(value["metrics"], path, "metrics"),
        intervals={name: (float(bounds[0]), float(bounds[1])) for name, bounds in value["intervals"].items()},
        signature=value["signature"],
        per_image={key: _numbers(row, path, f"per_image.{key}") for key, row in per_image.items()},
        statistics=value["statistics"],
    )


def signature_line(signature: Mapping[str, Any]) -> str:
    """Return the conditions of a score as one printable line, e.g. for a table's footnote or a paper.

    It reads `hfcap:0.1.0|tok:ptb-coco-1|split:test|n:5000|ids:0a1b...|refs:5|...|cider.document_frequencies:corpus`.
    """
    counts = signature.get("references_per_image", [0, 0])
    references = str(counts[0]) if counts[0] == counts[1] else f"{counts[0]}-{counts[1]}"
    parts = [
        f"hfcap:{signature.get('hfcap', 'unknown')}",
        f"tok:{signature.get('tokenizer', 'unknown')}",
        f"split:{signature.get('split', 'unknown')}",
        f"n:{signature.get('n_images', 'unknown')}",
        f"ids:{signature.get('image_ids_sha256', 'unknown')}",
        f"refs:{references}",
        f"refs-sha:{signature.get('references_sha256', 'unknown')}",
    ]
    for metric, conditions in sorted(signature.get("metrics", {}).items()):
        parts += [f"{metric}.{key}:{value}" for key, value in sorted(conditions.items())] or [metric]
    return "|".join(parts + [f"{key}:{value}" for key, value in _flattened(signature.get("run", {}))])


def _flattened(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, entry in sorted(value.items()):
        if isinstance(entry, Mapping):
            flat += _flattened(entry, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", entry))
    return flat
