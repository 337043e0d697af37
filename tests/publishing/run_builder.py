"""Builds small but complete run directories: real models of the captioner families, files as DESIGN section 4 says."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hfcap import registry
from hfcap.captioners.adaptation.lora import add_lora, save_adapter
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner
from hfcap.captioners.shared.nonparametric import NonparametricCaptioner
from hfcap.card.example_images import RECORD, record_images
from hfcap.recipe.blocks import GenerateOptions, LoraOptions, Recipe
from hfcap.recipe.loading import dump_recipe, load_recipe, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from tests.captioners.helpers import fit

CAPTIONS = [
    "a red ball on a blue table",
    "two dogs run over green grass",
    "a man rides a small horse",
    "three yellow cups stand in a row",
    "a woman holds an umbrella in the rain",
    "a boat lies on the shore of a lake",
]


def recipe_values(captioner: str = "blip", **changes: Any) -> dict[str, Any]:
    """A recipe for a tiny captioner; `changes` replace whole top-level blocks or update them."""
    values: dict[str, Any] = {
        "name": f"tiny-{captioner.replace('_', '-')}",
        "captioner": captioner,
        "model": registry.load("captioners", captioner).REGISTERED.tiny(),
        "data": {"source": "folder", "root": "/srv/nobody/images"},
        "train": {"max_steps": 40, "learning_rate": 1e-3},
        "generate": {"num_beams": 2, "max_new_tokens": 8},
        "score": {"split": "test", "baselines": ["most_frequent_caption", "blank_images"]},
        "publish": {"repo_id": "alice/tiny", "license": "apache-2.0", "dataset_name": "Six sentences"},
    }
    for key, value in changes.items():
        values[key] = (
            {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        )
    return values


@dataclass(frozen=True)
class PlainImage:
    """An image of one colour."""

    colour: str

    def read(self) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (60, 40), self.colour).save(buffer, format="PNG")
        return buffer.getvalue()

    def describe(self) -> str:
        return self.colour


def build_run(
    folder: Path, captioner: str = "blip", captions: list[str] | None = None, prompt: str = "", **changes: Any
) -> RunDirectory:
    """Write a finished run into `folder`; `captions` are the predicted ones.

    With publish.samples_license among the changes, the sample images are there too.
    """
    run = RunDirectory(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_from_mapping(recipe_values(captioner, **changes), "run_builder")
    run.recipe.write_text(dump_recipe(recipe))
    built = save_tiny_model(run.model, captioner, recipe.generate, prompt)
    write_records(run, captions or CAPTIONS)
    write_images(run, built, recipe)
    return run


def write_images(run: RunDirectory, built: Captioner, recipe: Recipe) -> None:
    """Record the images to be published, the samples among them where the recipe allows it."""
    samples = json.loads(run.samples.read_text())
    colours = ["red", "green", "blue", "yellow", "black", "white"]
    records = [
        CaptionedImage(row["image_id"], row["file_name"], tuple(row["references"]), PlainImage(colour))
        for row, colour in zip(samples, colours, strict=False)
    ]
    record_images(run, built, recipe.generate, records if recipe.publish.samples_license else [])
    if recipe.publish.samples_license:
        write_json(run.samples, [{**row, "image": f"samples/{n}.jpg"} for n, row in enumerate(samples, start=1)])


def save_tiny_model(folder: Path, captioner: str, generate: GenerateOptions, prompt: str = "") -> Captioner:
    """Save a random-weight captioner of the family."""
    import torch

    torch.manual_seed(0)
    family = registry.load("captioners", captioner).REGISTERED
    built = family.build(family.options_class(**family.tiny(), prompt=prompt), CAPTIONS * 20)
    folder.mkdir(parents=True, exist_ok=True)
    built.model.eval()
    if isinstance(built, NonparametricCaptioner):
        fit(built)
    built.save(folder, generate)
    return built


def write_records(run: RunDirectory, captions: list[str]) -> None:
    """Write everything that training, decoding and scoring leave behind."""
    draw = random.Random(0)
    ids = [str(100 + i) for i in range(len(captions))]
    per_image = {image_id: {"cider": round(draw.uniform(0, 2), 3)} for image_id in ids}
    mean = sum(row["cider"] for row in per_image.values()) / len(ids)
    scores: dict[str, Any] = {
        "schema_version": 1,
        "split": "test",
        "n_images": len(ids),
        "metrics": {"bleu_1": 0.7, "bleu_4": 0.312, "rouge_l": 0.55, "cider": mean},
        "intervals": {"bleu_4": [0.29, 0.33], "cider": [mean - 0.1, mean + 0.1]},
        "signature": {"tokenizer": "ptb", "references": 1, "file": "/srv/nobody/df.json"},
        "per_image": per_image,
    }
    write_json(run.scores("test"), scores)
    for name, value in (("most_frequent_caption", 0.05), ("blank_images", 0.02)):
        baseline = {
            **scores,
            "metrics": {"bleu_1": 0.2, "bleu_4": 0.0, "rouge_l": 0.2, "cider": value},
            "per_image": {},
        }
        write_json(run.scores(f"test.{name}"), baseline)
    rows: list[dict[str, Any]] = [
        {"image_id": i, "file_name": f"images/{i}.jpg", "caption": caption, "score": -1.5, "candidates": [caption]}
        for i, caption in zip(ids, captions, strict=True)
    ]
    run.predictions("test").parent.mkdir(exist_ok=True)
    run.predictions("test").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = [{"id": n, "image_id": i, "caption": CAPTIONS[n % len(CAPTIONS)]} for n, i in enumerate(ids)]
    write_json(run.references("test"), {"images": [{"id": i} for i in ids], "annotations": notes})
    samples = [
        {**row, "references": [note["caption"]], "score": per_image[row["image_id"]]["cider"]}
        for row, note in zip(rows, notes, strict=True)
    ]
    write_json(run.samples, samples)
    write_json(run.environment, ENVIRONMENT)
    write_json(run.summary, SUMMARY)
    log: list[dict[str, Any]] = []
    for step in range(5, 45, 5):
        log.append({"step": step, "epoch": step / 10, "loss": 4 * math.exp(-step / 20), "learning_rate": 1e-3})
    log += [{"step": step, "validation_loss": 4.2 * math.exp(-step / 25)} for step in (20, 40)]
    run.log.write_text("".join(json.dumps(row) + "\n" for row in log))


def adapter_run(run: RunDirectory, base: dict[str, Any], base_location: str | None = None, **lora: Any) -> RunDirectory:
    """Turn a run into a LoRA run whose adapter changes the captions.

    Args:
        base: the base model as environment.json notes it.
        lora: keys of the recipe's block `lora`.
        base_location: where the base's weights are, if not at the Hub under base["id"].
    """
    import torch

    captioner = load_captioner(str(run.model), trust_remote_code=True)
    peft_model = add_lora(captioner, LoraOptions(**{"r": 2, **lora}))
    torch.manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    options = load_recipe(run.recipe).generate
    shutil.rmtree(run.model)
    run.model.mkdir()
    save_adapter(peft_model, base_location or base["id"], run.model)
    captioner.save_processor(run.model)
    captioner.generation_config(options).save_pretrained(run.model)
    # Recorded with the base's weights; staging records again.
    (run.path / RECORD).unlink()
    write_json(run.environment, {**ENVIRONMENT, "base_models": [base]})
    return run


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


ENVIRONMENT: dict[str, Any] = {
    "versions": {"hfcap": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    "python": "3.11.9",
    "platform": "Linux",
    "hardware": {"cpu": "Example CPU", "cores": 2, "memory_bytes": 8 * 2**30, "gpu": None},
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "seed": 42,
    "base_models": [],
    "datasets": {"train": {"n_images": 120, "n_captions": 600, "fingerprint": "abc123def456abc1", "revision": None}},
}
SUMMARY: dict[str, Any] = {
    "steps": 40,
    "epochs": 4.0,
    "images_seen": 480,
    "captions_seen": 2400,
    "train_seconds": 130.0,
    "images_per_second": 3.7,
    "captions_per_second": 18.5,
    "peak_memory_bytes": 900 * 2**20,
    "parameters": 100_000,
    "trainable_parameters": 100_000,
    "best_step": 40,
    "best_metric": {"name": "validation_loss", "value": 0.85},
    "method": "full",
    "stopped": "finished",
}
