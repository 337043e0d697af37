"""What test_sharding.py trains: every family, by every method, in one process and in two.

Chance and rounding are taken out, so that the numbers of all of them can be compared.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.data.source import Split, load_split
from hfcap.decoding import DecodingJob, caption_batches
from hfcap.errors import StoppedError
from hfcap.files import write_json_lines
from hfcap.recipe.blocks import GenerateOptions, Recipe
from hfcap.recipe.dpo import DpoOptions
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.recipe.scst import ScstOptions
from hfcap.run.stages import Run, make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage, Prediction
from hfcap.training import assemble, checkpoint, loop, train, validation
from hfcap.training.build import TrainableCaptioner, make_trainable
from hfcap.training.objectives.self_critical import SampledCaptions, SelfCritical
from tests.training.harness import FAMILIES, plain_descent, ragged, recipe_values, tiny_recipe

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
CASES = (
    ("clip_prefix", "scst"),
    ("vit_gpt2", "dpo"),
    *([("vit_gpt2", "qlora")] if HAS_BITSANDBYTES else []),
    *zip(FAMILIES, itertools.cycle(("lora", "full"))),
)
"""Every family once, by turns with LoRA and in full; self-critical training, preferences and QLoRA."""

BLOCK = 64
"""Values that share a scale in 4-bit weights; rows must be whole blocks on a CPU."""
WIDE = "git"
"""Folder of the vision-language model that is loaded in 4 bits."""


def case_recipe(captioner: str, method: str, folder: Path, batch_size: int) -> Recipe:
    """Two micro-batches an update; 11 images, so that the last batch is shared out unevenly.

    Args:
        method: full, lora, qlora, scst, dpo, or frozen: in full but for the encoder, which runs in each epoch.
    """
    values = recipe_values(
        captioner,
        folder,
        "lora" if method in ("lora", "qlora") else "full",
        dropout=0.0,
        data={"n_train": 11} | ({"feature_store": "off"} if method == "frozen" else {}),
        max_steps=4,
        learning_rate=0.1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        eval_steps=2,
        max_grad_norm=0.5,
        metric_for_best_model="cider",
        ema_decay=0.9,
        freeze=["vision"] if method == "frozen" else [],
    )
    # Of two words, captions are made without a comparison of ways to make them, half of what such a training takes.
    values["generate"]["max_new_tokens"] = 6 if method == "scst" else 2
    if (captioner, method) == ("image_text_to_text", "qlora"):
        values["model"] = {"pretrained": str(folder / WIDE), "quantization": "4bit"}
    elif method == "qlora":
        values["lora"]["load_in_4bit"] = True
        values["model"]["decoder_config"] |= {"n_embd": BLOCK}
        values["model"]["encoder_config"] |= {"hidden_size": BLOCK, "intermediate_size": 2 * BLOCK}
    recipe = recipe_from_mapping(values | {"name": f"{captioner}-{method}"}, "case")
    # Those of people's recipes go on from a captioner that was trained; these need not.
    scst = ScstOptions(num_samples=2, max_bad_endings=1.0, kl_weight=0.1) if method == "scst" else None
    dpo = DpoOptions(pairs=str(pairs_of(recipe, folder))) if method == "dpo" else None
    return recipe.model_copy(update={"scst": scst, "dpo": dpo})


def pairs_of(recipe: Recipe, folder: Path) -> Path:
    """Write one or two pairs of captions of most training images; return the file."""
    records = load_split(recipe.data, "train")
    rows = [
        {"file_name": record.file_name, "chosen": record.captions[place], "rejected": f"a {other.captions[0]}"}
        for number, (record, other) in enumerate(zip(records, reversed(records), strict=True))
        for place in range(number % 4 and 1 + number % 2)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / "pairs.jsonl", rows)
    return folder / "pairs.jsonl"


class FirstTwo(SelfCritical):
    """Draws captions, and then takes the first two that people wrote: a draw depends on the processes, and even the
    likeliest caption on the last digit of a number."""

    def __init__(self, captioner: Captioner, options: Any, records: Sequence[CaptionedImage], *rest: Any) -> None:
        super().__init__(captioner, options, records, *rest)
        self.texts = [list(record.captions[:2] if len(record.captions) > 1 else ("a", "a red")) for record in records]

    def forward(self, batch: CaptionBatch) -> torch.Tensor:
        self.numbers = batch.numbers
        return super().forward(batch)

    def _generated(self, states: torch.Tensor, options: GenerateOptions) -> SampledCaptions:
        drawn = super()._generated(states, options)
        texts = [self.texts[number] for number in self.numbers]
        assert [len(group) for group in drawn.texts] == [len(group) for group in texts]
        tokens = [self.captioner.caption_token_ids(group, 20) for group in texts]
        return SampledCaptions(tokens, texts, np.ones((len(texts), 2), dtype=bool))


def half_of_a_caption(captioner: Captioner, job: DecodingJob, numbers: Sequence[int]) -> Iterator[list[Prediction]]:
    """Captions whatever the weights are: the first words that people wrote; the captioner's own are made as well."""
    for predictions in caption_batches(captioner, job, numbers):
        captions = {record.image_id: record.captions[0].split() for record in job.records}
        halves = [(found, captions[found.image_id]) for found in predictions]
        yield [replace(found, caption=" ".join(words[: len(words) // 2 + 1])) for found, words in halves]


def in_float32(captioner: Captioner, recipe: Recipe) -> TrainableCaptioner:
    """Make it trainable; 4-bit layers compute in float32, since bfloat16 tells batches of other sizes apart."""
    trainable = make_trainable(captioner, recipe)
    for module in captioner.model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    return trainable


def train_cases(
    folder: Path, batch_size: int, cases: Sequence[tuple[str, str]], name: str = "{}", **train_options: Any
) -> None:
    """Train every case on images with one to five captions, or go on where a checkpoint of it lies.

    Args:
        name: of the run, of which {} is captioner and method. train_options: that differ from `case_recipe`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "SelfCritical", FirstTwo)
        patch.setattr(validation, "caption_batches", half_of_a_caption)
        patch.setattr(loop, "build_optimizer", plain_descent)
        patch.setattr(train, "make_trainable", in_float32)
        for captioner, method in cases:
            recipe = case_recipe(captioner, method, folder, batch_size)
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=train_options)})
            trained(recipe, RunDirectory(folder / name.format(recipe.name)))


def trained(recipe: Recipe, run: RunDirectory) -> None:
    """Train a recipe in a folder, from the newest checkpoint that is there, which other processes may have written."""
    splits = {
        "train": ragged(load_split(recipe.data, "train")),
        "validation": load_split(recipe.data, "validation"),
    }
    train.train_stage(recipe, run, splits, make_accelerator(recipe, run), accept_changes=True)


def do_all_stages(folder: Path) -> None:
    """Train, caption, score, write a card and stage."""
    Run(tiny_recipe("vit_gpt2", folder, "lora", per_device_eval_batch_size=2)).execute("publish")


def stop_during_the_last_checkpoint(folder: Path) -> None:
    """Ctrl-C that only the second process has heard of when the last checkpoint is written."""
    recipe = case_recipe("vit_gpt2", "full", folder, 2).model_copy(update={"name": "stopped"})
    recipe.train.max_steps = 2
    run = RunDirectory(folder / recipe.name)
    accelerator = make_accelerator(recipe, run)
    save = checkpoint.save_checkpoint

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGINT)

    names: tuple[Split, ...] = ("train", "validation")
    splits = {str(name): load_split(recipe.data, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", interrupted)
        try:
            train.train_stage(recipe, run, splits, accelerator)
        except StoppedError as error:
            (folder / f"stopped-{accelerator.process_index}").write_text(str(error))
