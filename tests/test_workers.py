"""How many processes read images: by the cores where a recipe does not say, and free to change in a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hfcap.recipe.blocks import Recipe
from hfcap.recipe.changes import Effect, key_changes
from hfcap.recipe.loading import dump_recipe, recipe_from_mapping
from hfcap.recipe.training_blocks import TrainOptions, workers_here
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.stage_record import StageRecord
from tests.training.harness import recipe_values


@pytest.mark.parametrize(
    ("cores", "together", "expected"),
    [
        (1, None, 2),
        (2, None, 2),
        (3, None, 3),
        (8, None, 8),
        (64, None, 8),
        (64, "4", 8),
        (16, "4", 4),
        (4, "4", 2),
        (6, "", 6),
        (6, "0", 6),
        (6, "many", 6),
    ],
)
def test_workers_follow_the_cores_of_the_process(
    cores: int, together: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if together is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", together)
    monkeypatch.setattr(os, "cpu_count", lambda: 48)  # of the machine, whatever the process may use
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert workers_here() == expected


@pytest.mark.parametrize(("cores", "expected"), [(None, 2), (5, 5), (48, 8)])
def test_where_nobody_says_what_a_process_may_use_all_cores_count(
    cores: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert workers_here() == expected


def test_a_number_in_the_recipe_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.recipe.training_blocks.workers_here", lambda: 7)
    found = [TrainOptions(max_steps=1, dataloader_num_workers=number).loading_workers for number in (None, 0, 3)]
    assert found == [7, 0, 3] and TrainOptions(max_steps=1).loading_workers == 7


def recipe_with(workers: int | None, folder: Path) -> Recipe:
    return recipe_from_mapping(recipe_values("blip", folder, dataloader_num_workers=workers), "test")


@pytest.mark.parametrize(("before", "now"), [(2, None), (None, 4), (None, None)])
def test_runs_that_began_with_another_number_go_on(before: Any, now: Any, tmp_path: Path) -> None:
    """Earlier versions noted 2, their default; what is noted now is the same on every machine."""
    run, old, new = RunDirectory(tmp_path), recipe_with(before, tmp_path), recipe_with(now, tmp_path)
    assert f"dataloader_num_workers: {'null' if before is None else before}" in dump_recipe(old)
    StageRecord(run, old).begin("train")
    record = StageRecord(run, new)
    noted = record.earlier("train")
    assert noted is not None
    changed = record.changed("train")
    assert changed == ({} if before == now else {"train.dataloader_num_workers": (before, now)})
    changes = key_changes(noted, changed, new, lambda *_: False, continues=True)
    assert all(change.effect is Effect.FREE for change in changes)
