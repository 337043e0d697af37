"""Images of other splits that look like training images: resized, recompressed or cut a little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hfcap.data.images import UnreadableImageError, decode_image
from hfcap.schema import CaptionedImage

_MOST_BITS = 2
"""Copies saved smaller or with other compression differ in up to that many of 64 bits."""
_FEWEST_ONES = 8
"""Hashes of plain images have hardly a bit, and all look alike."""
_AT_A_TIME = 256


class Pair(NamedTuple):
    """File names of an image and of the training image that it looks like."""

    image: str
    of_train: str


def near_duplicates(splits: Mapping[str, Sequence[CaptionedImage]]) -> dict[str, list[Pair]]:
    """Return for each split but train the images that look like a training image, without those of the same bytes.

    Two images look alike where their difference hashes (9 x 8 grey pixels, each compared with its right neighbour;
    Krawetz, "Kind of Like That", 2013) differ in at most 2 of 64 bits. Unreadable and plain images look like none.
    """
    train = _hashes(splits["train"])
    return {name: _pairs(splits[name], splits["train"], train) for name in splits if name != "train"}


def _pairs(
    records: Sequence[CaptionedImage], train: Sequence[CaptionedImage], of_train: NDArray[np.uint64]
) -> list[Pair]:
    hashes, found = _hashes(records), []
    for start in range(0, len(records), _AT_A_TIME):
        part = hashes[start : start + _AT_A_TIME]
        distances = np.bitwise_count(part[:, None] ^ of_train[None])
        distances[(part == 0)[:, None] | (of_train == 0)[None]] = 64
        nearest = distances.argmin(axis=1)
        for row in np.flatnonzero(distances.min(axis=1) <= _MOST_BITS):
            one, other = records[start + int(row)], train[int(nearest[row])]
            if one.image.read() != other.image.read():
                found.append(Pair(one.file_name, other.file_name))
    return found


def _hashes(records: Sequence[CaptionedImage]) -> NDArray[np.uint64]:
    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(_hash, records)), dtype=np.uint64)


def _hash(record: CaptionedImage) -> int:
    """Return 64 bits; 0 for what has too few edges to be told apart."""
    try:
        grey = decode_image(record.image, draft_size=32).convert("L").resize((9, 8), Image.Resampling.LANCZOS)
    except UnreadableImageError:
        return 0
    pixels = np.asarray(grey, dtype=np.int16)
    bits = (pixels[:, 1:] > pixels[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big") if _FEWEST_ONES <= bits.sum() <= 64 - _FEWEST_ONES else 0
