"""How well a judge agrees with people, from what `hfcap judge-metrics` or `hfcap judge --people` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.errors import UserError, shown
from hfcap.files import read_json_object

_NAMES = {"tau_b": "tau-b", "tau_c": "tau-c", "accuracy": "accuracy"}


def read_agreement(path: Path) -> dict[str, Any]:
    """Read the file `agreement.json`.

    Raises:
        UserError: it is missing or something else.
    """
    what = "file of agreement with people"
    value = read_json_object(path, what)
    rows, signature = value.get("metrics"), value.get("signature")
    good = isinstance(rows, list) and all(isinstance(row, dict) for row in rows) and isinstance(signature, dict)
    if value.get("schema_version") != 1 or not good or not isinstance(value.get("statistic"), str):
        raise UserError(f"{path}: is no {what}; give the agreement.json that 'hfcap judge-metrics -o FOLDER' wrote")
    return value


def measured(
    path: Path | None, name: str, conditions: Mapping[str, Any], outputs: Sequence[str], remedy: str
) -> dict[str, str]:
    """Return for each value of a judge how well it agrees with people, in words.

    Args:
        path: of `agreement.json`; None = nobody gave one.
        name: of the judge in the file's signature. conditions: what must be the same there.
        remedy: the command that measures it.

    Raises:
        UserError: the file is missing or something else.
    """
    if path is None:
        return dict.fromkeys(outputs, f"not measured: {remedy}")
    found = read_agreement(path)
    metrics = found["signature"].get("metrics")
    theirs = metrics.get(name) if isinstance(metrics, dict) else None
    if theirs != dict(conditions):
        keys = [key for key in conditions if not isinstance(theirs, dict) or theirs.get(key) != conditions[key]]
        which = f" ({keys[0]} is {shown((theirs or {}).get(keys[0]))} there)" if theirs and keys else ""
        return dict.fromkeys(outputs, f"not measured: {path.name} is of another judge{which}; {remedy}")
    rows = {row.get("metric"): row for row in found["metrics"]}
    return {output: _said(rows.get(output), found) or f"not measured: {remedy}" for output in outputs}


def _said(row: Mapping[str, Any] | None, found: Mapping[str, Any]) -> str | None:
    statistic = found["statistic"]
    values = row.get("values") if row else None
    value = values.get(statistic) if isinstance(values, dict) else None
    if row is None or not isinstance(value, int | float):
        return None
    intervals = row.get("intervals")
    bounds = intervals.get(statistic) if isinstance(intervals, dict) else None
    within = ""
    if isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds):
        within = f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"
    name = _NAMES.get(statistic, statistic)
    return f"{name} {100 * value:.1f}{within} on {found.get('n_judgments'):,} judgments of {found.get('title')}"
