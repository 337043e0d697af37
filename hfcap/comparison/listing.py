"""The page's list of single images, which its script searches, sorts, filters and draws samples from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from hfcap.comparison.examples import Evidence
from hfcap.comparison.result import Comparison
from hfcap.comparison.significance import shown_as_nothing
from hfcap.scoring.score_table import metric_name, shown_score

MAX_LISTED = 1000
"""So many images are on the page; of more, a random sample with a fixed seed."""

MAX_SHOWN = 100
"""Of so many listed images small copies go into the page: each is about 10 kB."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Which images the page lists.

    Attributes:
        output: the value of the single image: the leaderboard's, else the first that single images have.
        image_ids: in random order, so that the first of them are a fair sample.
        shown: those of them that the page shows small copies of.
        n_images: so many have the value.
    """

    output: str
    image_ids: tuple[str, ...]
    shown: tuple[str, ...]
    n_images: int


def choose_listing(comparison: Comparison) -> Listing | None:
    """Return which images to list; None where no system has values of single images."""
    having = [system for system in comparison.systems if system.report.per_image]
    if not having:
        return None
    ranking = [] if comparison.ranking is None else [comparison.ranking]
    for output in (*ranking, *comparison.outputs):
        known = list(compress(having[0].image_ids, np.isfinite(having[0].values(output)).tolist()))
        if known:
            chosen = tuple(random.Random(0).sample(known, min(len(known), MAX_LISTED)))
            return Listing(output, chosen, chosen[:MAX_SHOWN], len(known))
    return None


def listing_data(
    comparison: Comparison, listing: Listing, evidence: Evidence, thumbnails: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the script reads: plain values alone, numbers as they are shown next to them.

    Args:
        thumbnails: image id -> data URI, of the images that are shown.
    """
    return {
        "systems": [system.name for system in comparison.systems],
        "value": metric_name(listing.output),
        "rows": [_row(comparison, listing.output, image_id, evidence, thumbnails) for image_id in listing.image_ids],
    }


def _row(
    comparison: Comparison, output: str, image_id: str, evidence: Evidence, thumbnails: Mapping[str, str]
) -> dict[str, Any]:
    values = [system.report.per_image.get(image_id, {}).get(output) for system in comparison.systems]
    return {
        "name": evidence.file_names.get(image_id, f"image {image_id}"),
        "image": thumbnails.get(image_id),
        "captions": [evidence.captions.get(system.name, {}).get(image_id) for system in comparison.systems],
        "human": list(evidence.references.get(image_id, ())),
        "values": [None if value is None else [value, shown_score(output, value)] for value in values],
        "ahead": [_ahead(comparison, output, values, number) for number in range(len(values))],
    }


def _ahead(
    comparison: Comparison, output: str, values: Sequence[float | None], number: int
) -> tuple[float, str] | None:
    """How much better the first system is than another one: 0 where that shows as 0.00, and the difference as text."""
    first, other = values[0], values[number]
    if first is None or other is None or output not in comparison.directions:
        return None
    difference = first - other
    nothing = shown_as_nothing(difference, output in comparison.plain_outputs)
    text = shown_score(output, difference, digits=2, sign=True)
    return 0.0 if nothing else comparison.directions[output] * difference, text
