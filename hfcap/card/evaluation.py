"""The card's evaluation: scores with intervals besides baselines and published numbers, and their conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hfcap.card.front_matter import compact_signature
from hfcap.card.markdown_pieces import count, dataset_link, shown_number
from hfcap.card.run_facts import RunFacts
from hfcap.pages.markdown import Safe, code, escape, table
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import ErrorSlice, SliceScores
from hfcap.scoring.score_table import (
    ERROR_SLICES_EXPLAINED,
    METRIC_NAMES,
    SLICES_EXPLAINED,
    error_slice_name,
    error_slice_values,
    metric_name,
    no_error_slices,
    shown_slice,
)
from hfcap.scoring.signature import agreement_lines
from hfcap.scoring.verdict import BASELINE_NAMES, FEW_IMAGES

N_EXAMPLES = 2
"""Captions that the card shows of each slice that was found."""


def evaluation(known: RunFacts) -> dict[str, Any] | None:
    """Return conditions, table and notes of the scores; None where nothing was scored."""
    metrics = known.scores.get("metrics", {})
    if not metrics:
        return _target(known)
    conditions = Safe(
        f"{dataset_link(known)}, split {code(known.split_name)}, {count(known.scores['n_images'])} images; "
        f"{_decoding(known.decoding)}. Values are times 100, as in papers"
        + (", with bootstrap intervals." if known.scores.get("intervals") else ".")
    )
    signature = compact_signature(known.scores.get("signature", {}))
    return {
        "conditions": conditions,
        "table": _score_table(known, metrics),
        "notes": _score_notes(known),
        "slices": _slices(known),
        "error_slices": _error_slices(known),
        "signature": code(signature) if signature else None,
    }


def _decoding(options: GenerateOptions | None) -> str:
    if options is None:
        return "captions are looked up, so no decoding settings apply"
    how = f"{options.num_beams} beams" if options.num_beams > 1 else "greedy decoding"
    if options.do_sample:
        how = f"sampling (temperature {options.temperature:g}, top-p {options.top_p:g}, seed {options.seed})"
    return f"{how}, at most {options.max_new_tokens} new tokens"


def _target(known: RunFacts) -> dict[str, Any] | None:
    """The published numbers alone, of a recipe that was not scored yet."""
    expect = known.recipe.expect
    if expect is None:
        return None
    rows = [[str(escape(metric_name(name))), shown_number(name, value)] for name, value in expect.metrics.items()]
    return {
        "conditions": Safe("Not scored yet. What the recipe aims at, times 100:"),
        "table": table(["Metric", "Published"], rows, right=1),
        "notes": [Safe(f"Published values: {escape(expect.source)}; measured elsewhere.")],
        "slices": [],
        "error_slices": [],
        "signature": None,
    }


def _score_table(known: RunFacts, metrics: dict[str, Any]) -> Safe:
    intervals = known.scores.get("intervals", {})
    expected = known.recipe.expect.metrics if known.recipe.expect else {}
    level = f"{100 * known.recipe.score.confidence_level:g} % interval"
    columns = ["Metric", "This model"] + ([level] if intervals else [])
    columns += [BASELINE_NAMES[name].capitalize() for name in known.baselines] + (["Published"] if expected else [])
    order = {name: place for place, name in enumerate(METRIC_NAMES)}
    rows = []
    for metric in sorted(metrics, key=lambda name: (order.get(name, len(order)), name)):
        row = [str(escape(metric_name(metric))), f"**{shown_number(metric, metrics[metric])}**"]
        if intervals:
            bounds = intervals.get(metric)
            row.append(f"{shown_number(metric, bounds[0])} to {shown_number(metric, bounds[1])}" if bounds else "–")
        row += [shown_number(metric, values.get("metrics", {}).get(metric)) for values in known.baselines.values()]
        row += [shown_number(metric, expected.get(metric))] if expected else []
        rows.append(row)
    return table(columns, rows, right=len(columns) - 1)


def _slices(known: RunFacts) -> list[Safe]:
    """A table for each column that the scores are told apart by, and what the star means."""
    tables = []
    for column, values in known.scores.get("slices", {}).items():
        slices = {value: SliceScores(**found) for value, found in values.items()}
        outputs = [output for output in METRIC_NAMES if output in next(iter(slices.values())).metrics]
        rows = [
            [str(escape(value)), count(found.n_images), *(shown_slice(found, output) for output in outputs)]
            for value, found in slices.items()
        ]
        tables.append(table([str(escape(column)), "Images", *map(metric_name, outputs)], rows, right=len(outputs) + 1))
    return [*tables, Safe(escape(SLICES_EXPLAINED))] if tables else []


def _error_slices(known: RunFacts) -> list[Safe]:
    """What was found, surest first, or that nothing was; empty where nobody looked."""
    found = found_slices(known.scores)
    if found is None:
        return []
    if not found:
        return [escape(no_error_slices(known.scores["n_images"]))]
    heads = ["Worse on", "Images", f"{escape(metric_name(found[0].output))} there", "Elsewhere", "p"]
    rows = [[*error_slice_cells(one), *_error_slice_examples(one, known.described)] for one in found]
    return [
        table([*heads, "Captions there", "People wrote"], rows),
        escape(f"{ERROR_SLICES_EXPLAINED} The captions are the worst ones."),
    ]


def found_slices(scores: Mapping[str, Any]) -> list[ErrorSlice] | None:
    """Return the slices that were found, of a score file's content as a dict; None where nobody looked."""
    found = scores.get("error_slices")
    return None if found is None else [ErrorSlice(**one) for one in found]


def error_slice_cells(found: ErrorSlice) -> list[str]:
    """Return the cells of a found slice that its score file says: name, images, values, p."""
    return [str(escape(error_slice_name(found))), count(found.n_images), *error_slice_values(found)]


def _error_slice_examples(found: ErrorSlice, described: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """Captions, and for each the human one that names what the images have in common, else the first."""
    examples = found.examples[:N_EXAMPLES]
    captions = [str(escape(caption)) or "(empty)" for _, caption in examples]
    human = [_human_caption(described.get(image_id, ()), found.name) for image_id, _ in examples]
    return "<br>".join(captions), "<br>".join(human)


def _human_caption(captions: Sequence[str], name: str) -> str:
    naming = (caption for caption in captions if name.lower() in caption.lower())
    return str(escape(next(naming, next(iter(captions), "–"))))


def _score_notes(known: RunFacts) -> list[Safe]:
    notes = []
    if known.baselines:
        notes.append(
            Safe(
                "Baselines: "
                + "; ".join(
                    {
                        "most_frequent_caption": "the most frequent training caption for every image",
                        "blank_images": "this captioner fed blank images",
                    }[name]
                    for name in known.baselines
                )
                + "."
            )
        )
    expect = known.recipe.expect
    if expect:
        notes.append(
            Safe(
                f"Published values: {escape(expect.source)}. They were measured elsewhere, with other settings where "
                f"the signature differs; {_reproduction(known)}."
            )
        )
    notes += [Safe(f"{escape(line)}.") for line in agreement_lines(known.scores.get("signature", {}))]
    if 0 < known.scores.get("n_images", 0) < FEW_IMAGES:
        notes.append(
            Safe(f"CIDEr-D weighs words by their rarity in the split; with fewer than {FEW_IMAGES} images it is rough.")
        )
    return notes


def _reproduction(known: RunFacts) -> str:
    expect = known.recipe.expect
    assert expect is not None
    reached = expect.reached(known.scores.get("metrics", {}))
    if not reached:
        return "none of them was measured here"
    short = [name for name, enough in reached.items() if not enough]
    if not short:
        return f"this model reaches all of them within {100 * expect.tolerance:g} %"
    return "this model falls short in " + ", ".join(str(escape(metric_name(name))) for name in short)
