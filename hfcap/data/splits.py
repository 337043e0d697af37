"""Names of splits, and the automatic shares of sources that have none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from pydantic import Field

from hfcap.data.checks import listed
from hfcap.errors import UserError
from hfcap.recipe.block_base import Share
from hfcap.recipe.blocks import DataOptions
from hfcap.text import counted

_ALIASES = {
    "train": ("train", "training", "restval"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval"),
}
_CANONICAL = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}
_FEWEST_TO_MOVE = 3
"""With fewer images there cannot be one in each split."""


class SplitShares(DataOptions):
    """Keys of `data` of every source whose images may come without splits."""

    validation_share: Share = Field(0.1, description="share of images for validation, where no splits are given")
    test_share: Share = Field(0.1, description="share of images for the test, where no splits are given")
    split_seed: int = Field(0, description="another seed draws other images for validation and test")

    def to_score_more(self, split: str) -> str:
        """Say which share to raise."""
        if split == "train":
            return super().to_score_more(split)
        share = self.test_share if split == "test" else self.validation_share
        return f"raise data.{split}_share (now {share:g}), or name the split of more images {split} in the metadata"


def canonical(split_name: str) -> str:
    """Return train, validation or test for the names that datasets use for them, other names as they are."""
    return _CANONICAL.get(split_name.lower(), split_name)


def split_in(file_name: str) -> str | None:
    """Return the split in the name of a file or folder (`captions_val2014.json`); None where it names none, or two."""
    words = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", PurePosixPath(file_name).name.lower())
    words += re.findall(r"\.(\w+?)images\b", file_name.lower())  # Flickr_8k.trainImages.txt
    found = {_CANONICAL[word] for word in words if word in _CANONICAL}
    return found.pop() if len(found) == 1 else None


def splits_of(given: Mapping[str, str | None], options: SplitShares, where: str) -> dict[str, str]:
    """Return the split of each image: the given ones, or drawn ones where none is given.

    Raises:
        UserError: some images have a split and others none, or the shares leave nothing for training.
    """
    without = [name for name, split in given.items() if not split]
    if not without:
        return {name: split or "" for name, split in given.items()}
    if len(without) < len(given):
        raise UserError(
            f"{where}: {counted(len(without), 'image')} without a split, while others have one: {listed(without)}; "
            "give all of them one"
        )
    return drawn_splits(given, options)


def drawn_splits(names: Iterable[str], options: SplitShares) -> dict[str, str]:
    """Return the split of each image, decided by the place of its name's hash in the unit interval.

    With few images a split may get none by chance. From three images on it then takes the training image that
    lies nearest to its interval (where training has one to spare, else another split's); all others stay.

    Raises:
        UserError: the shares leave nothing for training.
    """
    if options.validation_share + options.test_share >= 1:
        raise UserError("data.validation_share and data.test_share leave no images for training; lower them")
    test, validation = options.test_share, options.validation_share
    intervals = {"test": (0.0, test), "validation": (test, test + validation), "train": (test + validation, 1.0)}
    places = {name: _place(name, options.split_seed) for name in names}
    splits = {
        name: next(split for split, (_, end) in intervals.items() if place < end or split == "train")
        for name, place in places.items()
    }
    if len(places) < _FEWEST_TO_MOVE:
        return splits
    for split, (begin, end) in intervals.items():
        sizes = Counter(splits.values())
        if sizes[split] or begin == end:
            continue
        spare = {donor for donor, size in sizes.items() if size > 1}
        donors = {"train"} & spare or spare
        near = {name: max(begin - places[name], places[name] - end) for name in places if splits[name] in donors}
        splits[min(near, key=lambda name: (near[name], name))] = split
    return splits


def _place(name: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
