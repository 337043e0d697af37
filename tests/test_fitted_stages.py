"""Families that are fitted in one pass go through the same stages as all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfcap.captioners.loading import load_captioner
from hfcap.doctor import examine
from hfcap.files import read_json, read_json_lines
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.helpers import ALL_FAMILIES, FAMILIES, family_class
from tests.test_stages import CAPTIONED, SCORED, times
from tests.training.harness import assert_same_tensors, forget_accelerator, recipe_values

FITTED = sorted(set(ALL_FAMILIES) - set(FAMILIES))
MADE = ("model/*", "training_summary.json")


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(folder: Path, captioner: str, **blocks: Any) -> Recipe:
    values = recipe_values("blip", folder)
    values |= {"captioner": captioner, "model": family_class(captioner).tiny(), "lora": None}
    values["train"] = {"num_train_epochs": 1, "dataloader_num_workers": 0, "per_device_eval_batch_size": 3}
    for name, block in blocks.items():
        values[name] = {**values[name], **block}
    return recipe_from_mapping(values, "test")


def execute(recipe: Recipe, last: Any = "publish") -> RunDirectory:
    forget_accelerator()
    run = Run(recipe)
    run.execute(last)
    return run.directory


@pytest.mark.parametrize("family", FITTED)
def test_from_recipe_to_publishable_folder(family: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, family, generate={"num_beams": 2, "num_return_sequences": 2})
    run = execute(recipe)
    rows = [row for _, row in read_json_lines(run.predictions("test"), "predictions")]
    assert len(rows) == 5 and all(row["caption"] and len(row["candidates"]) == 2 for row in rows)
    summary = read_json(run.summary, "summary")
    assert summary["method"] == "fitted" and summary["trainable_parameters"] == 0 and summary["images_seen"] == 7
    assert not (run.checkpoints / "fitting").exists()
    published = load_captioner(str(run.publish))
    assert_same_tensors(published.model.state_dict(), load_captioner(str(run.path)).model.state_dict())
    card = run.card.read_text()
    assert "trust_remote_code=True" in card and "training curve" not in card
    assert "fitted on" in card and "fine-tuned" not in card and "base_model_relation" not in card
    assert str(tmp_path) not in card + (run.model / "config.json").read_text()
    before = times(run.path, *MADE, *CAPTIONED, *SCORED)
    execute(recipe)
    assert times(run.path, *MADE, *CAPTIONED, *SCORED) == before


@pytest.mark.parametrize("family", FITTED)
def test_without_the_feature_store_the_captions_are_the_same(family: str, tmp_path: Path) -> None:
    stored = execute(recipe_of(tmp_path, family), "caption")
    plain = execute(recipe_of(tmp_path / "plain", family, data={"feature_store": "off"}), "caption")
    assert stored.predictions("test").read_text() == plain.predictions("test").read_text()


@pytest.mark.parametrize("family", FITTED)
def test_doctor_says_that_it_is_fitted(family: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, family)
    examine(recipe, tmp_path / "report")
    report = read_json(tmp_path / "report" / "doctor.json", "report")
    assert report["method"] == "fitted in one pass"
