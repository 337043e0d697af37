"""Scores on screen: x100 as papers print them, with intervals and the signature line."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from hfcap.schema import ScoreReport


def score_table(reports: Mapping[str, ScoreReport], title: str) -> Table:
    """Return a table with one row per report and one column per metric; intervals in brackets where known."""
    metrics = list(next(iter(reports.values())).metrics)
    table = Table("", *metrics, title=title)
    for name, report in reports.items():
        table.add_row(Text(name), *(_cell(report, metric) for metric in metrics))
    return table


def _cell(report: ScoreReport, metric: str) -> str:
    value = report.metrics.get(metric)
    if value is None:
        return "-"
    interval = report.intervals.get(metric)
    return f"{100 * value:.1f}" + ("" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})")
