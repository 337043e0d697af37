"""A fault to be planted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hfcap.captioners import blip
from hfcap.scoring import verdict


@pytest.fixture(autouse=True)
def _few_images_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny recipes score four images, which is no fault of theirs."""
    monkeypatch.setattr(verdict, "FEW_IMAGES", 4)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let the family blip be another class for one test."""
    yield lambda broken: monkeypatch.setattr(blip, "REGISTERED", broken)
