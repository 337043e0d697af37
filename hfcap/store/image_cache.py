"""Images kept at the size the captioner needs, so that later epochs and runs neither decode nor resize them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL
import torch

from hfcap.data.loading import PixelInputs
from hfcap.data.pixels import PixelPlan
from hfcap.errors import UserError
from hfcap.files import cache_folder
from hfcap.schema import CaptionedImage
from hfcap.store.fill import OneProcess, StoreFiller, StoreMessages
from hfcap.store.row_store import RowStore, StoredRows

_LAYOUT = 3
_BATCH = 32


class CachedPixels(StoredRows):
    """Resized images, levels (3, height, width) uint8, read from the cache."""

    encoded = False

    def __init__(self, plan: PixelPlan, stored: StoredRows) -> None:
        super().__init__(stored.places)
        self.plan = plan


def cached_pixels(
    records: Sequence[CaptionedImage],
    image_processor: Any,
    folder: Path | None = None,
    accelerator: Any = None,
    num_workers: int = 0,
) -> CachedPixels:
    """Return the images as `PixelInputs` gives them, from `<folder>/<key>`; those it lacks are added first.

    The key changes with size, crop and filter (not with the normalisation, which comes later), with whose resizing it
    is, and with Pillow and torch.

    Args:
        folder: None = `images` in the cache folder.
        accelerator: processes that share the work; None = this one.

    Raises:
        UserError: the image processor does more than resize, crop and normalise, so its images cannot be kept.
        WorkError: the disk has too little room.
    """
    inputs = PixelInputs(records, image_processor)
    plan = inputs.plan
    if plan is None:
        raise UserError(
            f"data.image_cache: {type(image_processor).__name__} does more than resize, crop and normalise; "
            "set data.image_cache: false"
        )
    rows = cache_rows(plan, folder)
    wording = StoreMessages(
        "Image cache: resizing",
        "the image cache",
        "set data.image_cache_folder (or HFCAP_CACHE) to another disk, or data.image_cache: false",
    )
    filling = StoreFiller(
        rows,
        inputs,
        lambda levels: levels,
        f"resized images, {_size(plan)}",
        wording,
        OneProcess() if accelerator is None else accelerator,
    )
    return CachedPixels(plan, StoredRows(filling.places(_BATCH, num_workers)))


def cache_rows(plan: PixelPlan, folder: Path | None = None) -> RowStore:
    """Return the store that images of this plan are kept in; nothing is made."""
    key = hashlib.sha256(f"{_LAYOUT} {PIL.__version__} {torch.__version__} {_size(plan)}".encode()).hexdigest()[:32]
    return RowStore((cache_folder() / "images" if folder is None else folder) / key)


def _size(plan: PixelPlan) -> str:
    return f"{plan.height} x {plan.width}, shortest edge {plan.shortest_edge}, filter {plan.resample} of {plan.resizer}"
