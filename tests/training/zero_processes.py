"""Run by test_zero.py in two processes: trains with DeepSpeed on the CPU.

Accelerate starts DeepSpeed with GPUs alone, unless its processes are there already: so they are made on the CPU first.

Usage: zero_processes.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState

from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.training import assemble, loop, sharding, validation
from tests.training import two_processes
from tests.training.harness import plain_descent
from tests.training.sharded_processes import half_done
from tests.training.two_processes import FirstTwo, half_of_a_caption, trained

CASES = (*("-".join(case) for case in two_processes.CASES if case[1] not in ("dpo", "qlora")), "vit_gpt2-full")
AVERAGED = "clip_prefix-full-averaged"
"""A case with a moving average of the weights."""


def recipe_of(case: str, folder: Path, batch_size: int) -> Recipe:
    """The recipe of a case, without a moving average but where the case is about it."""
    captioner, method, *averaged = case.split("-")
    recipe = two_processes.case_recipe(captioner, method, folder, batch_size)
    recipe.train.ema_decay = 0.9 if averaged else None
    return recipe


def by_adam(folder: Path, batch_size: int) -> Recipe:
    """Two groups of weights for each part, of which DeepSpeed itself finds the state of the first alone."""
    recipe = recipe_of("vit_gpt2-full", folder, batch_size)
    recipe.train.learning_rate = 1e-3
    return recipe


def replace_chance(put: Callable[[Any, str, Any], None]) -> None:
    """Let captions be the same in any number of processes."""
    put(assemble, "SelfCritical", FirstTwo)
    put(validation, "caption_batches", half_of_a_caption)


def configure(folder: Path) -> None:
    """Set what `accelerate launch` would."""
    path = folder / f"deepspeed-{os.environ['RANK']}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    del os.environ["ACCELERATE_USE_CPU"]


def note_what_is_held(folder: Path) -> None:
    """Write which part of the weights that the optimiser has this process holds."""
    prepare = sharding.prepared_by_zero  # type: ignore[attr-defined]

    def noting(accelerator: Any, objective: Any, optimizer: Any) -> tuple[Any, Any]:
        both: tuple[Any, Any] = prepare(accelerator, objective, optimizer)
        pieces = both[0].optimizer.single_partition_of_fp32_groups
        n_trained = sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)
        share = sum(map(torch.numel, pieces)) / n_trained
        (folder / f"held-{accelerator.process_index}").write_text(str(share))
        return both

    sharding.prepared_by_zero = noting  # type: ignore[attr-defined]


def main(folder: Path) -> None:
    """Train every case by plain descent; by AdamW in one go, and from checkpoints; in bfloat16."""
    build = loop.build_optimizer  # type: ignore[attr-defined]
    loop.build_optimizer = plain_descent  # type: ignore[attr-defined]
    for case in (*CASES, AVERAGED):
        trained(recipe_of(case, folder, 2), RunDirectory(folder / case))
    loop.build_optimizer = build  # type: ignore[attr-defined]
    note_what_is_held(folder)
    recipe = by_adam(folder, 2)
    trained(recipe, RunDirectory(folder / "adam"))
    if PartialState().process_index == 0:
        half_done(folder / "adam", folder / "adam_continued")
    torch.distributed.barrier()
    trained(recipe, RunDirectory(folder / "adam_continued"))
    trained(recipe, RunDirectory(folder / "begun_by_one"))
    recipe = recipe_of("vit_gpt2-full", folder, 2)
    recipe.train.mixed_precision = "bf16"
    trained(recipe, RunDirectory(folder / "bf16"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    replace_chance(setattr)
    PartialState(cpu=True)
    configure(Path(sys.argv[1]))
    main(Path(sys.argv[1]))
