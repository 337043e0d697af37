"""Scores on screen: x100 as papers print them, with intervals and the signature line."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Column, Table
from rich.text import Text

from hfcap.schema import ScoreReport


def score_table(reports: Mapping[str, ScoreReport], title: str) -> Table:
    """Return a table with one row per metric and one column per report; intervals in brackets where known."""
    table = Table("", *(Column(Text(name)) for name in reports), title=title)
    for metric in next(iter(reports.values())).metrics:
        table.add_row(metric, *(_cell(report, metric) for report in reports.values()))
    return table


def _cell(report: ScoreReport, metric: str) -> str:
    value = report.metrics.get(metric)
    if value is None:
        return "-"
    interval = report.intervals.get(metric)
    return f"{100 * value:.1f}" + ("" if interval is None else f" ({100 * interval[0]:.1f}-{100 * interval[1]:.1f})")
