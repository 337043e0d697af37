"""Image ids of two files put together: numbers with leading zeros, file names and paths mean the same image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from hfcap.metrics.shared.images import COCO_NAME


def matched_ids(
    predicted: Iterable[str], known: Iterable[str], file_names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return predicted id -> known id, for ids that are not known but mean a known one alone.

    A path means its file name, a file name its name without ending, `COCO_val2014_000000391895` and 000000391895 mean
    391895.

    Args:
        file_names: known id -> file name, where the file of the known ids says so.
    """
    ids = set(known)
    means: dict[str, set[str]] = {}
    for one in ids:
        for name in (one, (file_names or {}).get(one, one)):
            for spelling in _spellings(name):
                means.setdefault(spelling, set()).add(one)
    predictions = list(predicted)
    found = {one: _only([means.get(spelling, set()) for spelling in _spellings(one)]) for one in predictions}
    taken = [one for one in predictions if one in ids]
    meant = {one: match for one, match in found.items() if match is not None and one not in ids}
    counts = Counter([*taken, *meant.values()])
    return {one: match for one, match in meant.items() if counts[match] == 1}


def _only(candidates: list[set[str]]) -> str | None:
    """Return the one id that the most exact spelling which is known means."""
    first = next((ids for ids in candidates if ids), set())
    return next(iter(first)) if len(first) == 1 else None


def _spellings(name: str) -> list[str]:
    """Return what a name may be called elsewhere, the most exact first."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = re.sub(r"\.[A-Za-z]{3,4}$", "", path.name)
    coco = COCO_NAME.fullmatch(stem)
    numbers = [str(int(digits)) for digits in ([coco[1]] if coco else [stem] if stem.isdecimal() else [])]
    return list(dict.fromkeys([name, path.name, stem, *numbers]))
