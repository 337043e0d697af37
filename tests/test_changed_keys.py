"""Which keys of the recipe may change while a run goes on."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hfcap.captioners.loading import load_captioner
from hfcap.data.sources.hub import HubOptions
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.recipe.block_base import Block
from hfcap.recipe.blocks import AugmentOptions, DataOptions, LoraOptions, ModelOptions, TrainOptions
from hfcap.recipe.changes import _TABLE, Effect, changed_values, key_changes
from hfcap.recipe.dpo import DpoOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.recipe.scst import ScstOptions
from hfcap.run_directory.stage_record import part_of
from tests.changed_runs import execute, stopped, times, values_of
from tests.changed_runs import photos as photos
from tests.hub_server import hub as hub
from tests.test_run_directories import snapshot
from tests.training.harness import (
    assert_same_tensors,
)

pytestmark = pytest.mark.usefixtures("one_thread")


FREE: dict[str, dict[str, Any]] = {
    "workers": {"dataloader_num_workers": 1},
    "logging": {"logging_steps": 3, "report_to": ["tensorboard"]},
    "saving": {"save_steps": 3, "save_total_limit": 4},
    "memory of validation": {"per_device_eval_batch_size": 1},
    "memory of training": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", FREE)
def test_keys_that_change_nothing_that_is_learnt(kind: str, photos: Path, tmp_path: Path) -> None:
    whole = execute(values_of(tmp_path / "whole", photos))
    stopped(values_of(tmp_path / "runs", photos))
    changed = values_of(tmp_path / "runs", photos, train=FREE[kind])
    resumed = execute(changed)
    ours, theirs = resumed.model_weights(), whole.model_weights()
    if kind == "memory of training":
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    else:
        assert_same_tensors(ours, theirs)
    # A finished training stays finished, and is not done again for such a key.
    before = times(resumed.run.model)
    execute(values_of(tmp_path / "runs", photos))
    assert times(resumed.run.model) == before


def test_a_constant_rate_may_be_trained_longer(photos: Path, tmp_path: Path) -> None:
    steady = {"lr_scheduler_type": "constant", "eval_steps": 2}
    whole = execute(values_of(tmp_path / "whole", photos, train={**steady, "max_steps": 6}))
    first = execute(values_of(tmp_path / "runs", photos, train=steady), "score")
    assert first.summary["steps"] == 4
    longer = execute(values_of(tmp_path / "runs", photos, train={**steady, "max_steps": 6}), "score")
    assert longer.summary["steps"] == 6
    assert_same_tensors(longer.weights(6), whole.weights(6))
    assert_same_tensors(longer.model_weights(), whole.model_weights())
    assert longer.losses == whole.losses


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-3},
        {"max_steps": 6},  # of a cosine: its first steps would have been others
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"mixed_precision": "bf16"},
        {"early_stopping_patience": 3},
        {"lr_scheduler_type": "linear", "warmup_steps": 1},
        {"label_smoothing_factor": 0.1, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_other_keys_have_to_be_accepted(changed: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    """'lower train.learning_rate' after NaN was refused with 'holds a run of a different recipe'."""
    result = stopped(values_of(tmp_path / "runs", photos))
    before = snapshot(result.run.path)
    values = values_of(tmp_path / "runs", photos, train=changed)
    with pytest.raises(UserError) as refused:
        execute(values)
    for key, value in changed.items():
        assert f"train.{key}: " in str(refused.value) and f"{value!r} here" in str(refused.value)
    assert "--accept-changes" in str(refused.value) and snapshot(result.run.path) == before
    resumed = execute(values, accept=True)
    assert resumed.summary["steps"] == changed.get("max_steps", 4)
    rows = {row["step"]: row for row in resumed.rows if "loss" in row}
    assert list(rows) == list(range(1, resumed.summary["steps"] + 1))
    noted = json.dumps(read_json(resumed.run.environment, "environment")["changes"])
    assert all(f"train.{key}" in noted for key in changed)


def test_a_lower_rate_counts_from_the_checkpoint_on(photos: Path, tmp_path: Path) -> None:
    steady = {"lr_scheduler_type": "constant", "learning_rate": 1e-2}
    stopped(values_of(tmp_path / "runs", photos, train=steady))
    lower = values_of(tmp_path / "runs", photos, train={**steady, "learning_rate": 1e-4})
    resumed = execute(lower, accept=True)
    assert [row["learning_rate"] for row in resumed.rows if "loss" in row] == [1e-2, 1e-2, 1e-4, 1e-4]
    before, after = resumed.weights(3), resumed.weights(4)
    # Adam moves a weight by about the rate, or less.
    assert 0 < max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-3


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"freeze": ["vision"]}},
        {"train": {"ema_decay": 0.9}},
        {"lora": {"r": 2}},
        {"model": {"prompt": "a photo of"}},
    ],
    ids=str,
)
def test_another_model_is_not_continued_whatever_is_accepted(
    changed: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    result = stopped(values_of(tmp_path / "runs", photos))
    before = snapshot(result.run.path)
    values = values_of(tmp_path / "runs", photos, **changed)
    with pytest.raises(UserError, match="another model, which cannot go on"):
        execute(values, accept=True)
    assert snapshot(result.run.path) == before
    # The remedy that the message names.
    assert execute(values, force=True).summary["steps"] == 4
    assert load_captioner(str(result.run.path)).prompt.strip() == values["model"].get("prompt", "")


def test_the_table_has_no_dead_line_and_knows_every_key(photos: Path, tmp_path: Path) -> None:
    """A pattern that no key of any block meets first says nothing; the last one meets what remains."""
    blocks: dict[str, type[Block]] = {
        "model": ModelOptions,
        "data": DataOptions,
        "train": TrainOptions,
        "lora": LoraOptions,
        "augment": AugmentOptions,
        "scst": ScstOptions,
        "dpo": DpoOptions,
    }
    keys = [f"{name}.{key}" for name, block in blocks.items() for key in block.model_fields]
    keys += [*(f"data.{key}" for key in HubOptions.model_fields), "captioner", "augment", "lora", "scst", "dpo"]
    first = {next(pattern for pattern, _, _ in _TABLE if fnmatch.fnmatchcase(key, pattern)) for key in keys}
    assert first == {pattern for pattern, _, _ in _TABLE}
    assert all(reason for _, _, reason in _TABLE)


def test_a_new_key_of_hfcap_is_no_change(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_from_mapping(values_of(tmp_path, photos), "test")
    now, given = part_of(recipe, "train"), part_of(recipe, "train", only_given=True)
    before = json.loads(json.dumps(now))
    del before["train"]["adam_beta2"], before["train"]["learning_rate"]
    assert changed_values(before, now, given) == {"train.learning_rate": (None, 0.01)}
    assert [
        change.effect for change in key_changes(before, {"train.seed": (1, 2)}, recipe, lambda *_: False, True)
    ] == [Effect.ASK]
    (change,) = key_changes(before, {"train.seed": (1, 2)}, recipe, lambda *_: False, continues=False)
    assert change.effect is Effect.ANEW


def test_a_recipe_edited_inside_the_run_is_a_changed_recipe(photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = stopped(values)
    written = yaml.safe_load(result.run.recipe.read_text())
    written["train"]["weight_decay"] = 0.5
    result.run.recipe.write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match=r"train\.weight_decay: 0\.05 there, 0\.5 here"):
        execute(written)
