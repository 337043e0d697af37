"""Where the research data beside the project lies, and the mark for tests that need it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("HFCAP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
"""Folder with data/coco, data/flickr8k and models/efficientnet-lite0 (never part of the repository)."""

requires_shared = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="the research data folder ../shared is not beside the project"
)
