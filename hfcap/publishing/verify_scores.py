"""Whether the numbers of a published model hold: card, score files, predictions, and the files that belong together.

What can be computed again is: corpus values and intervals from the rows of a score file; with the human captions
everything, from the published predictions. Of a consistent forgery only the last can tell; the others tell of what was
edited, mixed up or raised.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from numpy.typing import NDArray

from hfcap import registry
from hfcap.card.evaluation import error_slice_cells
from hfcap.card.example_images import FOLDER, read_record
from hfcap.card.front_matter import shown_value
from hfcap.card.kept_sections import split_front_matter
from hfcap.card.markdown_pieces import shown_number
from hfcap.card.shown_scores import card_scores
from hfcap.data.source import Source
from hfcap.errors import UserError
from hfcap.files import read_json, read_text, sha256_of, write_json
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.bootstrap import percentile_intervals, resampled_values
from hfcap.metrics.shared.caption_files import read_predictions, read_references
from hfcap.metrics.suite import metric_for_statistics
from hfcap.pages.markdown import escape
from hfcap.publishing import hub
from hfcap.recipe.loading import load_recipe
from hfcap.schema import ErrorSlice, ScoreReport
from hfcap.scoring import read_scores, score_files
from hfcap.scoring.error_slices import means_with_intervals
from hfcap.scoring.image_values import column_of
from hfcap.scoring.score_table import metric_name
from hfcap.scoring.signature import data_signature, language_of, predictions_hash

MANIFEST = f"{FOLDER}/files.json"
"""SHA-256 of every published file but the card, which people may edit on the Hub, and itself."""

_RESCORED = ("bleu", "rouge_l", "cider", "meteor", "length", "bad_endings")
"""Metrics that need nothing but captions; METEOR its tables, where they are installed."""

_MOST_RESAMPLES = 100_000
_MOST_SCENES = 20_000
_SAME = 1e-6

Finding = tuple[str, Literal["passed", "failed", "not checked"], str]
"""Name of a check, its outcome, and what was found."""


def write_manifest(folder: Path) -> None:
    """Note the hashes of all files of a staging folder, so that files of another version next to them are noticed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    write_json(folder / MANIFEST, {name: sha256_of(path) for name, path in names.items() if name not in _not_noted()})


def _not_noted() -> tuple[str, ...]:
    return ("README.md", MANIFEST)


def check_numbers(folder: Path, hashes: Mapping[str, str], references: Path | None = None) -> list[Finding]:
    """Make all checks of this module on a repository's files.

    Args:
        folder: its files, at least those that are small.
        hashes: SHA-256 of files that are not in `folder` (weights on the Hub), by path.
        references: human captions of the scored split; None = those that the recipe makes itself, if it does.
    """
    findings = [
        _checked("file hashes", lambda: _check_manifest(folder, hashes)),
        _checked("weights", lambda: _check_weights(folder, hashes)),
    ]
    scored = sorted((folder / "scores").glob("*.json"))
    if not scored:
        return [*findings, ("scores", "not checked", "there are no score files")]
    try:
        reports = {path.stem: read_scores(path) for path in scored}
    except UserError as error:
        return [*findings, ("scores", "failed", str(error).replace(f"{folder}/", ""))]
    split = min(reports, key=lambda name: (name.count("."), name))
    findings.append(_checked("scores on the card", lambda: _check_card(folder, reports[split])))
    findings.append(_checked("scores", lambda: _check_values(reports)))
    findings.append(_checked("predictions", lambda: _check_predictions(folder, reports)))
    findings.append(_checked("scores computed again", lambda: _check_again(folder, reports, references)))
    return findings


@dataclass(frozen=True)
class _NotCheckedError(Exception):
    """Why a check cannot be made."""

    reason: str


def _checked(name: str, check: Callable[[], tuple[list[str], str]]) -> Finding:
    """Run a check that returns (what is wrong, what is right)."""
    try:
        wrong, right = check()
    except _NotCheckedError as error:
        return name, "not checked", error.reason
    except UserError as error:
        return name, "failed", str(error)
    return (name, "failed", "; ".join(wrong[:5])) if wrong else (name, "passed", right)


# ---- files -----------------------------------------------------------------------------------------------------------


def _check_manifest(folder: Path, hashes: Mapping[str, str]) -> tuple[list[str], str]:
    if not (folder / MANIFEST).is_file():
        raise _NotCheckedError("published without a record of its files (by an earlier hfcap, or by hand)")
    noted = read_json(folder / MANIFEST, "record of published files")
    if not isinstance(noted, dict) or not all(isinstance(value, str) for value in noted.values()):
        raise UserError(f"{MANIFEST}: must map file names to hashes")
    wrong = []
    for name, value in noted.items():
        found = _hash_of(folder, name, hashes)
        if found is None:
            wrong.append(f"{name} is missing")
        elif found != value:
            wrong.append(f"{name} is not the file that was published with the others")
    return wrong, f"all {len(noted)} as published"


def _hash_of(folder: Path, name: str, hashes: Mapping[str, str]) -> str | None:
    path = folder / name
    inside = path.resolve().is_relative_to(folder.resolve())
    return sha256_of(path) if inside and path.is_file() else hashes.get(name)


def _check_weights(folder: Path, hashes: Mapping[str, str]) -> tuple[list[str], str]:
    """Compare with the weights that captioned the scored images; shards and merged weights are other files."""
    scored = read_record(folder)["weights"]
    if not scored:
        raise _NotCheckedError("published without the hashes of the weights that were scored (by an earlier hfcap)")
    found = {name: value for name in scored if (value := _hash_of(folder, name, hashes)) is not None}
    if not found:
        raise _NotCheckedError("the weights were merged or cut into shards after they had been scored")
    wrong = [f"{name} is not the file whose captions were scored" for name in found if found[name] != scored[name]]
    return wrong, "those whose captions were scored"


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _check_card(folder: Path, report: ScoreReport) -> tuple[list[str], str]:
    card = read_text(folder / "README.md", "model card") if (folder / "README.md").is_file() else ""
    body = split_front_matter(card)[1]
    known = {name: value for name, value in report.metrics.items() if value is not None}
    shown = card_scores(card)
    wrong = [
        f"the card's metadata says {name} {shown[name]}, the score file {shown_value(name, known.get(name, math.nan))}"
        for name in shown
        if name not in known or shown[name] != shown_value(name, known[name])
    ]
    n_compared = len(shown)
    for name, value in known.items():
        row = re.search(rf"^\| *{re.escape(str(escape(metric_name(name))))} *\| *\*\*(.+?)\*\* *\|", body, re.MULTILINE)
        if row is not None:
            n_compared += 1
            if row[1] != shown_number(name, value):
                wrong.append(
                    f"the card's table says {metric_name(name)} {row[1]}, the score file {shown_number(name, value)}"
                )
    for one in report.error_slices or ():
        # Of "| word zebra | 40 | 61.2 (50.1-70.2) | 98.0 (95.1-101.3) | 0.001 |" the first cell names the row.
        name, *cells = map(re.escape, error_slice_cells(one))
        if (row := re.search(rf"^\| *{name} *\|.*$", body, re.MULTILINE)) is not None:
            n_compared += 1
            if re.match(rf"\| *{name} *" + "".join(rf"\| *{cell} *" for cell in cells) + r"\|", row[0]) is None:
                wrong.append(f"the card's table of found slices does not say of {one.name!r} what the score file says")
    if not n_compared:
        raise _NotCheckedError("the card shows no scores")
    return wrong, f"{n_compared} numbers as in the score file"


def _check_values(reports: Mapping[str, ScoreReport]) -> tuple[list[str], str]:
    wrong: list[str] = []
    n_compared = 0
    for name, report in reports.items():
        for metric, rows in _statistics(report, f"scores/{name}.json"):
            values = metric.aggregate(rows)
            for output, value in zip(metric.outputs, values.tolist(), strict=True):
                n_compared += 1
                if not _same(report.metrics.get(output), value):
                    wrong.append(
                        f"scores/{name}.json says {output} {report.metrics.get(output)}, its rows give {value:.6g}"
                    )
            for output, bounds in _intervals(report, metric, rows).items():
                said = report.intervals.get(output)
                n_compared += 1
                if said is None or not all(map(_same, said, bounds)):
                    wrong.append(f"scores/{name}.json says {output} lies in {said}, its rows give {bounds}")
        for one in report.error_slices or ():
            if (again := _found_again(one, report)) is not None:
                said = (one.value, one.value_of_others, *(one.interval or ()), *(one.interval_of_others or ()))
                n_compared += 1
                if len(said) != len(again) or not all(map(_same, said, again)):
                    wrong.append(
                        f"scores/{name}.json says {one.output} {one.value} on {one.name!r} and {one.value_of_others} "
                        f"elsewhere, its rows give {again[0]:.6g} and {again[1]:.6g}, or other intervals"
                    )
    if not n_compared:
        raise _NotCheckedError("the score files hold no rows of single images to compute them from")
    return wrong, f"{n_compared} values and intervals follow from the rows of single images"


def _found_again(found: ErrorSlice, report: ScoreReport) -> list[float] | None:
    """Mean value on the images of a found slice and on all others, and the bounds of both intervals.

    None where the file does not know the images.
    """
    if not found.image_ids or not report.per_image:
        return None
    values = column_of(report.per_image, found.output)
    members = set(found.image_ids)
    inside = np.asarray([image_id in members for image_id in report.per_image], dtype=np.bool_)
    known = np.isfinite(values)
    if not inside.sum() == found.n_images > 0 or not known[inside].all() or not (known & ~inside).any():
        return [math.nan, math.nan]
    means = [float(values[inside].mean()), float(values[known & ~inside].mean())]
    if (drawn := _bootstrap_of(report)) is None or found.interval is None:
        return means
    ((of_group, of_others),) = means_with_intervals(values[known], [np.flatnonzero(inside[known])], *drawn)
    return [*means, *(of_group or ()), *(of_others or ())]


def _statistics(report: ScoreReport, where: str) -> Iterator[tuple[CaptionMetric, NDArray[np.float64]]]:
    """Yield the metrics whose rows the file holds, in its order of images."""
    named = report.signature.get("metrics")
    for name in named if isinstance(named, dict) else {}:
        if name not in registry.names("metrics"):
            continue
        metric = metric_for_statistics(name)
        if not metric.summable or not report.per_image:
            continue
        if name in report.statistics:
            rows = np.asarray(report.statistics[name], dtype=np.float64)
            metric.check_width(rows, where)
            yield metric, rows
        elif metric.is_mean:
            values = [[row.get(output) for output in metric.outputs] for row in report.per_image.values()]
            if all(value is not None for row in values for value in row):
                yield metric, np.asarray(values, dtype=np.float64)


def _intervals(report: ScoreReport, metric: CaptionMetric, rows: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    if (drawn := _bootstrap_of(report)) is None:
        return {}
    n_resamples, seed, level = drawn
    return percentile_intervals(resampled_values((metric,), {metric.name: rows}, n_resamples, seed), level)


def _bootstrap_of(report: ScoreReport) -> tuple[int, int, float] | None:
    """Resamples, seed and level of the file's intervals; None where it has none, or none that can be made again."""
    bootstrap = report.signature.get("bootstrap")
    conditions = bootstrap if isinstance(bootstrap, dict) else {}
    n_resamples, seed, level = (conditions.get(key) for key in ("n_resamples", "seed", "confidence_level"))
    if not (isinstance(n_resamples, int) and isinstance(seed, int) and isinstance(level, float)):
        return None
    possible = 0 < n_resamples <= _MOST_RESAMPLES and seed >= 0 and 0 < level < 1
    return (n_resamples, seed, level) if possible else None


def _same(said: float | None, found: float) -> bool:
    if said is None or not math.isfinite(found):
        return said is None and not math.isfinite(found)
    return abs(said - found) <= _SAME * max(1.0, abs(found))


# ---- captions --------------------------------------------------------------------------------------------------------


def _check_predictions(folder: Path, reports: Mapping[str, ScoreReport]) -> tuple[list[str], str]:
    wrong: list[str] = []
    n_compared = 0
    for name, report in reports.items():
        path = folder / "predictions" / f"{name}.jsonl"
        noted = report.predictions_sha256
        if not path.is_file():
            wrong += [f"predictions/{name}.jsonl is missing"] if noted else []
            continue
        captions = read_predictions(path, warn=_say_nothing)
        if report.per_image and set(captions) != set(report.per_image):
            wrong.append(f"predictions/{name}.jsonl is about other images than scores/{name}.json")
        elif noted is not None:
            n_compared += 1
            if predictions_hash(captions) != noted:
                wrong.append(f"predictions/{name}.jsonl holds other captions than were scored")
    if not n_compared and not wrong:
        raise _NotCheckedError("the score files do not say which captions were scored (an earlier hfcap wrote them)")
    return wrong, f"{n_compared} files hold the captions that were scored"


def _check_again(folder: Path, reports: Mapping[str, ScoreReport], references: Path | None) -> tuple[list[str], str]:
    wrong: list[str] = []
    compared: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="hfcap-references-") as temporary:
        path = references or _own_references(folder, next(iter(reports.values())).split, Path(temporary))
        for name, report in reports.items():
            predictions = folder / "predictions" / f"{name}.jsonl"
            named = report.signature.get("metrics")
            if not predictions.is_file() or not isinstance(named, dict):
                continue
            _require_these_references(path, report)
            for metric in [metric for metric in _RESCORED if metric in named]:
                again = _score_again(metric, predictions, path, report, named)
                if again is None:
                    continue
                for output, value in again.items():
                    compared.add(output)
                    if not _same(report.metrics.get(output), math.nan if value is None else value):
                        wrong.append(
                            f"scores/{name}.json says {output} {report.metrics.get(output)}, its captions score {value}"
                        )
    if not compared:
        raise _NotCheckedError("no metric that needs nothing but captions was computed")
    return wrong, f"{', '.join(sorted(compared))}: as in the score files"


def _score_again(
    metric: str, predictions: Path, references: Path, report: ScoreReport, named: Mapping[str, Any]
) -> dict[str, float | None] | None:
    conditions = named[metric] if isinstance(named[metric], dict) else {}
    if (language := language_of(report.signature)) is None:
        return None  # an earlier hfcap wrote the file, and did not say in which language
    frequencies = str(conditions.get("document_frequencies", "corpus")) if metric == "cider" else "corpus"
    try:
        return score_files(
            predictions,
            references,
            metrics=(metric,),
            document_frequencies=frequencies,
            language=language,
            split=None if report.split == "all" else report.split,
            n_resamples=0,
            allow_missing=True,
            warn=_say_nothing,
        ).metrics
    except UserError:
        return None  # METEOR's tables, or a file of document frequencies, are not here


def _require_these_references(path: Path, report: ScoreReport) -> None:
    wanted = report.signature.get("references_sha256")
    split, language = None if report.split == "all" else report.split, language_of(report.signature) or "en"
    human = read_references(path, split, language=language, warn=_say_nothing)
    found = {image_id: human[image_id] for image_id in report.per_image if image_id in human}
    if len(found) < len(report.per_image) or data_signature(found, "", 0)["references_sha256"] != wanted:
        raise _NotCheckedError("the human captions that are here are not those that were scored against")


def _own_references(folder: Path, split: str, temporary: Path) -> Path:
    """Write the human captions of generated scenes, which the published recipe makes again anywhere."""
    unknown = _NotCheckedError("the human captions are not published with it; give them: --references FILE")
    if not (folder / "recipe.yaml").is_file() or split not in ("train", "validation", "test"):
        raise unknown
    data = load_recipe(folder / "recipe.yaml").data
    if data.source != "scenes" or getattr(data, f"n_{split}") > _MOST_SCENES:
        raise unknown
    source: Source = registry.load("sources", "scenes").REGISTERED
    limit: int | None = getattr(data, f"max_{split}_images")
    records = source.load(data, getattr(data, f"{split}_split"))[:limit]
    path = temporary / "references.json"
    write_json(path, {record.image_id: list(record.captions) for record in records})
    return path


def _say_nothing(message: str) -> None:
    """Warnings about scoring were for whoever scored."""


def hub_hashes(repo_id: str, commit: str) -> dict[str, str]:
    """Return path -> SHA-256 of the large files of a repository, as the Hub lists them; nothing is downloaded.

    Raises:
        WorkError: the Hub or the network failed.
    """

    def read() -> dict[str, str]:
        entries = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit)
        return {entry.path: entry.lfs.sha256 for entry in entries if isinstance(entry, RepoFile) and entry.lfs}

    return hub.with_retries(read, f"reading the files of {repo_id}")
