"""Run by test_two_processes.py in two processes (and there in one): trains what the arguments say.

Usage: two_processes.py FOLDER BATCH_SIZE
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.data.source import Split, load_split
from hfcap.decoding import DecodingJob, caption_batches
from hfcap.errors import StoppedError
from hfcap.recipe.blocks import GenerateOptions, Recipe
from hfcap.recipe.scst import ScstOptions
from hfcap.run.stages import Run, make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage, Prediction
from hfcap.training import assemble, checkpoint, loop, train, validation
from hfcap.training.objectives.self_critical import SampledCaptions, SelfCritical
from tests.training.harness import FAMILIES, plain_descent, ragged, tiny_recipe

CASES = (("clip_prefix", "scst"), *zip(FAMILIES, itertools.cycle(("lora", "full"))))
"""Every family once, by turns with LoRA and in full, and self-critical training."""


def case_recipe(captioner: str, method: str, folder: Path, batch_size: int) -> Recipe:
    """Two micro-batches an update; 11 images, so that the last batch is shared out unevenly."""
    recipe = tiny_recipe(
        captioner,
        folder,
        "full" if method == "scst" else method,
        dropout=0.0,
        data={"n_train": 11},
        max_steps=4,
        learning_rate=0.1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        eval_steps=2,
        max_grad_norm=0.5,
        metric_for_best_model="cider",
        ema_decay=0.9,
    )
    scst = ScstOptions(num_samples=2, max_bad_endings=1.0) if method == "scst" else None
    return recipe.model_copy(update={"name": f"{captioner}-{method}", "scst": scst})


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


def train_cases(folder: Path, batch_size: int, cases: Sequence[tuple[str, str]] = CASES) -> None:
    """Train every case on images with one to five captions, then do all stages of one."""
    originals = (assemble.SelfCritical, validation.caption_batches, loop.build_optimizer)  # type: ignore[attr-defined]
    replaced = (FirstTwo, half_of_a_caption, plain_descent)
    assemble.SelfCritical, validation.caption_batches, loop.build_optimizer = replaced  # type: ignore[attr-defined, assignment]
    for captioner, method in cases:
        recipe = case_recipe(captioner, method, folder, batch_size)
        run = RunDirectory(folder / recipe.name)
        splits = {
            "train": ragged(load_split(recipe.data, "train")),
            "validation": load_split(recipe.data, "validation"),
        }
        train.train_stage(recipe, run, splits, make_accelerator(recipe, run))
    assemble.SelfCritical, validation.caption_batches, loop.build_optimizer = originals  # type: ignore[attr-defined]
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

    loop.save_checkpoint = interrupted  # type: ignore[attr-defined, assignment]
    names: tuple[Split, ...] = ("train", "validation")
    splits = {str(name): load_split(recipe.data, name) for name in names}
    try:
        train.train_stage(recipe, run, splits, accelerator)
    except StoppedError as error:
        (folder / f"stopped-{accelerator.process_index}").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_cases(Path(sys.argv[1]), int(sys.argv[2]))
    stop_during_the_last_checkpoint(Path(sys.argv[1]))
