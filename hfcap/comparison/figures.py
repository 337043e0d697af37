"""SVG plots: one small figure each, readable on a telephone, and their version for inside a page.

The same values give the same bytes with the same matplotlib: no dates, no random ids, no settings of the user.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup

from hfcap.text import printable

INK, MUTED, LINE, PAPER, ACCENT, WARM = "#1c2024", "#5f6875", "#d9dde2", "#ffffff", "#1f5fa8", "#b4521f"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    ACCENT: "var(--accent)",
    WARM: "var(--warm)",
}
"""Colours of the plots -> those of pages/base.html.jinja, which follow light and dark."""

WIDTH = 3.7
"""Inches: the width of a telephone's screen at 96 pixels per inch."""

_DPI = 150
_LABEL = 24
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hfcap",
    "font.size": 8.0,
    "font.family": "sans-serif",
    "axes.unicode_minus": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}


def shortened(name: str) -> str:
    """Return a name for a plot: one line, the middle of a long one left out."""
    name = printable(name)
    return name if len(name) <= _LABEL else f"{name[: _LABEL // 2 - 1]}…{name[1 - _LABEL // 2 :]}"


def draw(height: float, paint: Callable[[Any], None]) -> str:
    """Return the SVG text of a figure of WIDTH x `height` inches; `paint` draws on its matplotlib axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _our_settings():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode("utf-8")


def draw_png(height: float, paints: Sequence[Callable[[Any], None]]) -> bytes:
    """Return a PNG of plots below each other, each of 2 WIDTH x `height` inches; see `draw`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _our_settings():
        figure = Figure(figsize=(2 * WIDTH, height * len(paints)), layout="constrained")
        FigureCanvasAgg(figure)
        for paint, axes in zip(paints, figure.subplots(len(paints), squeeze=False)[:, 0], strict=True):
            paint(axes)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _our_settings() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name may be in a script that matplotlib's own font lacks; the reader's browser has it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def inline(svg: str, prefix: str, description: str) -> Markup:
    """Return a plot made by `draw` for inside a page: ids of its own, colours of the page, no size of its own.

    Args:
        prefix: unique in the page.
        description: what a screen reader says.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            element.set(key.rpartition("}")[2], _rewritten(key, value, prefix))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    for key, value in (("class", "plot"), ("role", "img"), ("aria-label", printable(description))):
        root.set(key, value)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _rewritten(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    value = re.sub(r"^#|(?<=url\(#)", lambda found: f"{found[0]}{prefix}-", value) if "#" in value else value
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, variable)
    return value
