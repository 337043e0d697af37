"""Emissions are measured only where the recipe asks for it, over all parts of a stopped training."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from hfcap.errors import MissingPackageError, UserError
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.records.emissions import COUNTRY, measured_emissions, total_emissions


class OfflineEmissionsTracker:
    """The part of codecarbon that is used, with made-up kilograms."""

    def __init__(self, country_iso_code: str, **options: object) -> None:
        assert options["save_to_file"] is False
        self.country = country_iso_code
        self.started = False

    def start(self) -> None:
        self.started = True

    def stop(self) -> float:
        assert self.started
        return 0.002 if self.country == "DEU" else 0.001


@pytest.fixture
def codecarbon(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("codecarbon")
    vars(module).update(__version__="3.3", OfflineEmissionsTracker=OfflineEmissionsTracker)
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    monkeypatch.setenv(COUNTRY, "DEU")


@pytest.mark.usefixtures("codecarbon")
def test_parts_of_a_stopped_training_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt), measured_emissions(["codecarbon"], run, is_main_process=True):
        raise KeyboardInterrupt
    monkeypatch.setenv(COUNTRY, "FRA")
    with measured_emissions(["codecarbon"], run, is_main_process=True):
        pass
    assert total_emissions(run) == {"grams": pytest.approx(3.0), "source": "codecarbon 3.3"}


@pytest.mark.usefixtures("codecarbon")
def test_nothing_is_measured_unasked_or_twice(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with measured_emissions(["tensorboard"], run, is_main_process=True):
        pass
    with measured_emissions(["codecarbon"], run, is_main_process=False):
        pass
    assert total_emissions(run) is None and not run.emissions.exists()


def test_what_is_needed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codecarbon: None) -> None:
    monkeypatch.delenv(COUNTRY)
    with pytest.raises(UserError, match=COUNTRY), measured_emissions(["codecarbon"], RunDirectory(tmp_path), True):
        pass
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    missing = pytest.raises(MissingPackageError, match=r"train\.report_to: codecarbon")
    with missing, measured_emissions(["codecarbon"], RunDirectory(tmp_path), True):
        pass
