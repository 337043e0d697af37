"""What is shown of systems on slices: rows of text, explanations, JSON values."""

from __future__ import annotations

from typing import Any

from hfcap.comparison.result import Comparison, Difference, FoundSlice, SliceComparison
from hfcap.comparison.slices.found import found_slices
from hfcap.comparison.verdict import shown_p
from hfcap.scoring.score_table import SIGNIFICANT, metric_name, shown_score


def slice_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the systems on slices of the images; * = significantly worse than the best there."""
    header = ["", "images", *(system.name for system in comparison.systems)]
    rows = [
        [
            f"{one.column}: {one.value}",
            f"{one.n_images:,}",
            *(_slice_cell(comparison, one, system.name) for system in comparison.systems),
        ]
        for one in comparison.slices
    ]
    return header, rows


def _slice_cell(comparison: Comparison, one: SliceComparison, name: str) -> str:
    if name not in one.values:
        return "-"
    found = one.differences.get(name)
    mark = "*" if found is not None and found.corrected_p_value < SIGNIFICANT else ""
    return _value(comparison, one, name) + mark


def _value(comparison: Comparison, one: SliceComparison, name: str) -> str:
    assert comparison.ranking is not None
    text = shown_score(comparison.ranking, one.values[name])
    if name in one.intervals:
        lower, upper = (shown_score(comparison.ranking, bound) for bound in one.intervals[name])
        text += f" [{lower}, {upper}]"
    return text


def slices_explanation(comparison: Comparison) -> str:
    """Return what the table of slices shows."""
    return (
        f"{metric_name(comparison.ranking or '')} on slices of the images; * = worse than the best system "
        f"on that slice (paired permutation test, p below {SIGNIFICANT} after Holm's correction over all slices)."
    )


def found_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, one for each found slice and system; * = significantly worse than the best there."""
    output = metric_name(comparison.ranking or "")
    header = ["worse on", "images", "system", f"{output} there", "elsewhere", "difference to the best there", "found"]
    rows = [
        [
            found_name(one),
            f"{one.comparison.n_images:,}",
            system.name,
            _value(comparison, one.comparison, system.name),
            shown_score(comparison.ranking or "", one.elsewhere.get(system.name)),
            found_difference(comparison, one, system.name),
            _found_for(one, system.name, system.report.error_slices is not None),
        ]
        for one in comparison.found_slices
        for system in comparison.systems
        if system.name in one.comparison.values
    ]
    return header, rows


def found_name(one: FoundSlice) -> str:
    """Return what the images of a found slice have in common."""
    return f"{one.comparison.column} {one.comparison.value}"


def found_difference(comparison: Comparison, one: FoundSlice, name: str) -> str:
    """Return a system's difference to the best on a found slice, with interval and corrected p-value."""
    assert comparison.ranking is not None
    if name == one.comparison.best:
        return "best"
    found = one.comparison.differences.get(name)
    if found is None:
        return "-"
    difference, lower, upper = (
        shown_score(comparison.ranking, value, digits=2, sign=True)
        for value in (found.paired.difference, *found.paired.interval)
    )
    mark = "*" if found.corrected_p_value < SIGNIFICANT else ""
    return f"{difference} [{lower}, {upper}] {shown_p(found.corrected_p_value)}{mark}"


def _found_for(one: FoundSlice, name: str, searched: bool) -> str:
    if name in one.found:
        return shown_p(one.found[name].p_value)
    return "no" if searched else "not searched"


def found_explanation(comparison: Comparison) -> str:
    """Return what the table of found slices shows, and how many more there are."""
    left_out = len(found_slices(comparison.systems)) - len(comparison.found_slices)
    more = f" {left_out:,} more are in the score files." if left_out > 0 else ""
    return (
        "Slices on whose images some system scores significantly worse than on all others; found: for which system, "
        "with the p-value of its score file, corrected over all groups that were looked at. Differences: paired "
        f"bootstrap interval and permutation test; * = p below {SIGNIFICANT} after Holm's correction over these slices "
        "and systems. A slice was chosen because a system does badly there, so that its difference to the others "
        f"looks larger than it would on new images.{more}"
    )


def slice_json(one: SliceComparison) -> dict[str, Any]:
    """Return a slice as JSON values on the raw scale."""
    return {
        "column": one.column,
        "value": one.value,
        "n_images": one.n_images,
        "values": one.values,
        "intervals": one.intervals,
        "best": one.best,
        "difference_to_best": {name: difference_json(found) for name, found in one.differences.items()},
    }


def difference_json(found: Difference) -> dict[str, Any]:
    """Return a difference to the best as JSON values on the raw scale."""
    return {
        "difference": found.paired.difference,
        "interval": found.paired.interval,
        "p_value": found.paired.p_value,
        "corrected_p_value": found.corrected_p_value,
    }


def found_json(one: FoundSlice) -> dict[str, Any]:
    """Return a found slice as JSON values: `found_for` has the p-values of the score files."""
    found_for = {name: found.p_value for name, found in one.found.items()}
    return {**slice_json(one.comparison), "values_elsewhere": one.elsewhere, "found_for": found_for}
