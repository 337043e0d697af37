"""Slices that a search found for some of the systems (scoring/error_slices.py), and all systems on their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hfcap.comparison.result import FoundSlice
from hfcap.comparison.slices.by_column import Part, compare_parts
from hfcap.comparison.systems import System
from hfcap.metrics.base import CaptionMetric
from hfcap.schema import ErrorSlice

MOST_FOUND = 20
"""So many found slices are compared: the surest of each system first."""

_Key = tuple[str, str, frozenset[str]]


def found_slices(systems: Sequence[System]) -> dict[_Key, dict[str, ErrorSlice]]:
    """Return kind, name and images of each found slice -> name of the systems it was found for -> what was found.

    The surest one of each system stands before the second one of any. Files without the images say too little.
    """
    ranked = [
        (rank, one.p_value, system.name, one)
        for system in systems
        for rank, one in enumerate(system.report.error_slices or ())
        if one.image_ids
    ]
    found: dict[_Key, dict[str, ErrorSlice]] = {}
    for _, _, name, one in sorted(ranked, key=lambda entry: entry[:2]):
        found.setdefault((one.kind, one.name, frozenset(one.image_ids)), {})[name] = one
    return found


def compare_found_slices(
    systems: Sequence[System],
    metrics: Sequence[CaptionMetric],
    output: str | None,
    directions: Mapping[str, float],
    settings: dict[str, Any],
) -> tuple[FoundSlice, ...]:
    """Return all systems on up to MOST_FOUND found slices; empty where no score file has any.

    Holm's correction is over these slices and systems, apart from that of the leaderboard and of other slices.

    Args:
        metrics, output, directions, settings: as for `compare_slices`.
    """
    image_ids = systems[0].image_ids
    parts, found = [], []
    for (kind, name, members), said in list(found_slices(systems).items())[:MOST_FOUND]:
        member = np.fromiter((image_id in members for image_id in image_ids), dtype=np.bool_, count=len(image_ids))
        if member.any():
            parts.append(Part(kind, name, member))
            found.append(said)
    compared = compare_parts(systems, metrics, output, directions, parts, settings)
    metric = next((one for one in metrics if output in one.outputs), None)
    if not compared or metric is None or output is None:
        return ()
    column = metric.outputs.index(output)
    rows = {system.name: rows for system in systems if (rows := system.statistics(metric)) is not None}
    return tuple(
        FoundSlice(
            one,
            {name: float(metric.aggregate(table[~part.member])[column]) for name, table in rows.items()}
            if not part.member.all()
            else {},
            said,
        )
        for one, part, said in zip(compared, parts, found, strict=True)
    )
