"""The plots of a comparison: intervals, differences to the best, quality against cost, differences by image."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfcap.comparison.by_image import ByImage
from hfcap.comparison.figures import ACCENT, INK, LINE, MUTED, PAPER, WARM, draw, shortened
from hfcap.comparison.rendering import COST_TITLES, cost_keys, shown_number
from hfcap.comparison.result import Comparison
from hfcap.comparison.verdict import shown_p
from hfcap.scoring.score_table import SIGNIFICANT, metric_name, scaled

_BINS = 24


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure.

    Attributes:
        kind: "intervals", "differences", "cost" or "images".
        subject: the output, the cost, or the number of the other system.
        file_name: of its SVG file.
        description: what it shows, for those who cannot see it.
        svg: the file's text.
    """

    kind: str
    subject: str
    file_name: str
    description: str
    svg: str


def draw_plots(comparison: Comparison, pairs: tuple[ByImage, ...]) -> list[Plot]:
    """Return every plot that the values allow, in the order of a page."""
    plots: list[Plot] = []
    for kind, subject, description, svg in _all(comparison, pairs):
        # Names of values come from score files, which anybody may have written.
        stem = f"{kind}_{re.sub(r'[^A-Za-z0-9_]+', '_', subject)[:40]}"
        taken = {plot.file_name for plot in plots}
        name = next(
            name for n in range(len(plots) + 1) if (name := f"{stem}{f'_{n + 1}' if n else ''}.svg") not in taken
        )
        plots.append(Plot(kind, subject, name, description, svg))
    return plots


def _all(comparison: Comparison, pairs: tuple[ByImage, ...]) -> Iterator[tuple[str, str, str, str]]:
    level = f"{comparison.settings['confidence_level']:.0%}"
    for output in comparison.outputs:
        title = metric_name(output)
        if any(output in found for found in comparison.intervals.values()):
            yield (
                "intervals",
                output,
                f"{title} of each system with {level} interval",
                _interval_plot(comparison, output),
            )
        if comparison.differences.get(output):
            text = f"{title}: difference of each other system to {comparison.best[output]}, with {level} interval"
            yield "differences", output, text, _difference_plot(comparison, output)
    for key in _costs_to_plot(comparison):
        text = f"{metric_name(comparison.ranking or '')} of each system against {COST_TITLES[key].title}"
        yield "cost", key, text, _cost_plot(comparison, key)
    for pair in pairs:
        number = comparison.systems.index(pair.other) + 1
        text = f"How many images differ by how much between {pair.leader.name} and {pair.other.name}"
        yield "images", str(number), text, _image_plot(pair)


def _rows(axes: Any, labels: list[str]) -> None:
    """One labelled row per system, the first on top."""
    # Names are strangers' text: without parse_math a dollar sign would start a formula.
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _height(rows: int) -> float:
    return 0.55 + 0.24 * rows


def _labels(comparison: Comparison) -> list[str]:
    return [f"{number}. {shortened(system.name)}" for number, system in enumerate(comparison.systems, start=1)]


def _beside(axes: Any, row: int, text: str, colour: str) -> None:
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", color=colour, parse_math=False)


def _unit(comparison: Comparison, output: str) -> str:
    return _title(output) + ("" if output in comparison.plain_outputs else " x 100")


def _title(output: str) -> str:
    # Score files, which anybody may have written, name values as they like.
    return shortened(metric_name(output))


def _interval_plot(comparison: Comparison, output: str) -> str:
    def paint(axes: Any) -> None:
        for row, system in enumerate(comparison.systems):
            value = system.report.metrics.get(output)
            colour = ACCENT if comparison.best.get(output) == system.name else INK
            bounds = comparison.intervals[system.name].get(output)
            if bounds is not None:
                axes.plot([scaled(output, bound) for bound in bounds], [row, row], color=colour, lw=1.8)
            if value is not None:
                axes.plot([scaled(output, value)], [row], "o", color=colour, ms=4.5)
            _beside(axes, row, shown_number(output, value), colour)
        _rows(axes, _labels(comparison))
        axes.set_xlabel(_unit(comparison, output), parse_math=False)

    return draw(_height(len(comparison.systems)), paint)


def _difference_plot(comparison: Comparison, output: str) -> str:
    found = comparison.differences[output]
    labels = _labels(comparison)
    rows = [(labels[n], found[system.name]) for n, system in enumerate(comparison.systems) if system.name in found]

    def paint(axes: Any) -> None:
        axes.axvline(0.0, color=ACCENT, lw=1.2)
        for row, (_, difference) in enumerate(rows):
            significant = difference.corrected_p_value < SIGNIFICANT
            colour = WARM if significant else MUTED
            bounds = [scaled(output, bound) for bound in difference.paired.interval]
            axes.plot(bounds, [row, row], color=colour, lw=1.8)
            axes.plot([scaled(output, difference.paired.difference)], [row], "o", color=colour, ms=4.5)
            _beside(axes, row, shown_p(difference.corrected_p_value) + ("*" if significant else ""), colour)
        _rows(axes, [label for label, _ in rows])
        axes.set_xlabel(f"{_unit(comparison, output)}, minus the best", parse_math=False)

    return draw(_height(len(rows)), paint)


def _costs_to_plot(comparison: Comparison) -> list[str]:
    """Costs that the systems with a value recorded, and that differ between them; one of the two speeds is enough."""
    ranking = comparison.ranking
    if ranking is None:
        return []
    valued = [system for system in comparison.systems if system.report.metrics.get(ranking) is not None]
    amounts = {key: {system.costs[key] for system in valued if key in system.costs} for key in cost_keys(comparison)}
    left_out = "images_per_second" if len(amounts.get("captions_per_second", ())) > 1 else ""
    return [key for key, found in amounts.items() if len(found) > 1 and min(found) >= 0 and key != left_out]


def _cost_plot(comparison: Comparison, key: str) -> str:
    output = comparison.ranking
    assert output is not None, "without a ranking there is no quality"
    cost = COST_TITLES[key]
    points = [
        (number, system.costs[key] / cost.unit, scaled(output, value), system.name)
        for number, system in enumerate(comparison.systems, start=1)
        if (value := system.report.metrics.get(output)) is not None and key in system.costs
    ]
    cheap = 1.0 if cost.less_is_cheaper else -1.0

    def paint(axes: Any) -> None:
        front = _front([(cheap * x, comparison.directions[output] * y) for _, x, y, _ in points])
        axes.plot(*zip(*((points[n][1], points[n][2]) for n in front), strict=True), "--", color=LINE, lw=1.2)
        # The best is drawn last, on top of those it touches.
        for position, (number, x, y, name) in reversed(list(enumerate(points))):
            bounds = comparison.intervals[name].get(output)
            colour = ACCENT if position in front else MUTED
            order = 3 + len(points) - position
            if bounds is not None:
                limits = [scaled(output, bound) for bound in bounds]
                axes.plot([x, x], limits, color=colour, lw=1.2, zorder=order)
            axes.plot([x], [y], "o", color=colour, ms=11, mec=PAPER, mew=0.8, zorder=order)
            axes.text(
                x, y, str(number), color=PAPER, ha="center", va="center_baseline", fontweight="bold", zorder=order
            )
        _cost_axis(axes, [x for _, x, _, _ in points])
        axes.set_xlabel(f"{cost.title} (better to the {'left' if cost.less_is_cheaper else 'right'})")
        axes.set_ylabel(_unit(comparison, output), parse_math=False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", labelcolor=MUTED)
        _key(
            axes,
            [
                label
                for label, system in zip(_labels(comparison), comparison.systems, strict=True)
                if key in system.costs
            ],
        )

    return draw(2.4 + 0.16 * -(-len(points) // 2), paint)


def _key(axes: Any, labels: list[str]) -> None:
    """Which number is which system, below the axes: the file is to be understood without the page."""
    from matplotlib.lines import Line2D

    key = axes.figure.legend(
        [Line2D([], [], linestyle="none") for _ in labels],
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        handlelength=0,
        handletextpad=0,
        labelcolor=MUTED,
        labelspacing=0.2,
    )
    for text in key.get_texts():
        text.set_parse_math(False)


def _front(points: list[tuple[float, float]]) -> list[int]:
    """Positions of the points (cost, quality) that no other one beats in both, cheapest first."""
    front: list[int] = []
    best = -math.inf
    for position in sorted(range(len(points)), key=lambda n: (points[n][0], -points[n][1])):
        if points[position][1] > best:
            front.append(position)
            best = points[position][1]
    return front


def _cost_axis(axes: Any, costs: list[float]) -> None:
    """Costs may differ by orders of magnitude: then a logarithmic axis, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    if min(costs) > 0 and max(costs) / min(costs) > 5:
        axes.set_xscale("log")
        decades = math.log10(max(costs) / min(costs))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,), numticks=12))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,.4g}"))
    axes.margins(x=0.12)


def _image_plot(pair: ByImage) -> str:
    scale = 1.0 if pair.plain else 100.0
    differences = scale * pair.differences
    drawn, better = differences[pair.advantages != 0], pair.direction
    # A few extreme images would squeeze all others into one bar.
    reach = float(np.quantile(np.abs(drawn), 0.99)) if len(drawn) else 1.0

    def paint(axes: Any) -> None:
        edges = np.linspace(-reach, reach, _BINS + 1)
        counts, _ = np.histogram(np.clip(drawn, -reach, reach), edges)
        middles = (edges[:-1] + edges[1:]) / 2
        axes.bar(
            middles, counts, width=1.7 * reach / _BINS, color=[ACCENT if better * x > 0 else WARM for x in middles]
        )
        axes.axvline(float(differences.mean()), color=INK, lw=1.2, ls="--")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_ylabel("images")
        axes.set_xlabel(
            f"{_title(pair.output)}{'' if pair.plain else ' x 100'}, best minus other (dashed: mean)",
            parse_math=False,
        )

    return draw(2.0, paint)
