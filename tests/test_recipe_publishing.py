"""What the Hub, or PEFT, would refuse after days of training is known when the recipe is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcap.recipe.loading import load_recipe
from tests.test_recipe_loading import GOOD, problems, write


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            "license: MIT License",
            "license: 'MIT License' is no licence identifier of the Hub; did you mean 'mit'?",
        ),
        ("license: MIT", "license: 'MIT' is no licence identifier of the Hub; did you mean 'mit'?"),
        (
            "license: Apache 2.0",
            "license: 'Apache 2.0' is no licence identifier of the Hub; did you mean 'apache-2.0'",
        ),
        (
            "license: my own",
            "license: 'my own' is no licence identifier of the Hub; for one that the Hub",
        ),
        (
            "language: english",
            "language: 'english' is no language code of the Hub (ISO 639, without a region); did you mean en?",
        ),
        (
            "language: [en, zh-CN]",
            "language: 'zh-CN' is no language code of the Hub (ISO 639, without a region); did you mean zh?",
        ),
        ("language: [en, 5]", "publish.language"),
        ("dataset: my photos", "publish.dataset: 'my photos' is no id on the Hub; write namespace/name"),
        ("base_model: blip base", "publish.base_model: 'blip base' is no id on the Hub; write namespace/name"),
        (
            "max_shard_size: 5 apples",
            "publish.max_shard_size: '5 apples' is not a size; write for example 5GB or 500MB",
        ),
        ("max_shard_size: 0GB", "publish.max_shard_size: '0GB' is not a size"),
        ("merged: true", "publish.merged: is for LoRA runs; this recipe trains all weights"),
    ],
)
def test_what_the_hub_would_refuse_is_known_when_the_recipe_is_read(tmp_path: Path, keys: str, expected: str) -> None:
    (only, *_) = problems(tmp_path, GOOD + f"publish: {{{keys}}}\n")
    assert expected in only, only


def test_values_that_the_hub_takes(tmp_path: Path) -> None:
    keys = "license: other, license_name: own, language: [en, de, gsw], dataset: a/b, base_model: gpt2"
    recipe = load_recipe(write(tmp_path, GOOD + f"publish: {{{keys}, max_shard_size: 2GiB}}\n"))
    assert recipe.publish.language == ["en", "de", "gsw"]
    merged = load_recipe(write(tmp_path, GOOD + "lora: {}\npublish: {merged: true}\n"))
    assert merged.publish.merged


def test_no_lora_target_at_all(tmp_path: Path) -> None:
    (only,) = problems(tmp_path, GOOD + "lora: {target_modules: []}\n")
    assert only.startswith("trial.yaml:11: lora.target_modules: ")
