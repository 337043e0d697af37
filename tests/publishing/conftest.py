"""Fixtures of the publishing tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hfcap.publishing import hub as hub_calls
from hfcap.run_directory.paths import RunDirectory
from tests.hub_server import hub  # noqa: F401
from tests.publishing.run_builder import build_run


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_calls, "FIRST_WAIT_SECONDS", 0.0)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return build_run(tmp_path_factory.mktemp("runs") / "tiny-blip")


@pytest.fixture
def run(finished_run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A tiny BLIP run that a test may change."""
    # Another test may have staged the shared run.
    shutil.copytree(finished_run.path, tmp_path / "tiny-blip", ignore=shutil.ignore_patterns("publish"))
    return RunDirectory(tmp_path / "tiny-blip")
