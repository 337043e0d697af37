"""The training curve as a PNG file for the card."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

FILE_NAME = "training_curve.png"

_Points = tuple[tuple[int, float], ...]


def points(log: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of the log rows that have `key`."""
    return [(int(row["step"]), float(row[key])) for row in log if row.get(key) is not None and "step" in row]


def has_curve(log: list[dict[str, Any]]) -> bool:
    """Whether the log has enough points to draw."""
    return max(len(points(log, "loss")), len(points(log, "validation_loss"))) >= 2


def draw_curve(log: list[dict[str, Any]]) -> bytes:
    """Return a PNG of training and validation loss, and of validation CIDEr-D (x100) on the right axis if logged.

    The same log gives the same bytes with the same matplotlib.
    """
    return _drawn(*(tuple(points(log, key)) for key in ("loss", "validation_loss", "validation_cider")))


@lru_cache(maxsize=4)  # a run is staged again for each proof, and each time it would take half a second
def _drawn(training: _Points, validation: _Points, cider: _Points) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for values, label, colour in ((training, "training loss", "#9aa5b1"), (validation, "validation loss", "#1f5fa8")):
        if values:
            axes.plot(*zip(*values, strict=True), label=label, color=colour, marker="o" if len(values) < 40 else "")
    axes.set_xlabel("optimiser updates")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if cider:
        right = axes.twinx()
        right.plot(*zip(*((step, 100 * value) for step, value in cider), strict=True), color="#c8602b", label="CIDEr-D")
        right.set_ylabel("validation CIDEr-D x100")
        more_handles, more_labels = right.get_legend_handles_labels()
        handles, labels = handles + more_handles, labels + more_labels
    axes.legend(handles, labels, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
