from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test may fail because the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep tests away from the user's cache and from each other's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HFCAP_CACHE", str(folder))
    return folder
