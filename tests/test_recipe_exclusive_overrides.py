"""Overrides of keys of which a recipe takes only one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcap.recipe.loading import RecipeError, load_recipe

GOOD = """\
name: trial
captioner: blip
model: {pretrained: some/model}
data:
  source: folder
  root: images
train:
  max_steps: 10
"""


@pytest.mark.parametrize(
    ("old", "override", "expected"),
    [
        ("max_steps: 10", "train.num_train_epochs=3", {"num_train_epochs": 3.0, "max_steps": None}),
        ("num_train_epochs: 2", "train.max_steps=500", {"num_train_epochs": None, "max_steps": 500}),
        ("max_steps: 10\n  warmup_ratio: 0.1", "train.warmup_steps=7", {"warmup_ratio": 0.0, "warmup_steps": 7}),
        ("max_steps: 10\n  warmup_steps: 7", "train.warmup_ratio=0.1", {"warmup_ratio": 0.1, "warmup_steps": 0}),
        ("max_steps: 10\n  mixed_precision: bf16", "train.fp16=true", {"mixed_precision": "fp16"}),
        ("max_steps: 10\n  bf16: true", "train.mixed_precision=no", {"mixed_precision": "no"}),
    ],
)
def test_an_override_takes_the_place_of_the_key_that_it_excludes(
    tmp_path: Path, old: str, override: str, expected: dict[str, object]
) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(GOOD.replace("max_steps: 10", old))
    train = load_recipe(path, [override]).train
    assert train is not None
    assert {name: getattr(train, name) for name in expected} == expected


def test_two_overrides_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(GOOD)
    with pytest.raises(RecipeError, match="exactly one of num_train_epochs and max_steps"):
        load_recipe(path, ["train.num_train_epochs=3", "train.max_steps=5"])
    with pytest.raises(RecipeError, match="exactly one of num_train_epochs and max_steps"):
        load_recipe(path, ["train.max_steps=null"])
