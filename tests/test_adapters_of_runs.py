"""LoRA on a model folder of this machine: scored, never a dead end, and published merged where the recipe says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hfcap import push_to_hub
from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import recipe_from_mapping
from tests.test_stages import execute, recipe_of
from tests.training.harness import recipe_values

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def lora_on_a_folder(tmp_path: Path) -> dict[str, Any]:
    """Changes of a recipe: LoRA on a model folder of this machine, without a Hub id."""
    base = tmp_path / "base model"
    shutil.copytree(execute(recipe_of(tmp_path).model_copy(update={"name": "base"}), "train").model, base)
    return {"name": "adapted", "model": {"pretrained": str(base)}}


def lora_recipe(tmp_path: Path, changes: dict[str, Any], **publish: Any) -> Recipe:
    values = recipe_values("vit_gpt2", tmp_path, "lora", max_steps=2)
    return recipe_from_mapping({**values, **changes, "publish": {"license": "mit", **publish}}, "test")


def test_an_adapter_on_a_folder_of_this_machine_is_scored_and_the_rest_is_said_before(
    tmp_path: Path, lora_on_a_folder: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = execute(lora_recipe(tmp_path, lora_on_a_folder))
    said = capsys.readouterr().err
    warning = "warning: publish: an adapter needs a base model on the Hub to be published, and model.pretrained is a "
    assert said.count(warning) == 1 and said.index(warning) < said.index("Training ")
    assert directory.scores("test").is_file() and directory.card.is_file() and not directory.publish.exists()
    with pytest.raises(UserError, match=r"publish: an adapter needs a base model .* publish\.merged: true"):
        execute(lora_recipe(tmp_path, {**lora_on_a_folder, "name": "pushed"}, repo_id="a/b"))
    assert not (tmp_path / "pushed").exists()


def test_merged_weights_are_published_where_the_recipe_says_so(
    tmp_path: Path, lora_on_a_folder: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = execute(lora_recipe(tmp_path, lora_on_a_folder, merged=True))
    assert "an adapter needs a base model" not in capsys.readouterr().err
    assert (directory.publish / "model.safetensors").is_file()
    assert not (directory.publish / "adapter_config.json").exists()
    assert "PeftModel" not in directory.card.read_text()
    shutil.rmtree(directory.publish)
    push_to_hub(directory.path, dry_run=True)
    assert (directory.publish / "model.safetensors").is_file()
    assert not (directory.publish / "adapter_config.json").exists()
