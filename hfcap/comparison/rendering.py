"""A leaderboard as rich tables, Markdown and JSON."""

from __future__ import annotations

import io
from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from hfcap.comparison.by_image import ByImage, by_image
from hfcap.comparison.result import AtEqualLength, Comparison, Difference
from hfcap.comparison.slices.tables import (
    difference_json,
    found_explanation,
    found_json,
    found_rows,
    slice_json,
    slice_rows,
    slices_explanation,
)
from hfcap.comparison.systems import COSTS, System
from hfcap.comparison.verdict import shown_p, verdict
from hfcap.pages.markdown import Safe, code, escape, table
from hfcap.scoring import signature_line
from hfcap.scoring.score_table import SIGNIFICANT, shown_score
from hfcap.text import printable

N_EXAMPLES = 6
"""So many of the largest wins and losses of each pair are shown."""


class Cost(NamedTuple):
    """How a cost of training is shown.

    Attributes:
        title: with its unit.
        unit: that unit in those of training_summary.json.
        digits: after the point.
        less_is_cheaper: False for speeds.
    """

    title: str
    unit: float
    digits: int
    less_is_cheaper: bool = True


COST_TITLES = {
    "parameters": Cost("parameters, M", 1e6, 1),
    "trainable_parameters": Cost("trained, M", 1e6, 2),
    "train_seconds": Cost("training, h", 3600.0, 2),
    "peak_memory_bytes": Cost("peak memory, GiB", 2.0**30, 2),
    "images_per_second": Cost("images/s", 1.0, 1, less_is_cheaper=False),
    "captions_per_second": Cost("captions/s", 1.0, 1, less_is_cheaper=False),
}


def shown_number(output: str, value: float | None, sign: bool = False) -> str:
    """Return the scaled value with one decimal; with `sign` a difference, with two."""
    return shown_score(output, value, digits=2 if sign else 1, sign=sign)


def score_cell(comparison: Comparison, system: str, output: str, value: float | None) -> str:
    """Return a system's value with its interval."""
    interval = comparison.intervals.get(system, {}).get(output)
    text = shown_number(output, value)
    if value is None or interval is None:
        return text
    return f"{text} [{shown_number(output, interval[0])}, {shown_number(output, interval[1])}]"


def difference_cell(output: str, difference: Difference | None) -> str:
    """Return a difference to the best with its interval and p-value; * = significant."""
    if difference is None:
        return "-"
    paired = difference.paired
    lower, upper = (shown_number(output, bound, sign=True) for bound in paired.interval)
    mark = "*" if difference.corrected_p_value < SIGNIFICANT else ""
    value = shown_number(output, paired.difference, sign=True)
    return f"{value} [{lower}, {upper}] {shown_p(difference.corrected_p_value)}{mark}"


def cost_keys(comparison: Comparison) -> list[str]:
    """Return the costs that some system recorded."""
    return [key for key in COSTS if any(key in system.costs for system in comparison.systems)]


def shown_cost(key: str, value: float | None) -> str:
    """Return a cost in the unit of its title."""
    cost = COST_TITLES[key]
    return "-" if value is None else f"{value / cost.unit:.{cost.digits}f}"


def _score_rows(comparison: Comparison) -> tuple[list[str], list[list[str]], set[tuple[int, int]]]:
    """Header and rows of the main table, systems first, published rows after them; and (row, column) of the best."""
    costs = cost_keys(comparison)
    header = ["system", *comparison.outputs, *(COST_TITLES[key].title for key in costs)]
    rows = [
        [
            system.name,
            *(
                score_cell(comparison, system.name, output, system.report.metrics.get(output))
                for output in comparison.outputs
            ),
            *(shown_cost(key, system.costs.get(key)) for key in costs),
        ]
        for system in comparison.systems
    ]
    for row in comparison.published:
        mark = "reproduced" if row.reproduced else "not yet reproduced here"
        values = [shown_number(output, row.metrics.get(output)) for output in comparison.outputs]
        rows.append([f"{row.name}, {mark}: {row.source}", *values, *("-" for _ in costs)])
    best = {
        (row, column)
        for row, system in enumerate(comparison.systems)
        for column, output in enumerate(comparison.outputs, start=1)
        if comparison.best.get(output) == system.name
    }
    return header, rows, best


def _difference_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    outputs = [output for output in comparison.outputs if output in comparison.differences]
    rows = []
    for system in comparison.systems:
        cells = [
            "best"
            if comparison.best[output] == system.name
            else difference_cell(output, comparison.differences[output].get(system.name))
            for output in outputs
        ]
        rows.append([system.name, *cells])
    return ["system", *outputs], rows


def equal_length_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the differences to the best at equal length; * = the interval does not hold 0."""
    found = comparison.at_equal_length
    outputs = [output for output in comparison.outputs if output in found]
    names = [system.name for system in comparison.systems if any(system.name in found[output] for output in outputs)]
    rows = [[name, *(_equal_length_cell(output, found[output].get(name)) for output in outputs)] for name in names]
    return ["system", *outputs], rows


def _equal_length_cell(output: str, found: AtEqualLength | None) -> str:
    if found is None:
        return "-"
    lower, upper = (shown_number(output, bound, sign=True) for bound in found.interval)
    mark = "*" if found.is_sure else ""
    value = shown_number(output, found.difference, sign=True)
    return f"{value}{mark} [{lower}, {upper}] ({found.words:.1f} words, best {found.words_of_best:.1f})"


EQUAL_LENGTH_EXPLAINED = (
    "Differences to the best at equal length: the intercept of the images' differences on their differences in words, "
    "with bootstrap intervals, for systems whose mean lengths differ by more than 10 %; * = without 0. "
    "Intervals are wide where one system is longer on nearly every image."
)
"""Stands below the table of differences at equal length."""


def explanation(comparison: Comparison) -> str:
    """Return what the numbers of the tables are."""
    settings = comparison.settings
    parts = [
        f"Values x 100 (counts and lengths as they are) with {settings['confidence_level']:.0%} bootstrap intervals."
    ]
    if any(comparison.differences.values()):
        parts.append(
            "Differences to the best: paired bootstrap interval, p of the paired permutation test after Holm's "
            f"correction over all comparisons shown ({settings['n_resamples']:,} resamples of "
            f"{comparison.systems[0].report.n_images:,} images, seed {settings['seed']}); * = below {SIGNIFICANT}."
        )
    if comparison.published:
        parts.append("Published rows are quoted, not measured here.")
    return " ".join(parts)


def upright(header: list[str], rows: list[list[str]], title: str | Text, best: set[tuple[int, int]]) -> Table:
    """Return a table with one column per system and one row per value: terminals have more rows than columns.

    Args:
        best: (row, column) of the cells that stand out.
    """
    table = Table("", *(Column(Text(printable(row[0]))) for row in rows), title=title)
    for column, name in enumerate(header[1:], start=1):
        cells = [Text(row[column], style="bold" if (number, column) in best else "") for number, row in enumerate(rows)]
        table.add_row(Text(printable(name)), *cells)
    return table


def leaderboard_table(comparison: Comparison, with_warnings: bool = True) -> RenderableType:
    """Return the leaderboard for a terminal; without warnings where they were said already."""
    parts: list[RenderableType] = [Text(printable(sentence), style="bold") for sentence in verdict(comparison)]
    parts += [
        Text(printable(f"warning: {message}"), style="bold yellow") for message in comparison.warnings if with_warnings
    ]
    header, rows, best = _score_rows(comparison)
    parts.append(upright(header, rows, "Leaderboard", best))
    if comparison.differences:
        parts.append(upright(*_difference_rows(comparison), "Difference to the best", set()))
    parts.append(Text(explanation(comparison), style="dim"))
    if comparison.at_equal_length:
        parts.append(upright(*equal_length_rows(comparison), "Difference to the best at equal length", set()))
        parts.append(Text(EQUAL_LENGTH_EXPLAINED, style="dim"))
    if comparison.slices:
        header, rows = slice_rows(comparison)
        table = Table(*(Column(Text(printable(name))) for name in header), title="Slices")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        parts += [table, Text(slices_explanation(comparison), style="dim")]
    if comparison.found_slices:
        parts += [_found_table(comparison), Text(found_explanation(comparison), style="dim")]
    return Group(*parts)


def _found_table(comparison: Comparison) -> Table:
    """One row per slice and system; a line and the slice's name where the next slice begins."""
    header, rows = found_rows(comparison)
    table = Table(*(Column(Text(printable(name))) for name in header), title="Found slices")
    for number, row in enumerate(rows):
        same, last = number > 0 and rows[number - 1][:2] == row[:2], number + 1 == len(rows)
        cells = ["", "", *row[2:]] if same else row
        ends = not last and rows[number + 1][:2] != row[:2]
        table.add_row(*(Text(printable(cell)) for cell in cells), end_section=ends)
    return table


class PrintableComparison(Comparison):
    """A comparison whose text is the leaderboard, as `hfcap compare` prints it; for those who call it from Python."""

    def __str__(self) -> str:
        """Return the leaderboard without colours, up to 160 characters wide."""
        return as_text(leaderboard_table(self))


def as_text(table: RenderableType) -> str:
    """Return what a terminal of 160 characters would show, without colours."""
    page = Console(file=io.StringIO(), width=160, color_system=None, legacy_windows=False)
    with page.capture() as captured:
        page.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def markdown_table(header: list[str], rows: list[list[str]], bold: Container[tuple[int, int]] = ()) -> str:
    """Return a table in Markdown, everything escaped; (row, column) of the cells in `bold` stand out."""

    def shown(cell: str, place: tuple[int, int]) -> Safe:
        return Safe(f"**{escape(cell)}**") if place in bold else escape(cell)

    cells = [[shown(cell, (number, column)) for column, cell in enumerate(row)] for number, row in enumerate(rows)]
    return table([escape(name) for name in header], cells, right=len(header) - 1)


def _by_image_rows(comparison: Comparison, pairs: Sequence[ByImage]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of wins and losses of the best system."""
    rows = []
    for pair in pairs:
        mean = shown_number(pair.output, float(pair.differences.mean()), sign=True)
        rows.append([pair.other.name, *(f"{count:,}" for count in pair.counts.values()), mean])
    return ["against", *pairs[0].counts, "mean difference"], rows


def leaderboard_markdown(comparison: Comparison) -> str:
    """Return the leaderboard as Markdown; names and messages of files are escaped."""
    header, rows, best = _score_rows(comparison)
    parts = ["# Leaderboard", escape(" ".join(verdict(comparison)))]
    parts += [f"> **Warning:** {escape(message)}" for message in comparison.warnings]
    parts.append(markdown_table(header, rows, best))
    if comparison.differences:
        parts += ["## Difference to the best", markdown_table(*_difference_rows(comparison))]
    parts.append(escape(explanation(comparison)))
    if comparison.at_equal_length:
        parts += ["## Difference to the best at equal length", markdown_table(*equal_length_rows(comparison))]
        parts.append(escape(EQUAL_LENGTH_EXPLAINED))
    if pairs := by_image(comparison):
        leader, output = escape(pairs[0].leader.name), escape(pairs[0].output)
        parts += [
            "## Image by image",
            f"Images that the best system, {leader}, wins, ties and loses by their {output}.",
            markdown_table(*_by_image_rows(comparison, pairs)),
        ]
    if comparison.slices:
        parts += ["## Slices", markdown_table(*slice_rows(comparison))]
        parts.append(escape(slices_explanation(comparison)))
    if comparison.found_slices:
        parts += ["## Found slices", markdown_table(*found_rows(comparison))]
        parts.append(escape(found_explanation(comparison)))
    signatures = "\n".join(
        f"- {escape(system.name)}: {code(signature_line(system.report.signature), in_table=False)}"
        for system in comparison.systems
    )
    return "\n\n".join([*parts, "## Signatures", signatures]) + "\n"


def _by_image_json(pairs: Sequence[ByImage]) -> dict[str, Any] | None:
    if not pairs:
        return None
    return {
        "output": pairs[0].output,
        "best": pairs[0].leader.name,
        "against": [
            {
                "name": pair.other.name,
                **pair.counts,
                "mean_difference": float(pair.differences.mean()),
                **{
                    key: {pair.image_ids[n]: float(pair.differences[n]) for n in positions}
                    for key, positions in zip(("largest_wins", "largest_losses"), pair.largest(N_EXAMPLES), strict=True)
                },
            }
            for pair in pairs
        ],
    }


def system_json(comparison: Comparison, system: System) -> dict[str, Any]:
    """Return one system of a comparison as JSON values on the raw scale."""
    return {
        "name": system.name,
        "path": str(system.path),
        "split": system.report.split,
        "n_images": system.report.n_images,
        "metrics": system.report.metrics,
        "intervals": comparison.intervals[system.name],
        "costs": system.costs,
        "signature": system.report.signature,
        "difference_to_best": {
            output: difference_json(found[system.name])
            for output, found in comparison.differences.items()
            if system.name in found
        },
    }


def leaderboard_json(comparison: Comparison) -> dict[str, Any]:
    """Return the leaderboard as JSON values on the raw scale."""
    return {
        "schema_version": 1,
        "settings": comparison.settings,
        "verdict": verdict(comparison),
        "outputs": list(comparison.outputs),
        "best": comparison.best,
        "systems": [system_json(comparison, system) for system in comparison.systems],
        "published": [
            {"name": row.name, "metrics": row.metrics, "source": row.source, "reproduced": row.reproduced}
            for row in comparison.published
        ],
        "by_image": _by_image_json(by_image(comparison)),
        "at_equal_length": {
            output: {name: asdict(one) for name, one in found.items()}
            for output, found in comparison.at_equal_length.items()
        },
        "slices": [slice_json(one) for one in comparison.slices],
        **({"found_slices": [found_json(one) for one in found]} if (found := comparison.found_slices) else {}),
        "warnings": list(comparison.warnings),
    }
