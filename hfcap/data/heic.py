"""Images of iPhones (HEIC), which Pillow reads with the package pillow-heif alone."""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.util import find_spec


@lru_cache
def heic_formats() -> tuple[str, ...]:
    """Return what Pillow calls HEIC; nothing where pillow-heif is not installed, which Pillow is told of here."""
    if find_spec("pillow_heif") is None:
        return ()
    importlib.import_module("pillow_heif").register_heif_opener()
    return ("HEIF",)
