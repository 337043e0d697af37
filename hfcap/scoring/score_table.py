"""Scores on screen: x100 as papers print them, with intervals and the signature line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from rich.table import Column, Table
from rich.text import Text

from hfcap import registry
from hfcap.progress import console
from hfcap.schema import ErrorSlice, ScoreReport, SliceScores
from hfcap.text import printable

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
    "bert_score": "BERTScore",
    "polos": "Polos",
    "fleur": "FLEUR",
    "ref_fleur": "RefFLEUR",
}
"""Metrics that papers print times 100, in the order of the papers' tables."""


SIGNIFICANT = 0.05
"""Differences with a smaller p-value after correction are marked."""

FEWEST = 10
"""Images of a group that is looked at for errors; smaller ones say too little."""


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


def is_times_100(metric: str) -> bool:
    """Whether a value is shown x 100; counts and lengths are shown as they are."""
    return metric not in _plain_outputs()


def scaled(metric: str, value: float) -> float:
    """Return a raw value on the scale on which it is shown."""
    return 100.0 * value if is_times_100(metric) else value


def shown_score(metric: str, value: float | None, *, digits: int = 1, sign: bool = False, undefined: str = "-") -> str:
    """Return a value as every table, sentence, card and page shows it, rounded once and from the raw number.

    Args:
        value: raw scale; None is shown as `undefined`.
        digits: after the point.
        sign: of a difference: + or - in front.
    """
    if value is None:
        return undefined
    return f"{scaled(metric, value):{'+' if sign else ''}.{digits}f}"


def _cell(report: ScoreReport, metric: str) -> str:
    interval = report.intervals.get(metric)
    value = shown_score(metric, report.metrics.get(metric))
    if interval is None or report.metrics.get(metric) is None:
        return value
    return f"{value} ({'-'.join(shown_score(metric, bound) for bound in interval)})"


def slice_tables(report: ScoreReport) -> list[Table]:
    """Return a table for each column that scores are told apart by: one row per value, and one for all images."""
    return [_slice_table(report, column) for column in report.slices]


def _slice_table(report: ScoreReport, column: str) -> Table:
    slices = report.slices[column]
    outputs = list(next(iter(slices.values())).metrics)
    heads = (Column(Text(printable(metric_name(output))), justify="right") for output in outputs)
    table = Table(Column(Text(printable(column))), Column("images", justify="right"), *heads)
    for value, found in slices.items():
        cells = [shown_slice(found, output) for output in outputs]
        table.add_row(Text(printable(value)), f"{found.n_images:,}", *cells)
    table.add_row("all", f"{report.n_images:,}", *(shown_score(one, report.metrics.get(one)) for one in outputs))
    return table


def shown_slice(found: SliceScores, output: str) -> str:
    """Return a slice's value with its interval; * = differs from all other images after Holm's correction."""
    value = found.metrics.get(output)
    text = shown_score(output, value)
    if value is not None and (interval := found.intervals.get(output)) is not None:
        text += f" ({'-'.join(shown_score(output, bound) for bound in interval)})"
    return text + ("*" if found.p_values.get(output, 1.0) < SIGNIFICANT else "")


SLICES_EXPLAINED = (
    "* = differs from all other images (permutation test, p below 0.05 after Holm's correction over all slices and "
    "values). CIDEr-D weighs n-grams by all images of the split."
)
"""Stands below the tables of slices."""


def error_slice_table(found: Sequence[ErrorSlice]) -> Table:
    """Return what was found, surest first: value there and elsewhere, and the worst captions."""
    heads = ("images", f"{metric_name(found[0].output)} there", "elsewhere", "p")
    table = Table("worse on", *(Column(Text(head), justify="right") for head in heads), "the worst captions there")
    for one in found:
        captions = "\n".join(f"{image_id}: {caption}" for image_id, caption in one.examples)
        name = Text(printable(error_slice_name(one)))
        table.add_row(name, f"{one.n_images:,}", *error_slice_values(one), Text(printable(captions, "\n")))
    return table


def error_slice_name(found: ErrorSlice) -> str:
    """Return what the images of a found slice have in common, e.g. "word zebra"."""
    return f"{found.kind} {found.name}"


def error_slice_values(found: ErrorSlice) -> tuple[str, str, str]:
    """Return a found slice's value there and elsewhere, both with intervals, and its p-value, as they are shown."""
    there, elsewhere = (
        shown_score(found.output, value)
        + ("" if interval is None else f" ({'-'.join(shown_score(found.output, bound) for bound in interval)})")
        for value, interval in (
            (found.value, found.interval),
            (found.value_of_others, found.interval_of_others),
        )
    )
    return there, elsewhere, f"{found.p_value:.3f}"


def no_error_slices(n_images: int) -> str:
    """Return what is to be said where slices were looked for and none was found."""
    if n_images < 2 * FEWEST:
        return (
            f"No group of images could be looked at: groups have at least {FEWEST} images and at most half of all "
            f"{n_images}."
        )
    return (
        "No group of images, by what their human captions speak of, scores significantly worse than all others; "
        f"with {n_images:,} images only large deficits show."
    )


ERROR_SLICES_EXPLAINED = (
    "Means of single images, by words that at least half of an image's human captions have; p is one-sided and "
    "corrected over all groups that were looked at (permutations, maxT). Intervals are of the bootstrap and do not "
    "know that a group was chosen for its low value."
)
"""Stands below the table of slices that were found."""


def print_slices(report: ScoreReport) -> None:
    """Print the slices of a score file, and those that were found, each with what its numbers are."""
    for table in slice_tables(report):
        console.print(table)
    if report.slices:
        console.print(SLICES_EXPLAINED, markup=False, soft_wrap=True)
    if report.error_slices:
        console.print(error_slice_table(report.error_slices))
    if report.error_slices is not None:
        text = ERROR_SLICES_EXPLAINED if report.error_slices else no_error_slices(report.n_images)
        console.print(text, markup=False, soft_wrap=True)
