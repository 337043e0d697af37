"""What metrics are worth, on screen, as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from hfcap.comparison.verdict import shown_p
from hfcap.files import write_json, write_text
from hfcap.judgments.agreement import AgreementReport, MetricAgreement
from hfcap.pages import render_page
from hfcap.scoring.score_table import SIGNIFICANT, metric_name
from hfcap.scoring.signature import flattened

_TITLES = {"tau_b": "tau-b", "tau_c": "tau-c"}


def statistic_name(statistic: str) -> str:
    """Return a statistic as papers write it."""
    return _TITLES.get(statistic, statistic.replace("accuracy_", ""))


def statistics_of(report: AgreementReport) -> tuple[str, ...]:
    """Return the statistics, the one that orders the metrics first."""
    names = report.metrics[0].values
    return (report.statistic, *(name for name in names if name != report.statistic))


def _number(value: float) -> str:
    return f"{100 * value:.1f}"


def shown_interval(metric: MetricAgreement, statistic: str) -> str:
    """Return an interval x 100; empty where there is none."""
    interval = metric.intervals.get(statistic)
    return "" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def shown_published(metric: MetricAgreement, statistic: str) -> str:
    """Return what a paper reports; empty where no paper that hfcap knows does."""
    published = metric.published.get(statistic)
    return "" if published is None else f"{published.value:.1f}"


def shown_difference(metric: MetricAgreement) -> str:
    """Return the difference to the best metric and its corrected p-value."""
    found = metric.difference
    return "" if found is None else f"{100 * found.paired.difference:+.1f} ({shown_p(found.corrected_p_value)})"


def facts(report: AgreementReport) -> str:
    """Return in one sentence what the metrics were compared with, and whether published values are of the same."""
    sentence = (
        f"{report.title}: {report.n_judgments:,} judgments of {report.n_captions:,} captions for "
        f"{report.n_images:,} images."
    )
    if report.is_complete is False:
        sentence += " Published values are of another number of judgments: they cannot be compared."
    elif report.is_complete is None and any(metric.published for metric in report.metrics):
        sentence += " Whether the published values are of the same judgments is not known."
    return sentence


def agreement_table(report: AgreementReport) -> Table:
    """Return a table with one row per metric, best first, x 100 as papers print it."""
    main, *others = statistics_of(report)
    name = statistic_name(main)
    level = f"{report.settings['confidence_level']:.0%}"
    columns = [name, level, "published", f"{name} to best"]
    for other in others:
        columns += [statistic_name(other), "published"]
    table = Table("", *(Column(Text(title), justify="right") for title in columns), title=Text(facts(report)))
    for metric in report.metrics:
        cells = [_number(metric.values[main]), shown_interval(metric, main), shown_published(metric, main)]
        cells.append(shown_difference(metric))
        for other in others:
            cells += [_number(metric.values[other]), shown_published(metric, other)]
        table.add_row(metric_name(metric.output), *cells)
    return table


def agreement_json(report: AgreementReport) -> dict[str, Any]:
    """Return the report as JSON values: raw numbers, published ones x 100 with their source."""
    return {
        "schema_version": 1,
        "title": report.title,
        "layout": report.layout,
        "statistic": report.statistic,
        "n_images": report.n_images,
        "n_captions": report.n_captions,
        "n_judgments": report.n_judgments,
        "complete": report.is_complete,
        "metrics": [
            {
                "metric": metric.output,
                "values": {name: _or_none(value) for name, value in metric.values.items()},
                "intervals": {name: list(bounds) for name, bounds in metric.intervals.items()},
                "difference_to_best": _difference_json(metric),
                "published": {
                    name: {"value": found.value, "source": found.source} for name, found in metric.published.items()
                },
            }
            for metric in report.metrics
        ],
        "signature": report.signature,
        "bootstrap": report.settings,
        "notes": list(report.notes),
    }


def _or_none(value: float) -> float | None:
    return value if value == value else None  # a kind of pair may lie in no resample


def _difference_json(metric: MetricAgreement) -> dict[str, Any] | None:
    if metric.difference is None:
        return None
    paired = metric.difference.paired
    return {
        "value": paired.difference,
        "interval": list(paired.interval),
        "p_value": paired.p_value,
        "corrected_p_value": metric.difference.corrected_p_value,
    }


def agreement_page(report: AgreementReport) -> str:
    """Return the report as one HTML file."""
    names = statistics_of(report)
    return render_page(
        "judgments/agreement.html.jinja",
        title=f"Metrics against people: {report.title}",
        facts=facts(report),
        notes=report.notes,
        level=f"{report.settings['confidence_level']:.0%}",
        n_resamples=f"{report.settings['n_resamples']:,}",
        statistics=[statistic_name(name) for name in names],
        rows=[
            {
                "name": metric_name(metric.output),
                "cells": [
                    {
                        "value": _number(metric.values[name]),
                        "interval": shown_interval(metric, name),
                        "published": shown_published(metric, name),
                    }
                    for name in names
                ],
                "difference": shown_difference(metric),
                "significant": metric.difference is not None and metric.difference.corrected_p_value < SIGNIFICANT,
            }
            for metric in report.metrics
        ],
        sources=sorted({found.source for metric in report.metrics for found in metric.published.values()}),
        conditions=[(key, str(value)) for key, value in flattened(report.signature)],
    )


def write_agreement(report: AgreementReport, folder: Path) -> None:
    """Write agreement.json and agreement.html into a folder."""
    page = agreement_page(report)
    write_json(folder / "agreement.json", agreement_json(report))
    write_text(folder / "agreement.html", page)
