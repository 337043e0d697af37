"""What tests of the doctor share: small recipes, the report of an examination, its problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from hfcap import registry
from hfcap.data.images import FileImage
from hfcap.doctor import run_checks
from hfcap.doctor.run_checks import examine
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.schema import CaptionedImage


def tiny_recipe(folder: Path, family: str = "blip", **blocks: Any) -> Recipe:
    """A recipe on eight scenes; blocks given are merged into it."""
    values: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "captioner": family,
        "model": registry.load("captioners", family).REGISTERED.tiny(),
        "data": {"source": "scenes", "n_train": 8, "n_validation": 4, "n_test": 4, "image_size": 32},
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 4, "dataloader_num_workers": 0},
        "generate": {"num_beams": 2, "max_new_tokens": 40},
    }
    if family == "blip":
        # transformers starts BLIP's vision model from 1e-10, at which no image changes anything.
        values["model"]["from_config"]["vision_config"]["initializer_range"] = 0.02
    for name, block in blocks.items():
        values[name] = {**values[name], **block} if isinstance(values.get(name), dict) else block
    return recipe_from_mapping(values, "test")


def report_of(recipe: Recipe, healthy: bool, steps: int = 0) -> dict[str, Any]:
    """Examine, check the verdict, and return doctor.json."""
    assert examine(recipe, steps=steps) is healthy
    report: dict[str, Any] = json.loads((run_checks.output_folder(recipe) / "doctor.json").read_text("utf-8"))
    assert report["healthy"] is healthy
    return report


def problems_of(report: dict[str, Any], level: str) -> list[str]:
    return [f"{one['key']}: {one['message']}" for one in report["problems"] if one["level"] == level]


def the_error(report: dict[str, Any], *words: str) -> str:
    """The first error that contains all words."""
    errors = problems_of(report, "error")
    found = [error for error in errors if all(word in error for word in words)]
    assert found, errors
    return found[0]


def record(folder: Path, name: str, colour: str, *captions: str, image_id: str = "") -> CaptionedImage:
    path = folder / name
    Image.new("RGB", (40, 30), colour).save(path)
    return CaptionedImage(image_id or name, name, captions, FileImage(path))
