"""Run by test_sharding.py in two processes: trains data-parallel, and then with weights in pieces, on the CPU.

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

import pytest
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
from hfcap.training import loop, sharding, train
from hfcap.training.objectives.cross_entropy import CrossEntropy
from tests.captioners.helpers import build
from tests.captioners.itt_models import itt
from tests.training import two_processes
from tests.training.harness import FAMILIES, plain_descent, ragged, tiny_model
from tests.training.two_processes import BLOCK, case_recipe, trained

PARALLEL, PIECES = "parallel", "pieces"
"""Folders of what two processes train."""

CASES = (
    *two_processes.CASES,
    *(
        (family, method)
        for family in FAMILIES
        for method in ("full", "lora")
        if (family, method) not in two_processes.CASES
    ),
    ("vit_gpt2", "frozen"),
    *([("image_text_to_text", "qlora")] if two_processes.HAS_BITSANDBYTES else []),
)
ONE_OF_EACH = (*(case for case in CASES if case[0] == "vit_gpt2" and case[1] != "frozen"), ("clip_prefix", "scst"))
"""A family for each method."""
BEGUN_BY_ONE, BEGUN_BY_TWO, ROUNDED = "{}-begun-by-one", "{}-begun-by-two", "{}-rounded"


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


def write_models(folder: Path) -> None:
    """Write those that recipes name: the model of `own_shapes`, and one of whole blocks of 4-bit weights."""
    torch.manual_seed(0)
    itt("idefics3", own=True).save(folder / "idefics3", GenerateOptions(max_new_tokens=4))
    shape = {"hidden_size": BLOCK, "intermediate_size": 2 * BLOCK}
    config = {**tiny_model("image_text_to_text", dropout=0.0)["from_config"], **shape}
    config["vision_config"] = {**config["vision_config"], **shape}
    build("image_text_to_text", from_config=config).save(folder / two_processes.WIDE, GenerateOptions())


def of_many_shapes(records: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    """The records with images that are more or less wide, so that no two processes see the same shapes."""
    changed = []
    for number, record in enumerate(records):
        content = io.BytesIO()
        size = (28 * (2 + number % 5), 28 * (2 + number % 3))
        Image.open(io.BytesIO(record.image.read())).resize(size).save(content, "PNG")
        changed.append(replace(record, image=BytesImage(content.getvalue(), record.file_name)))
    return changed


def train_own_shapes(folder: Path, batch_size: int) -> None:
    """Train an Idefics3 by plain descent on images of many shapes."""
    recipe, run = own_shapes(folder, batch_size), RunDirectory(folder / OWN_SHAPES)
    splits = {name: load_split(recipe.data, name) for name in ("train", "validation")}
    splits["train"] = ragged(splits["train"])
    changed = {name: of_many_shapes(records) for name, records in splits.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_optimizer", plain_descent)
        train.train_stage(recipe, run, changed, make_accelerator(recipe, run))


def half_done(run: Path, copy: Path) -> None:
    """Copy a run as it stood after its checkpoint of step 2."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("step-00000004", "model", "training_summary.json"))


def train_twice(captioner: str, method: str, folder: Path) -> None:
    """Train by AdamW, with samples that are drawn, and once more from the checkpoint of step 2."""
    recipe = case_recipe(captioner, method, folder, 2)
    recipe.train.learning_rate = 1e-3
    whole, continued = folder / f"adam-{method}", folder / f"adam-{method}-continued"
    trained(recipe, RunDirectory(whole))
    if PartialState().process_index == 0:
        half_done(whole, continued)
    torch.distributed.barrier()
    trained(recipe, RunDirectory(continued))


def in_pieces(folder: Path) -> None:
    """Train every case, exact resumption, a run that one process began, images of all shapes, and one in bfloat16."""
    held: list[float] = []
    prepared = sharding.prepared

    def noting(
        accelerator: Accelerator, objective: CrossEntropy, optimizer: Any, captioner: Captioner, dataset: CaptionDataset
    ) -> tuple[Any, Any]:
        both = prepared(accelerator, objective, optimizer, captioner, dataset)
        weights = [*captioner.model.parameters(), *(objective.start.parameters() if objective.start else ())]
        assert all(isinstance(weight, DTensor) for weight in weights)
        held.append(sum(weight.to_local().numel() for weight in weights) / sum(weight.numel() for weight in weights))
        return both

    loop.prepared = noting  # type: ignore[attr-defined]
    two_processes.train_cases(folder, 2, CASES)
    two_processes.do_all_stages(folder)
    for case in ONE_OF_EACH:
        train_twice(*case, folder)
    two_processes.train_cases(folder, 2, ONE_OF_EACH, BEGUN_BY_ONE)
    train_own_shapes(folder, 2)
    AcceleratorState._reset_state()
    two_processes.train_cases(folder, 2, ONE_OF_EACH, ROUNDED, mixed_precision="bf16", max_steps=1)
    (folder / f"held-{PartialState().process_index}.json").write_text(json.dumps(held))


def data_parallel(folder: Path) -> None:
    """Train some cases; do all stages; stop in the middle."""
    two_processes.train_cases(folder, 2, two_processes.CASES)
    two_processes.do_all_stages(folder)
    train_twice("clip_prefix", "scst", folder)
    two_processes.stop_during_the_last_checkpoint(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    data_parallel(Path(sys.argv[1]) / PARALLEL)
    AcceleratorState._reset_state()
    module.Accelerator = sharding_accelerator  # type: ignore[attr-defined]
    in_pieces(Path(sys.argv[1]) / PIECES)
