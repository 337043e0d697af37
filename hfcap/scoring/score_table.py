"""Scores on screen: x100 as papers print them, with intervals and the signature line."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from rich.table import Column, Table
from rich.text import Text

from hfcap import registry
from hfcap.schema import ScoreReport

METRIC_NAMES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
}
"""Metrics that papers print times 100, in the order of the papers' tables."""


def metric_name(metric: str) -> str:
    """Return the metric's name as papers write it."""
    return METRIC_NAMES.get(metric, metric)


def score_table(reports: Mapping[str, ScoreReport], title: str) -> Table:
    """Return a table with one row per metric and one column per report; intervals in brackets where known."""
    table = Table("", *(Column(Text(name)) for name in reports), title=title)
    for metric in next(iter(reports.values())).metrics:
        table.add_row(metric, *(_cell(report, metric) for report in reports.values()))
    return table


@cache
def _plain_outputs() -> frozenset[str]:
    """Values that are shown as they are: counts and lengths."""
    metrics = (registry.load("metrics", name).REGISTERED for name in registry.names("metrics"))
    return frozenset(output for metric in metrics for output in metric.plain_outputs)


def _cell(report: ScoreReport, metric: str) -> str:
    value = report.metrics.get(metric)
    if value is None:
        return "-"
    scale = 1.0 if metric in _plain_outputs() else 100.0
    interval = report.intervals.get(metric)
    shown = "" if interval is None else f" ({scale * interval[0]:.1f}-{scale * interval[1]:.1f})"
    return f"{scale * value:.1f}{shown}"
