"""Score files: writing and checked reading."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from hfcap.errors import UserError, shown
from hfcap.failures.garbage import no_search_for_cycles
from hfcap.files import file_being_written, read_json, read_text
from hfcap.run_directory.records import Signature, check_shape
from hfcap.schema import ErrorSlice, ScoreReport, SliceScores
from hfcap.scoring.image_values import ImageValues, Rows
from hfcap.scoring.score_lines import read_lines, write_lines

_MOST_IMAGES = 2**53
_BEGINNING = re.compile(rb'\{\n  "schema_version": \d+,\n  "split": ')
"""How hfcap's score files begin."""


@no_search_for_cycles()
def write_scores(report: ScoreReport, path: Path) -> None:
    """Write a score file atomically: the summary indented, then one line per image."""
    head = {
        "schema_version": report.schema_version,
        "split": report.split,
        "n_images": report.n_images,
        "metrics": report.metrics,
        "intervals": report.intervals,
        "signature": report.signature,
        "predictions_sha256": report.predictions_sha256,
    }
    if report.slices:
        head["slices"] = {
            column: {value: asdict(scores) for value, scores in found.items()}
            for column, found in report.slices.items()
        }
        head["groups"] = report.groups
    if report.error_slices is not None:
        head["error_slices"] = [asdict(found) for found in report.error_slices]
    summary = json.dumps(head, indent=2, allow_nan=False)[: -len("\n}")]
    with file_being_written(path) as handle:
        handle.write(f"{summary},\n".encode())
        write_lines(handle, report.per_image, report.statistics)


def _numbers(value: Any, path: Path, key: str) -> dict[str, float | None]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key!r} must map names to numbers; is this a score file?")
    for name, number in value.items():
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise UserError(f"{path}: {key}.{name} must be a number or null, not {shown(number)}")
        if number is not None and not math.isfinite(number):
            raise UserError(f"{path}: {key}.{name} must be finite, not {shown(number)}")
    return value


def _intervals(value: Any, path: Path, key: str) -> dict[str, tuple[float, float]]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {key!r} must map names to intervals; is this a score file?")
    for name, bounds in value.items():
        if not isinstance(bounds, list) or len(bounds) != 2 or None in bounds:
            raise UserError(f"{path}: {key}.{name} must be [lower, upper], not {shown(bounds)}")
        _numbers(dict(zip(("lower", "upper"), bounds, strict=True)), path, f"{key}.{name}")
    return {name: (float(bounds[0]), float(bounds[1])) for name, bounds in value.items()}


def _groups(value: dict[str, Any], path: Path) -> dict[str, dict[str, str]]:
    for column, found in value.items():
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise UserError(f"{path}: groups.{column} must map image ids to text; score again")
    return value


def _count(value: Any, path: Path, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_IMAGES:
        raise UserError(f"{path}: {key} must be a whole number, not {shown(value)}")
    return value


def _slices(value: Any, path: Path, key: str) -> dict[str, SliceScores]:
    if not isinstance(value, dict) or not all(isinstance(found, dict) for found in value.values()):
        raise UserError(f"{path}: {key!r} must map values to scores; score again")
    slices = {}
    for name, found in value.items():
        count = _count(found.get("n_images"), path, f"{key}.{name}.n_images")
        p_values = _numbers(found.get("p_values", {}), path, f"{key}.{name}.p_values")
        slices[name] = SliceScores(
            count,
            _numbers(found.get("metrics"), path, f"{key}.{name}.metrics"),
            _intervals(found.get("intervals", {}), path, f"{key}.{name}.intervals"),
            {output: number for output, number in p_values.items() if number is not None},
        )
    return slices


def _error_slices(value: Any, path: Path) -> list[ErrorSlice] | None:
    if value is None:
        return None
    check_shape(value, f"{path}: error_slices", list[ErrorSlice])
    return [_error_slice(found, path) for found in value]


def _error_slice(found: Mapping[str, Any], path: Path) -> ErrorSlice:
    # What a number may be is told from text that looks like one.
    _numbers({name: found[name] for name in ("value", "value_of_others", "p_value")}, path, "error_slices")
    _count(found["n_images"], path, "error_slices.n_images")
    given = {name: found[name] for name in ("interval", "interval_of_others") if found.get(name) is not None}
    _intervals({name: list(bounds) for name, bounds in given.items()}, path, "error_slices")
    known = {name: found[name] for name in (field.name for field in fields(ErrorSlice)) if name in found}
    for name in ("interval", "interval_of_others", "image_ids"):
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    return ErrorSlice(**{**known, "examples": tuple((key, caption) for key, caption in found.get("examples", ()))})


def _check_table(table: Any, n_rows: int, where: str) -> None:
    try:
        shape = (table.table if isinstance(table, Rows) else np.asarray(table, dtype=np.float64)).shape
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where} must be rows of numbers of equal length") from None
    if len(shape) != 2 or shape[0] != n_rows:
        raise UserError(f"{where} must have one row for each image of 'per_image'")


def is_score_file(path: Path) -> bool:
    """Tell a score file from a file of captions; damaged JSON passes, so that reading it says what is wrong.

    Raises:
        UserError: the file cannot be read.
    """
    if path.suffix != ".json":
        return False
    with path.open("rb") as handle:
        if _BEGINNING.match(handle.read(100)):
            return True
    text = read_text(path, "score file")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        # JSON lines under another name hold captions.
        return not text.partition("\n")[0].rstrip().endswith("}")
    except (ValueError, RecursionError):
        return True
    return isinstance(value, dict) and isinstance(value.get("metrics"), dict)


def read_scores(path: Path) -> ScoreReport:
    """Read a score file.

    Raises:
        UserError: the file is missing or not a score file; the message names the key.
    """
    value = read_lines(path) or read_json(path, "score file", finite=True)
    if not isinstance(value, dict) or "metrics" not in value:
        raise UserError(f"{path}: not a score file (no 'metrics'); 'hfcap score' makes one")
    if value.get("schema_version") != 1:
        raise UserError(f"{path}: schema_version {value.get('schema_version')!r} is not 1; use a newer hfcap")
    for key in ("per_image", "intervals", "statistics", "signature", "groups", "slices"):
        if not isinstance(value.setdefault(key, {}), dict | ImageValues):
            raise UserError(f"{path}: {key!r} must be an object, not {shown(value[key])}")
    check_shape(value["signature"], f"{path}: signature", Signature)
    intervals = _intervals(value["intervals"], path, "intervals")
    if not isinstance(value.setdefault("predictions_sha256", None), str | None):
        raise UserError(f"{path}: predictions_sha256 must be text, not {shown(value['predictions_sha256'])}")
    per_image = value["per_image"]
    # Recorded cards keep the images that they show, and nothing to resample.
    if value.setdefault("n_images", len(per_image)) != len(per_image) and value["statistics"]:
        raise UserError(
            f"{path}: n_images is {shown(value['n_images'])}, but 'per_image' has {len(per_image):,}; score again"
        )
    if not isinstance(value["n_images"], int) or not 0 <= value["n_images"] < _MOST_IMAGES:
        raise UserError(f"{path}: n_images must be a whole number, not {shown(value['n_images'])}")
    for name, table in value["statistics"].items():
        _check_table(table, len(per_image), f"{path}: statistics.{name}")
    return ScoreReport(
        split=str(value.get("split", "all")),
        n_images=value["n_images"],
        metrics=_numbers(value["metrics"], path, "metrics"),
        intervals=intervals,
        signature=value["signature"],
        per_image=per_image
        if isinstance(per_image, ImageValues)
        else {key: _numbers(row, path, f"per_image.{key}") for key, row in per_image.items()},
        statistics=value["statistics"],
        predictions_sha256=value["predictions_sha256"],
        groups=_groups(value["groups"], path),
        error_slices=_error_slices(value.get("error_slices"), path),
        slices={column: _slices(found, path, f"slices.{column}") for column, found in value["slices"].items()},
    )
