"""Compare runs or score files: values with intervals, paired differences to the best, costs, published rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hfcap import registry
from hfcap.comparison.conditions import check_same_data, metric_conditions, unequal_conditions
from hfcap.comparison.result import AtEqualLength, Comparison, Difference
from hfcap.comparison.significance import Pair, PairedDifference, at_equal_length, paired_differences
from hfcap.comparison.slices import compare_found_slices, compare_slices
from hfcap.comparison.systems import ScorePredictions, System, read_systems
from hfcap.comparison.verdict import beaten_by_baselines
from hfcap.errors import UserError
from hfcap.metrics.base import CaptionMetric
from hfcap.metrics.shared.bootstrap import Floats, holm, percentile_intervals, resampled_values
from hfcap.metrics.shared.caption_files import Warn, warn_on_terminal
from hfcap.metrics.suite import metric_for_statistics
from hfcap.scoring.verdict import MAIN_METRICS

ToBest = dict[tuple[str, str], PairedDifference]
"""(output, name of a system) -> its difference to the system that is best in that value."""

NOTABLE_LENGTH = 0.1
"""Mean lengths that differ by more than this share are no longer equal."""


def _metrics_of(systems: Sequence[System], warnings: list[str]) -> list[CaptionMetric]:
    """Metric objects for the values in the score files, in the order of the first file that has them."""
    found: dict[str, CaptionMetric] = {}
    for name in dict.fromkeys(name for system in systems for name in system.report.signature.get("metrics", {})):
        if name in registry.names("metrics"):
            found[name] = metric_for_statistics(name)
        else:
            warnings.append(f"{name}: this hfcap has no such metric, so that it is not tested for differences")
    order = [output for system in systems for output in system.report.metrics]
    return sorted(
        found.values(), key=lambda metric: next((order.index(o) for o in metric.outputs if o in order), len(order))
    )


def _intervals(
    system: System, metrics: Sequence[CaptionMetric], settings: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    """Intervals of the score file; those it lacks, or has at another level, are computed from its statistics."""
    recorded = system.report.signature.get("bootstrap", {}).get("confidence_level")
    kept = dict(system.report.intervals) if recorded == settings["confidence_level"] else {}
    lacking = [metric for metric in metrics if any(output not in kept for output in metric.outputs)]
    statistics = {metric.name: system.statistics(metric) for metric in lacking}
    usable = {name: rows for name, rows in statistics.items() if rows is not None}
    chosen = tuple(metric for metric in lacking if metric.name in usable)
    values = resampled_values(chosen, usable, settings["n_resamples"], settings["seed"])
    return {**percentile_intervals(values, settings["confidence_level"]), **kept}


def _directions(metrics: Sequence[CaptionMetric]) -> dict[str, float]:
    """Output -> 1 where higher is better, -1 where lower is; outputs without a better direction are left out."""
    return {
        output: 1.0 if metric.higher_is_better else -1.0
        for metric in metrics
        if metric.higher_is_better is not None
        for output in metric.outputs
    }


def _ranked(systems: Sequence[System], output: str, direction: float) -> list[System]:
    """Systems by one value, best first; those without it last; equal ones in the given order."""

    def key(system: System) -> float:
        value = system.report.metrics.get(output)
        return np.inf if value is None else -direction * value

    return sorted(systems, key=key)


def _best(systems: Sequence[System], directions: dict[str, float]) -> dict[str, str]:
    return {
        output: _ranked(systems, output, direction)[0].name
        for output, direction in directions.items()
        if any(system.report.metrics.get(output) is not None for system in systems)
    }


def paired_to_best(
    systems: Sequence[System], metrics: Sequence[CaptionMetric], best: dict[str, str], settings: dict[str, Any]
) -> ToBest:
    """Return each system's differences to the best one in each value, before any correction."""
    tested: list[tuple[CaptionMetric, str, str]] = []
    pairs: list[Pair] = []
    for metric in metrics:
        rows = {system.name: system.short_statistics(metric) for system in systems}
        for leader in dict.fromkeys(best[output] for output in metric.outputs if output in best):
            for name, statistics in rows.items():
                leading = rows[leader]
                if name != leader and statistics is not None and leading is not None:
                    _require_equal_width(metric, statistics, leading, (name, leader))
                    tested.append((metric, leader, name))
                    pairs.append(Pair(metric, statistics, leading))
    paired: ToBest = {}
    for (metric, leader, name), found in zip(tested, paired_differences(pairs, **settings), strict=True):
        # BLEU-1 and BLEU-4 may have different leaders.
        paired |= {
            (output, name): found[output] for output in metric.outputs if best.get(output) == leader and output in found
        }
    return paired


def _require_equal_width(metric: CaptionMetric, first: Floats, other: Floats, names: tuple[str, str]) -> None:
    """Refuse statistics of a metric, whose width hfcap does not know, that two versions of it made."""
    if first.shape[1] != other.shape[1]:
        raise UserError(
            f"{names[0]} and {names[1]}: {first.shape[1]:,} and {other.shape[1]:,} numbers for an image in "
            f"statistics.{metric.name}; score both again with the same version of the metric"
        )


def corrected_differences(groups: Sequence[ToBest]) -> list[dict[str, dict[str, Difference]]]:
    """Return for each group output -> name -> difference, with Holm's correction over all groups together."""
    p_values = iter(holm([difference.p_value for paired in groups for difference in paired.values()]))
    results = []
    for paired in groups:
        result: dict[str, dict[str, Difference]] = {}
        for (output, name), difference in paired.items():
            result.setdefault(output, {})[name] = Difference(difference, next(p_values))
        results.append(result)
    return results


def _at_equal_length(
    systems: Sequence[System], metrics: Sequence[CaptionMetric], best: dict[str, str], settings: dict[str, Any]
) -> dict[str, dict[str, AtEqualLength]]:
    """Differences to the best without what differs by length, of pairs whose mean lengths differ notably."""
    words = {system.name: lengths for system in systems if (lengths := system.lengths()) is not None}
    result: dict[str, dict[str, AtEqualLength]] = {}
    for metric in metrics:
        rows = {system.name: system.statistics(metric) for system in systems} if metric.is_mean else {}
        for place, output in enumerate(metric.outputs):
            leader = best.get(output, "")
            leading = rows.get(leader)
            for name, statistics in rows.items():
                if name == leader or statistics is None or leading is None or not {name, leader} <= words.keys():
                    continue
                mean, of_best = float(words[name].mean()), float(words[leader].mean())
                if abs(mean - of_best) <= NOTABLE_LENGTH * max(mean, of_best):
                    continue
                differences = statistics[:, place] - leading[:, place]
                if (found := at_equal_length(differences, words[name] - words[leader], **settings)) is not None:
                    result.setdefault(output, {})[name] = AtEqualLength(mean, of_best, *found)
    return result


def _comparable(
    systems: Sequence[System], metrics: Sequence[CaptionMetric], warnings: list[str]
) -> list[CaptionMetric]:
    """Metrics computed under the same conditions in all systems that have them; appends a warning for each other."""
    equal = []
    for metric in metrics:
        having = [system for system in systems if metric.name in system.report.signature.get("metrics", {})]
        if conditions := metric_conditions(having, metric.name):
            warnings.append(
                f"{metric.name} was computed under different conditions: its values are NOT comparable: {conditions}"
            )
        else:
            equal.append(metric)
    return equal


def require_resamples(n_resamples: int) -> None:
    """Refuse fewer resamples than intervals and p-values need.

    Raises:
        UserError: fewer than 100.
    """
    if n_resamples < 100:
        raise UserError(f"n_resamples must be at least 100 for a comparison, not {n_resamples}")


def compare(
    paths: Sequence[Path],
    *,
    score: ScorePredictions | None = None,
    split: str | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    confidence_level: float = 0.95,
    warn: Warn = warn_on_terminal,
) -> Comparison:
    """Compare run directories, score files or prediction files; `console.print` shows the result.

    Args:
        paths: at least one run directory, score file or, with `score`, prediction file.
        score: scores a prediction file.
        split: which scores of a run directory; the split its recipe scores by default.
        n_resamples: of the bootstrap and of the permutation test, at least 100.
        seed: of both; recorded.
        confidence_level: of the intervals.
        warn: receives everything that makes the comparison less than equal.

    Raises:
        UserError: a path cannot be read, or the systems were scored on different images or human captions.
    """
    if not paths:
        raise UserError("nothing to compare: give run directories, score files or prediction files")
    require_resamples(n_resamples)
    systems = read_systems(paths, split, score)
    return compare_systems(systems, n_resamples=n_resamples, seed=seed, confidence_level=confidence_level, warn=warn)


def compare_systems(
    systems: Sequence[System],
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    confidence_level: float = 0.95,
    warn: Warn = warn_on_terminal,
) -> Comparison:
    """Compare systems that were read; see `compare`.

    Raises:
        UserError: there is none, or they were scored on different images or human captions.
    """
    if not systems:
        raise UserError("nothing to compare: give run directories, score files or prediction files")
    require_resamples(n_resamples)
    settings = {"n_resamples": n_resamples, "seed": seed, "confidence_level": confidence_level}
    found, equal = compared_values(systems, settings, warn)
    (differences,) = corrected_differences([paired_to_best(systems, equal, found.best, settings)])
    return replace(
        found,
        differences=differences,
        at_equal_length=_at_equal_length(systems, equal, found.best, settings),
        slices=compare_slices(systems, equal, found.ranking, found.directions, settings),
        found_slices=compare_found_slices(systems, equal, found.ranking, found.directions, settings),
    )


def compared_values(
    systems: Sequence[System], settings: dict[str, Any], warn: Warn
) -> tuple[Comparison, list[CaptionMetric]]:
    """Return the systems with values, intervals and the best ones, not yet tested; and the metrics to test them by.

    Raises:
        UserError: they were scored on different images or human captions.
    """
    check_same_data(systems)
    warnings: list[str] = []
    metrics = _metrics_of(systems, warnings)
    outputs = tuple(dict.fromkeys(name for system in systems for name in system.report.metrics))
    equal = _comparable(systems, metrics, warnings)
    warnings += [*unequal_conditions(systems), *beaten_by_baselines(systems)]
    for message in warnings:
        warn(message)
    directions = _directions(equal)
    best = _best(systems, directions)
    published = {(row.name, row.source): row for system in systems if (row := system.published) is not None}
    ranking = next((name for name in (*MAIN_METRICS, *outputs) if name in best), None)
    found = Comparison(
        systems=tuple(systems if ranking is None else _ranked(systems, ranking, directions[ranking])),
        outputs=outputs,
        plain_outputs=frozenset(name for metric in metrics for name in metric.plain_outputs),
        intervals={system.name: _intervals(system, metrics, settings) for system in systems},
        ranking=ranking,
        directions=directions,
        best=best,
        differences={},
        published=tuple(published.values()),
        warnings=tuple(warnings),
        settings=settings,
    )
    return found, equal
