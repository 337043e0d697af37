"""The processes that work on a run together: Accelerate as a recipe and its launcher set it up."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from hfcap.environment import slow_bfloat16
from hfcap.errors import MissingPackageError, UserError, WorkError
from hfcap.failures.system import is_cut_off
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.accelerator import new_accelerator
from hfcap.training.records import emissions

_LAUNCHER_VARIABLES = ("ACCELERATE_DYNAMO_BACKEND", "MASTER_ADDR", "WORLD_SIZE")
"""Set by accelerate's launcher always; for several processes; by launchers that really start several."""


def make_accelerator(recipe: Recipe, run: RunDirectory) -> Any:
    """Create the Accelerator of a run.

    Raises:
        MissingPackageError: a tracker in `train.report_to` is not installed.
        UserError: the precision, or the accelerate configuration, is nothing that hfcap can train with here, or several
            processes were asked for and one was started.
    """
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, ProjectConfiguration

    for tracker in recipe.train.report_to:
        # Accelerate leaves trackers out without a word.
        if importlib.util.find_spec(tracker) is None:
            raise MissingPackageError(tracker, f"train.report_to: {tracker}")
    accelerator = new_accelerator(
        recipe.train.mixed_precision,
        log_with=[tracker for tracker in recipe.train.report_to if tracker != emissions.NAME] or None,
        project_config=ProjectConfiguration(project_dir=str(run.path), logging_dir=str(run.path / "trackers")),
        # The loop accumulates; a number in the user's accelerate configuration would divide the loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Encoders carry heads that captioning does not use (poolers); their weights never get gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    _require_all_processes(accelerator)
    if recipe.train.mixed_precision == "bf16" and accelerator.is_main_process:
        slow = slow_bfloat16(accelerator.device)
        if slow:
            error_console.print(f"train.mixed_precision: {slow}; set it to no", style="yellow", markup=False)
    return accelerator


def _require_all_processes(accelerator: Any) -> None:
    """Refuse what `accelerate launch --cpu --num_processes 2` does: it sets a meeting point, and starts one process."""
    launched, meeting, counted = (name in os.environ for name in _LAUNCHER_VARIABLES)
    if launched and meeting and not counted and accelerator.num_processes == 1:
        raise UserError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs; start them with: "
            "ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 -m hfcap ..., or leave --num_processes out"
        )


@contextlib.contextmanager
def ended_together(run: RunDirectory, accelerator: Any) -> Iterator[None]:
    """End this process when another one of the same run has ended, and say so once for all of them.

    Raises:
        WorkError: another process is gone, and this is the first to notice.
        SystemExit: another one is gone, and somebody has said so; exit code 1.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not is_cut_off(error):
            raise
        try:
            run.cut_off.touch(exist_ok=False)
        except FileExistsError:
            raise SystemExit(1) from error
        raise WorkError(
            f"{run.path}: one of {accelerator.num_processes} processes is gone (it or its launcher may say why), "
            "and so all of them end; give the same command again: it goes on from what is finished"
        ) from error
