"""Run by test_sharding.py in two processes: trains with weights in pieces, on the CPU.

Accelerate cuts weights on several GPUs alone, so its state is told that these processes are such; what it then does,
and torch with it, is the same code on a CPU.

Usage: sharded_processes.py FOLDER
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from PIL import Image
from torch.distributed.tensor import DTensor

from hfcap.captioners.base import Captioner
from hfcap.data.images import BytesImage
from hfcap.data.loading import CaptionDataset
from hfcap.data.source import load_split
from hfcap.recipe.blocks import GenerateOptions, Recipe
from hfcap.run.stages import make_accelerator
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.training import accelerator as module
from hfcap.training import loop, sharding
from hfcap.training.train import train_stage
from tests.captioners.itt_models import itt
from tests.training import two_processes
from tests.training.harness import plain_descent, ragged
from tests.training.two_processes import CASES as ALL_CASES
from tests.training.two_processes import case_recipe

CASES = tuple(case for case in ALL_CASES if case[1] != "scst")
CONTINUED = {"adam": "full", "adam_lora": "lora"}
"""Runs by AdamW that are trained, and trained again from their checkpoint of step 2."""


def sharding_accelerator(**arguments: Any) -> Accelerator:
    """An Accelerator of processes on the CPU that takes them for GPUs with FSDP2."""
    accelerator = Accelerator(**arguments)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


OWN_SHAPES = "own_shapes"
"""Run of an Idefics3 whose images keep their shape: its processes run layers at different times."""


def own_shapes(folder: Path, batch_size: int) -> Recipe:
    """Write the model where there is none; return the recipe that trains it."""
    model = folder / "idefics3"
    recipe = case_recipe("image_text_to_text", "full", folder, batch_size)
    options: Any = type(recipe.model)
    recipe.train.metric_for_best_model = "loss"
    recipe.train.learning_rate = 0.01
    return recipe.model_copy(update={"name": OWN_SHAPES, "model": options(pretrained=str(model), prompt="what is it?")})


def write_model(folder: Path) -> None:
    """Write the model of `own_shapes`."""
    torch.manual_seed(0)
    itt("idefics3", own=True).save(folder / "idefics3", GenerateOptions(max_new_tokens=4))


def of_many_shapes(records: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    """The records with images that are more or less wide, so that no two processes see the same shapes."""
    changed = []
    for number, record in enumerate(records):
        content = io.BytesIO()
        size = (28 * (2 + number % 5), 28 * (2 + number % 3))
        Image.open(io.BytesIO(record.image.read())).resize(size).save(content, "PNG")
        changed.append(replace(record, image=BytesImage(content.getvalue(), record.file_name)))
    return changed


def trained(recipe: Recipe, run: RunDirectory, accept_changes: bool = False) -> None:
    """Train a recipe in a folder, from the newest checkpoint that is there."""
    splits = {
        "train": ragged(load_split(recipe.data, "train")),
        "validation": load_split(recipe.data, "validation"),
    }
    if recipe.name == OWN_SHAPES:
        splits = {name: of_many_shapes(records) for name, records in splits.items()}
    train_stage(recipe, run, splits, make_accelerator(recipe, run), accept_changes)


def half_done(run: Path, copy: Path) -> None:
    """Copy a run as it stood after its checkpoint of step 2."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("step-00000004", "model", "training_summary.json"))


def main(folder: Path) -> None:
    """Train every family, exact resumption, a run that one process began, and one in bfloat16."""
    held: list[float] = []
    prepared = sharding.prepared

    def noting(
        accelerator: Accelerator, objective: Any, optimizer: Any, captioner: Captioner, dataset: CaptionDataset
    ) -> tuple[Any, Any]:
        both = prepared(accelerator, objective, optimizer, captioner, dataset)
        weights = list(captioner.model.parameters())
        assert all(isinstance(weight, DTensor) for weight in weights)
        held.append(sum(weight.to_local().numel() for weight in weights) / sum(weight.numel() for weight in weights))
        return both

    loop.prepared = noting  # type: ignore[attr-defined]
    two_processes.train_cases(folder, 2, CASES)
    for name, method in CONTINUED.items():
        recipe = case_recipe("vit_gpt2", method, folder, 2)
        recipe.train.learning_rate = 1e-3
        trained(recipe, RunDirectory(folder / name))
        if PartialState().process_index == 0:
            half_done(folder / name, folder / f"{name}_continued")
        torch.distributed.barrier()
        trained(recipe, RunDirectory(folder / f"{name}_continued"))
    loop.build_optimizer = plain_descent  # type: ignore[attr-defined]
    trained(case_recipe("clip_prefix", "full", folder, 2), RunDirectory(folder / "begun_by_one"), accept_changes=True)
    trained(own_shapes(folder, 2), RunDirectory(folder / OWN_SHAPES))
    AcceleratorState._reset_state()
    bf16 = case_recipe("clip_prefix", "full", folder, 2)
    bf16.train.mixed_precision = "bf16"
    trained(bf16, RunDirectory(folder / "bf16"))
    (folder / f"held-{PartialState().process_index}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    torch.set_num_threads(1)
    module.Accelerator = sharding_accelerator  # type: ignore[attr-defined]
    main(Path(sys.argv[1]))
