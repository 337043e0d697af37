"""What feature stores and image caches take on this disk, and deleting what is no longer needed."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from hfcap.errors import UserError
from hfcap.files import cache_folder, no_folder
from hfcap.store.row_store import RowStore, StoreInfo

_SECONDS_PER_DAY = 86400.0


def kept_stores(folder: Path | None = None) -> list[StoreInfo]:
    """Return the stores of a folder, or all of the cache folder, those used last first.

    Raises:
        UserError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(no_folder(folder, "folder", "give the folder of stores"))
    roots = [cache_folder() / "features", cache_folder() / "images"] if folder is None else [folder]
    folders = [path for root in roots if root.is_dir() for path in root.iterdir() if _is_store(path)]
    return sorted((RowStore(path).info() for path in folders), key=lambda info: -info.last_used)


def _is_store(path: Path) -> bool:
    return re.fullmatch(r"[0-9a-f]{32}", path.name) is not None and path.is_dir() and not path.is_symlink()


def chosen_stores(
    stores: Sequence[StoreInfo], older_than_days: float | None, encoder: str | None, everything: bool
) -> list[StoreInfo]:
    """Return the stores that fulfil every condition given.

    Args:
        older_than_days: not used for so long. encoder: part of the encoder's name, or the beginning of the key.

    Raises:
        UserError: no condition is given, or `everything` beside others, or no store is of this encoder.
    """
    conditions = [value for value in (older_than_days, encoder) if value is not None]
    if everything == bool(conditions):
        raise UserError("say what to delete: --older-than DAYS, --encoder NAME (or both), or --all alone")
    if encoder is not None and stores and not any(_is_of(store, encoder) for store in stores):
        there = "\n".join(f"  {store.folder.name[:12]}  {store.encoder}" for store in stores)
        raise UserError(f"--encoder {encoder!r}: nothing here was made by such an encoder; choose one of:\n{there}")
    latest = time.time() - (older_than_days or 0.0) * _SECONDS_PER_DAY
    return [
        store
        for store in stores
        if (older_than_days is None or store.last_used < latest) and (encoder is None or _is_of(store, encoder))
    ]


def _is_of(store: StoreInfo, encoder: str) -> bool:
    return encoder.lower() in store.encoder.lower() or store.folder.name.startswith(encoder)
