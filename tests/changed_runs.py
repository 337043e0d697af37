"""Runs that are stopped, changed and resumed, for the tests of what may change while a run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfcap.errors import StoppedError
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from tests.test_run_directories import write_photos
from tests.training.harness import Result, forget_accelerator, recipe_values, send_signal_at


def values_of(folder: Path, photos: Path, **blocks: Any) -> dict[str, Any]:
    data = {"source": "folder", "root": str(photos)}
    values = recipe_values("vit_gpt2", folder, eval_steps=4, save_steps=1)
    values["data"] = data
    values["score"] = {"n_resamples": 10, "baselines": []}
    for name, block in blocks.items():
        values[name] = {**values[name], **block} if isinstance(values.get(name), dict) and block is not None else block
    return values


def execute(values: dict[str, Any], last: Any = "train", force: bool = False, accept: bool = False) -> Result:
    forget_accelerator()
    run = Run(recipe_from_mapping(values, "test"), accept_changes=accept)
    run.execute(last, force)
    return Result(run.directory)


def stopped(values: dict[str, Any], step: int = 2) -> Result:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(step, patch)
        execute(values)
    return Result(RunDirectory(Path(values["output_dir"]) / values["name"]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


def edit_metadata(photos: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = photos / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
