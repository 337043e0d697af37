"""Which image inputs a recipe trains from, and that they all train the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hfcap.errors import UserError, WorkError
from hfcap.recipe.blocks import AugmentOptions
from hfcap.training.assemble import uses_feature_store
from hfcap.training.build import build_captioner, make_trainable
from tests.training.harness import assert_same_tensors, tiny_recipe, train


def test_image_cache_trains_the_same_weights(tmp_path: Path) -> None:
    plain = train(tiny_recipe("blip", tmp_path / "plain"))
    data = {"image_cache": True, "image_cache_folder": str(tmp_path / "images")}
    cached = train(tiny_recipe("blip", tmp_path / "cached", data=data, dataloader_num_workers=1))
    assert list((tmp_path / "images").glob("*/shard-*"))
    assert_same_tensors(cached.weights(4), plain.weights(4))


@pytest.mark.parametrize(
    ("mode", "freeze", "used"),
    [
        ("auto", [], False),
        ("auto", ["vision"], True),
        ("on", ["vision"], True),
        ("off", ["vision"], False),
    ],
)
def test_when_the_feature_store_is_used(mode: str, freeze: list[str], used: bool, tmp_path: Path) -> None:
    recipe = tiny_recipe("vit_gpt2", tmp_path, data={"feature_store": mode}, freeze=freeze)
    captioner = build_captioner(recipe, [])
    make_trainable(captioner, recipe)
    assert uses_feature_store(captioner, recipe) is used


def test_auto_goes_without_a_store_where_none_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache that cannot be written (a read-only disk) stopped the run; here a file stands where it should be."""
    (tmp_path / "file").write_text("")
    data = {"feature_store_folder": str(tmp_path / "file" / "store")}
    result = train(tiny_recipe("vit_gpt2", tmp_path / "auto", data=data, freeze=["vision"]))
    assert result.steps[-1] == 4
    assert "no feature store, because" in " ".join(capsys.readouterr().err.split())
    plain = train(tiny_recipe("vit_gpt2", tmp_path / "off", data={"feature_store": "off"}, freeze=["vision"]))
    assert_same_tensors(result.weights(4), plain.weights(4))
    demanded = tiny_recipe("vit_gpt2", tmp_path / "on", data={**data, "feature_store": "on"}, freeze=["vision"])
    with pytest.raises(
        WorkError, match=r"the feature store: .* cannot be written \(.*\); set data.feature_store_folder"
    ):
        train(demanded)


def test_feature_store_on_with_a_trained_encoder_is_an_error(tmp_path: Path) -> None:
    recipe = tiny_recipe("vit_gpt2", tmp_path, data={"feature_store": "on"})
    with pytest.raises(UserError, match=r"data\.feature_store: on .*train\.freeze.*feature_store: auto"):
        train(recipe)


@pytest.mark.parametrize("data", [{"feature_store": "on"}, {"image_cache": True, "feature_store": "off"}])
def test_what_keeps_images_and_changing_them_exclude_each_other(data: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny_recipe("vit_gpt2", tmp_path, data=data, freeze=["vision"])
    recipe = recipe.model_copy(update={"augment": AugmentOptions(rotation=5.0)})
    with pytest.raises(UserError, match=rf"data\.{next(iter(data))}.*augment"):
        train(recipe)
