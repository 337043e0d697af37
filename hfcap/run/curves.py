"""Curves of one or several trainings: loss, validation loss and CIDEr-D over the updates, as a page or an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hfcap.comparison.figures import ACCENT, INK, MUTED, WARM, draw, draw_png, inline, shortened
from hfcap.errors import UserError
from hfcap.files import write_bytes, write_text
from hfcap.pages import render_page
from hfcap.run.status import RunStatus, number_in, samples_of

PLOT_SUFFIXES = (".html", ".png")
_HEIGHT = 2.2
"""Inches of one plot."""
_COLOURS, _DASHES = (ACCENT, WARM, MUTED, INK), ("-", "--", ":", "-.")
_DOTTED = 40
"""Up to so many points of a curve are marked."""
_VALIDATIONS_SHOWN = 5
_CURVES = (
    ("loss", "training loss", 1),
    ("validation_loss", "validation loss", 1),
    ("validation_cider", "validation CIDEr-D x 100", 100),
    ("validation_bad_endings", "bad endings x 100", 100),
    ("learning_rate", "learning rate", 1),
)
"""Key of log.jsonl, title, and what its values are multiplied with."""

Paint = Callable[[Any], None]


def check_plot(path: Path) -> None:
    """Check the name of a plot before any work.

    Raises:
        UserError: it has another ending than those that there are.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UserError(f"{path}: give a name that ends in {' or '.join(PLOT_SUFFIXES)}")


def write_curves(runs: Sequence[RunStatus], path: Path) -> None:
    """Write the curves as a page in one file (.html), or one below the other as an image (.png).

    Raises:
        UserError: no run has a log with two values of anything.
    """
    curves = _paints(runs)
    if not curves:
        raise UserError(f"{runs[0].path}: log.jsonl holds nothing to draw yet; wait for its second row")
    if path.suffix.lower() == ".html":
        shown = [described(run) for run in runs]
        page = render_page("run/curves.html.jinja", title="Training curves", plots=plots(runs), runs=shown)
        write_text(path, page)
    else:
        write_bytes(path, draw_png(_HEIGHT, [paint for _, paint in curves]))


def plots(runs: Sequence[RunStatus]) -> list[Markup]:
    """Return the curves as SVG for inside a page; none where the logs are too short."""
    return [
        inline(draw(_HEIGHT, paint), f"curve{number}", f"{title} over the updates of training")
        for number, (title, paint) in enumerate(_paints(runs))
    ]


def described(run: RunStatus) -> dict[str, Any]:
    """Return what a page says about a run besides its curves: name, lines of its status, samples, newest first."""
    sampled = [row for row in run.rows if samples_of(row)][-_VALIDATIONS_SHOWN:]
    lines = [line for line in run.lines() if not line.startswith("  ")]
    return {
        "name": run.path.resolve().name,
        "lines": lines,
        "samples": [{"step": row["step"], "captions": samples_of(row)} for row in reversed(sampled)],
    }


def _paints(runs: Sequence[RunStatus]) -> list[tuple[str, Paint]]:
    found = []
    for key, title, times in _CURVES:
        values = [
            [(row["step"], times * row[key]) for row in run.rows if number_in(row, key) and row["step"] >= 0]
            for run in runs
        ]
        if max(map(len, values)) >= 2:
            found.append((title, _paint(title, values, [run.path.resolve().name for run in runs])))
    return found


def _paint(title: str, values: list[list[tuple[int, float]]], names: list[str]) -> Paint:
    def paint(axes: Any) -> None:
        for number, points in enumerate(values):
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    label=shortened(names[number]),
                    color=_COLOURS[number % len(_COLOURS)],
                    linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
                    linewidth=1.2,
                    marker="o" if len(points) <= _DOTTED else "",
                    markersize=2.5,
                )
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("updates")
        axes.grid(visible=True)
        if len(names) > 1:
            for text in axes.legend(frameon=False, fontsize=7).get_texts():
                text.set_parse_math(False)  # a name is a stranger's text

    return paint
