"""Bytes on disk that a run will need: checkpoints, model, and what a feature store or image cache still lacks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap.captioners.base import Captioner
from hfcap.data.pixels import plan_of
from hfcap.doctor.weights import WeightFacts
from hfcap.recipe.blocks import Recipe
from hfcap.schema import CaptionedImage
from hfcap.store.features import FeatureStore, captioner_encoder
from hfcap.store.image_cache import cache_rows
from hfcap.store.image_hashes import image_hashes
from hfcap.store.row_store import RowStore

_ADAM_BYTES = 8
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class StoreNeed:
    """What a feature store or image cache still lacks.

    Attributes:
        key: of the recipe, that names its folder.
        images: that it lacks, copies counted once. bytes: that these will take.
    """

    key: str
    folder: str
    images: int
    bytes: int
    free: int


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes on disk; `feature_store` and `image_cache` are None where the recipe uses none."""

    checkpoint: int
    checkpoints: int
    model: int
    run_free: int
    feature_store: StoreNeed | None
    image_cache: StoreNeed | None
    shared: bool
    """Whether run and store lie on the same disk, so that they share what is free."""

    @property
    def store(self) -> StoreNeed | None:
        """The one of the two that is used."""
        return self.feature_store or self.image_cache


def disk_needs(
    recipe: Recipe,
    captioner: Captioner,
    weights: WeightFacts,
    state_bytes: int,
    records: Sequence[CaptionedImage],
    accelerator: Any,
) -> Disk:
    """Count bytes; `records` are the images of all splits, `state_bytes` those of one encoded (0: none is kept)."""
    options = recipe.train
    copies = 1 if options.ema_decay is None else 2
    checkpoint = weights.trained * (_FLOAT_BYTES * copies + _ADAM_BYTES) + weights.buffer_bytes
    lora = recipe.lora is not None
    # A LoRA run on a captioner put together here also keeps the captioner itself and, to publish, the merged one.
    kept = 2 * weights.weight_bytes if captioner.assembled else 0
    run, store, cache = Path(recipe.output_dir), None, None
    if state_bytes:
        folder = _folder(recipe.data.feature_store_folder)
        encoder = captioner_encoder(captioner)
        rows = FeatureStore(encoder, folder, accelerator).rows
        store = _need("data.feature_store_folder", rows, records, state_bytes)
    elif recipe.data.image_cache and (plan := plan_of(captioner.image_processor)) is not None:
        rows = cache_rows(plan, _folder(recipe.data.image_cache_folder))
        cache = _need("data.image_cache_folder", rows, records, 3 * plan.height * plan.width)
    needed = store or cache
    return Disk(
        checkpoint=checkpoint,
        # The newest ones, the best one, and one being written before an old one goes.
        checkpoints=checkpoint * (options.save_total_limit + 2),
        model=weights.trained * _FLOAT_BYTES + kept if lora else weights.weight_bytes,
        run_free=_free(run),
        feature_store=store,
        image_cache=cache,
        shared=needed is not None and _existing(run).stat().st_dev == _existing(Path(needed.folder)).stat().st_dev,
    )


def _need(key: str, rows: RowStore, records: Sequence[CaptionedImage], row_bytes: int) -> StoreNeed:
    """Count what a store lacks; only where it holds something are the images looked up in it."""
    places = rows.places()
    lacking = len(set(image_hashes(records)) - places.keys()) if places else len(records)
    return StoreNeed(key, str(rows.folder), lacking, lacking * row_bytes, _free(rows.folder))


def _folder(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser()


def _existing(folder: Path) -> Path:
    existing = folder.absolute()
    while not existing.is_dir():
        existing = existing.parent
    return existing


def _free(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free
