"""CO2 equivalents of training, measured by codecarbon where the recipe asks for it (train.report_to: [codecarbon])."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from hfcap.errors import MissingPackageError, UserError
from hfcap.files import write_json
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.records import Emissions, checked_record

NAME = "codecarbon"
COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"


def _new_tracker() -> tuple[Any, str]:
    key = "train.report_to: codecarbon"
    try:
        import codecarbon
    except ImportError:
        raise MissingPackageError(NAME, key) from None
    country = os.environ.get(COUNTRY)
    if not country:
        # Otherwise codecarbon would ask a service in the network where this machine is.
        raise UserError(f"{key}: set {COUNTRY} to the three-letter code of the country whose power is used (DEU, USA)")
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, log_level="error", allow_multiple_runs=True
    )
    return tracker, f"codecarbon {codecarbon.__version__}"


@contextlib.contextmanager
def measured_emissions(report_to: Sequence[str], run: RunDirectory, is_main_process: bool) -> Iterator[None]:
    """Measure what the block emits and add it to emissions.json; does nothing unless `report_to` names codecarbon.

    A stopped training that continues later adds a second entry; what a killed process emitted stays unknown.

    Raises:
        MissingPackageError: codecarbon is not installed. UserError: the country is not set.
    """
    if NAME not in report_to or not is_main_process:
        yield
        return
    tracker, source = _new_tracker()
    tracker.start()
    try:
        yield
    finally:
        kilograms = tracker.stop()
        if kilograms is not None:
            entry = {"grams": 1000 * float(kilograms), "source": source}
            write_json(run.emissions, [*_entries(run), entry])


def _entries(run: RunDirectory) -> list[dict[str, Any]]:
    if not run.emissions.is_file():
        return []
    return list(checked_record(run.emissions, "measured emissions", list[Emissions]))


def total_emissions(run: RunDirectory) -> dict[str, Any] | None:
    """Return {"grams", "source"} over all parts of the training, or None where nothing was measured."""
    entries = _entries(run)
    if not entries:
        return None
    sources = dict.fromkeys(entry["source"] for entry in entries)
    return {"grams": sum(entry["grams"] for entry in entries), "source": ", ".join(sources)}
