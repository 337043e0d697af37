"""Run by test_two_processes.py in two processes (and there in one): trains what the arguments say.

Usage: two_processes.py FOLDER BATCH_SIZE
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from hfcap.data.source import Split, load_split
from hfcap.errors import StoppedError
from hfcap.recipe import GenerateOptions, Recipe
from hfcap.recipe_scst import ScstOptions
from hfcap.run_directory import RunDirectory
from hfcap.stages import Run, make_accelerator
from hfcap.training import checkpoint, loop, stage
from hfcap.training.self_critical import SelfCritical
from tests.training.harness import FAMILIES, ragged, tiny_recipe

CASES = (("clip_prefix", "scst"), *zip(FAMILIES, itertools.cycle(("lora", "full"))))
"""Every family once, by turns with LoRA and in full, and self-critical training."""


def case_recipe(captioner: str, method: str, folder: Path, batch_size: int) -> Recipe:
    """Two micro-batches an update; 11 pictures, so that the last batch is shared out unevenly."""
    recipe = tiny_recipe(
        captioner,
        folder,
        "full" if method == "scst" else method,
        dropout=0.0,
        data={"n_train": 11},
        max_steps=4,
        learning_rate=1e-3,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        eval_steps=2,
        max_grad_norm=0.5,
        metric_for_best_model="cider",
        ema_decay=0.9,
    )
    scst = ScstOptions(num_samples=2, max_bad_endings=1.0) if method == "scst" else None
    return recipe.model_copy(update={"name": f"{captioner}-{method}", "scst": scst})


class BestTwo(SelfCritical):
    """Takes the two captions that beam search finds: samples that do not depend on how many processes draw them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sampling = GenerateOptions(num_beams=2, num_return_sequences=2, max_new_tokens=5)


def train_cases(folder: Path, batch_size: int) -> None:
    """Train every case on pictures with one to five captions, then do all stages of one."""
    for captioner, method in CASES:
        recipe = case_recipe(captioner, method, folder, batch_size)
        run = RunDirectory(folder / recipe.name)
        splits = {
            "train": ragged(load_split(recipe.data, "train")),
            "validation": load_split(recipe.data, "validation"),
        }
        stage.SelfCritical = BestTwo  # type: ignore[attr-defined, assignment]
        stage.train_stage(recipe, run, splits, make_accelerator(recipe, run))
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
        stage.train_stage(recipe, run, splits, accelerator)
    except StoppedError as error:
        (folder / f"stopped-{accelerator.process_index}").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_cases(Path(sys.argv[1]), int(sys.argv[2]))
    stop_during_the_last_checkpoint(Path(sys.argv[1]))
