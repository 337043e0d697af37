"""Images of iPhones (HEIC), which Pillow reads with the package pillow-heif alone."""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.util import find_spec

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc")
"""What an HEIC file names itself in bytes 8 to 12 (ISO/IEC 23008-12)."""


def needs_pillow_heif(encoded: bytes) -> bool:
    """Whether these are the bytes of an HEIC image, while pillow-heif is not installed."""
    return encoded[4:8] == b"ftyp" and encoded[8:12] in _BRANDS and not heic_formats()


@lru_cache
def heic_formats() -> tuple[str, ...]:
    """Return what Pillow calls HEIC; nothing where pillow-heif is not installed, which Pillow is told of here."""
    if find_spec("pillow_heif") is None:
        return ()
    importlib.import_module("pillow_heif").register_heif_opener()
    return ("HEIF",)
