"""A fault to be planted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hfcap.captioners import blip


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let the family blip be another class for one test."""
    yield lambda broken: monkeypatch.setattr(blip, "REGISTERED", broken)
