"""The leaderboard as one HTML file: verdict, tables, plots, wins and losses image by image, conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfcap.comparison.by_image import ByImage
from hfcap.comparison.examples import Evidence
from hfcap.comparison.figures import inline
from hfcap.comparison.listing import Listing, listing_data
from hfcap.comparison.plots import Plot
from hfcap.comparison.rendering import (
    COST_TITLES,
    EQUAL_LENGTH_EXPLAINED,
    cost_keys,
    equal_length_rows,
    explanation,
    shown_cost,
    shown_number,
)
from hfcap.comparison.result import Comparison, FoundSlice
from hfcap.comparison.slices import SliceExamples
from hfcap.comparison.slices.tables import found_explanation, found_name, found_rows, slice_rows, slices_explanation
from hfcap.comparison.verdict import shown_p, verdict
from hfcap.data.images import UnreadableImageError
from hfcap.pages import data_block, render_page, thumbnail
from hfcap.schema import ImageBytes
from hfcap.scoring.score_table import SIGNIFICANT, metric_name
from hfcap.scoring.signature import flattened


def leaderboard_page(
    comparison: Comparison,
    pairs: Sequence[ByImage],
    plots: Sequence[Plot],
    evidence: Evidence,
    n_examples: int,
    listing: Listing | None = None,
    parts: Sequence[SliceExamples] = (),
) -> str:
    """Return the page.

    Args:
        pairs: the best system against each other one.
        plots: drawn from the same comparison.
        evidence: captions, human captions and files of the images with the largest differences.
        n_examples: so many wins and losses of each pair are shown.
        listing: the single images that can be searched; None = no such list.
        parts: examples of the slices on which a system is significantly worse.
    """
    inlined = {
        (plot.kind, plot.subject): inline(plot.svg, f"p{number}", plot.description) for number, plot in enumerate(plots)
    }
    thumbnails = {image_id: _thumbnail(image) for image_id, image in evidence.images.items()}
    outputs = _main_first(comparison)
    return render_page(
        "comparison/leaderboard.html.jinja",
        "comparison/leaderboard.js",
        title="Captioners compared" if len(comparison.systems) > 1 else "Scores of one captioner",
        facts=_facts(comparison),
        verdict=verdict(comparison),
        warnings=comparison.warnings,
        outputs=[heading(comparison, output) for output in outputs],
        scores=[_score_row(comparison, number) for number in range(len(comparison.systems))],
        published=_published_rows(comparison),
        differences=_differences(comparison),
        equal_length=_equal_length(comparison),
        costs=_costs(comparison),
        explanation=explanation(comparison),
        metric_plots=[
            {"title": metric_name(output), "plots": found}
            for output in sorted(comparison.outputs, key=lambda name: name != comparison.ranking)
            if (found := [inlined[kind, output] for kind in ("intervals", "differences") if (kind, output) in inlined])
        ],
        cost_plots=[
            {"title": COST_TITLES[plot.subject].title, "plots": [inlined[plot.kind, plot.subject]]}
            for plot in plots
            if plot.kind == "cost"
        ],
        pairs=[_pair(comparison, pair, inlined, evidence, thumbnails, n_examples) for pair in pairs],
        slices=_slices(comparison, parts, evidence, thumbnails),
        found=_found(comparison, evidence, thumbnails, n_examples),
        listing=None if listing is None else _listing(comparison, listing, evidence, thumbnails),
        notes=evidence.notes,
        conditions=_conditions(comparison),
    )


def _facts(comparison: Comparison) -> str:
    report = comparison.systems[0].report
    splits = ", ".join(dict.fromkeys(system.report.split for system in comparison.systems))
    count = len(comparison.systems)
    low, high = report.signature.get("references_per_image", [0, 0])
    human = f", {low if low == high else f'{low} to {high}'} human captions each" if high else ""
    return f"{count} system{'s' if count > 1 else ''}, {report.n_images:,} images{human}, split {splits}"


def _main_first(comparison: Comparison) -> list[str]:
    """The value that systems are ranked by is what a narrow screen shows without scrolling."""
    return sorted(comparison.outputs, key=lambda output: output != comparison.ranking)


def _listing(
    comparison: Comparison, listing: Listing, evidence: Evidence, thumbnails: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "output": metric_name(listing.output),
        "n_listed": len(listing.image_ids),
        "n_images": listing.n_images,
        "n_shown": len(listing.shown) if thumbnails else 0,
        "data": data_block(listing_data(comparison, listing, evidence, thumbnails)),
    }


def heading(comparison: Comparison, output: str) -> dict[str, str]:
    """Return a value's name, and an arrow to where it is better."""
    direction = comparison.directions.get(output)
    arrow = "" if direction is None else "\N{UPWARDS ARROW}" if direction > 0 else "\N{DOWNWARDS ARROW}"
    return {"title": metric_name(output), "arrow": arrow}


def shown_interval(output: str, bounds: tuple[float, float] | None, sign: bool = False) -> str:
    """Return an interval as text; "" where there is none."""
    if bounds is None:
        return ""
    return " to ".join(shown_number(output, bound, sign) for bound in bounds)


def _score_row(comparison: Comparison, number: int) -> dict[str, Any]:
    system = comparison.systems[number]
    cells = [
        {
            "value": shown_number(output, system.report.metrics.get(output)),
            "interval": shown_interval(output, comparison.intervals[system.name].get(output)),
            "best": comparison.best.get(output) == system.name and len(comparison.systems) > 1,
        }
        for output in _main_first(comparison)
    ]
    return {"number": number + 1, "name": system.name, "cells": cells}


def _published_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "source": row.source,
            "state": "reproduced" if row.reproduced else "not yet reproduced here",
            "values": [shown_number(output, row.metrics.get(output)) for output in _main_first(comparison)],
        }
        for row in comparison.published
    ]


def _differences(comparison: Comparison) -> dict[str, Any] | None:
    """Header and rows of the paired differences; None where nothing could be tested."""
    outputs = [output for output in _main_first(comparison) if output in comparison.differences]
    if not outputs:
        return None
    rows = []
    for number, system in enumerate(comparison.systems, start=1):
        cells = [_difference_cell(comparison, output, system.name) for output in outputs]
        rows.append({"number": number, "name": system.name, "cells": cells})
    return {"outputs": [heading(comparison, output) for output in outputs], "rows": rows}


def _difference_cell(comparison: Comparison, output: str, name: str) -> dict[str, Any]:
    if comparison.best[output] == name:
        return {"value": "best", "interval": "", "p": "", "significant": False}
    found = comparison.differences[output].get(name)
    if found is None:
        return {"value": "not tested", "interval": "", "p": "", "significant": False}
    significant = found.corrected_p_value < SIGNIFICANT
    return {
        "value": shown_number(output, found.paired.difference, sign=True),
        "interval": shown_interval(output, found.paired.interval, sign=True),
        "p": shown_p(found.corrected_p_value) + ("*" if significant else ""),
        "significant": significant,
    }


def _equal_length(comparison: Comparison) -> dict[str, Any] | None:
    """Header, rows and explanation of the differences at equal length; None where lengths are alike."""
    if not comparison.at_equal_length:
        return None
    header, rows = equal_length_rows(comparison)
    return {"header": header, "rows": rows, "explanation": EQUAL_LENGTH_EXPLAINED}


def _costs(comparison: Comparison) -> dict[str, Any] | None:
    keys = cost_keys(comparison)
    rows = [
        {"number": number, "name": system.name, "values": [shown_cost(key, system.costs.get(key)) for key in keys]}
        for number, system in enumerate(comparison.systems, start=1)
    ]
    return {"titles": [COST_TITLES[key].title for key in keys], "rows": rows} if keys else None


def _slices(
    comparison: Comparison, parts: Sequence[SliceExamples], evidence: Evidence, thumbnails: dict[str, str]
) -> dict[str, Any] | None:
    if not comparison.slices:
        return None
    header, rows = slice_rows(comparison)
    examples = [
        {
            "name": f"{part.slice.column}: {part.slice.value}",
            "leader": part.pair.leader.name,
            "leader_number": comparison.systems.index(part.pair.leader) + 1,
            "other": part.pair.other.name,
            "number": comparison.systems.index(part.pair.other) + 1,
            "examples": [
                _example(comparison, part.pair, position, evidence, thumbnails) for position in part.positions
            ],
        }
        for part in parts
    ]
    return {"header": header, "rows": rows, "explanation": slices_explanation(comparison), "parts": examples}


def _found(
    comparison: Comparison, evidence: Evidence, thumbnails: dict[str, str], n_examples: int
) -> dict[str, Any] | None:
    if not comparison.found_slices:
        return None
    header, rows = found_rows(comparison)
    examples = [
        {"name": found_name(one), "examples": shown}
        for one in comparison.found_slices
        if (
            shown := [
                _found_example(comparison, one, image_id, evidence, thumbnails)
                for image_id in one.image_ids_of_examples(n_examples)
            ]
        )
    ]
    return {"header": header, "rows": rows, "explanation": found_explanation(comparison), "parts": examples}


def _found_example(
    comparison: Comparison, one: FoundSlice, image_id: str, evidence: Evidence, thumbnails: dict[str, str]
) -> dict[str, Any]:
    """One image with the captions of all systems; those that a slice was found for say theirs in their score file."""
    said = {name: dict(found.examples).get(image_id) for name, found in one.found.items()}
    output = comparison.ranking or ""
    captions = [
        {
            "name": system.name,
            "number": number,
            "caption": evidence.captions.get(system.name, {}).get(image_id, said.get(system.name)),
            "value": shown_number(output, system.report.per_image.get(image_id, {}).get(output)),
        }
        for number, system in enumerate(comparison.systems, start=1)
    ]
    return {
        "name": evidence.file_names.get(image_id, f"image {image_id}"),
        "difference": "",
        "captions": captions,
        "references": evidence.references.get(image_id, ()),
        "image": thumbnails.get(image_id),
    }


def _thumbnail(image: ImageBytes) -> str:
    """Return a data URI; empty for an image that cannot be read."""
    try:
        return thumbnail(image)
    except UnreadableImageError:
        return ""


def _pair(
    comparison: Comparison,
    pair: ByImage,
    inlined: dict[tuple[str, str], Any],
    evidence: Evidence,
    thumbnails: dict[str, str],
    n_examples: int,
) -> dict[str, Any]:
    number = comparison.systems.index(pair.other) + 1
    wins, losses = (
        [_example(comparison, pair, position, evidence, thumbnails) for position in positions]
        for positions in pair.largest(n_examples)
    )
    shares = {name: f"{count:,} ({count / len(pair.image_ids):.0%})" for name, count in pair.counts.items()}
    return {
        "number": number,
        "leader": pair.leader.name,
        "leader_number": comparison.systems.index(pair.leader) + 1,
        "other": pair.other.name,
        "output": metric_name(pair.output),
        "counts": shares,
        "mean": shown_number(pair.output, float(pair.differences.mean()), sign=True),
        "plot": inlined["images", str(number)],
        "sides": [("Largest wins", wins), ("Largest losses", losses)],
    }


def _example(
    comparison: Comparison, pair: ByImage, position: int, evidence: Evidence, thumbnails: dict[str, str]
) -> dict[str, Any]:
    image_id = pair.image_ids[position]
    captions = [
        {
            "name": system.name,
            "number": comparison.systems.index(system) + 1,
            "caption": evidence.captions.get(system.name, {}).get(image_id),
            "value": shown_number(pair.output, float(value)),
        }
        for system, value in zip((pair.leader, pair.other), pair.values[position], strict=True)
    ]
    return {
        "name": evidence.file_names.get(image_id, f"image {image_id}"),
        "difference": shown_number(pair.output, float(pair.differences[position]), sign=True),
        "captions": captions,
        "references": evidence.references.get(image_id, ()),
        "image": thumbnails.get(image_id),
    }


def _conditions(comparison: Comparison) -> dict[str, Any]:
    """Conditions that all systems share, and those that differ."""
    flat = [dict(flattened(system.report.signature)) for system in comparison.systems]
    keys = sorted({key for signature in flat for key in signature})
    shown = {key: [str(signature.get(key, "-")) for signature in flat] for key in keys}
    return {
        "equal": [(key, values[0]) for key, values in shown.items() if len(set(values)) == 1],
        "different": [(key, values) for key, values in shown.items() if len(set(values)) > 1],
    }
