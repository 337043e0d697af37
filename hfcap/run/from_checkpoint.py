"""Captioners of checkpoints, for whoever does not want to wait for the end of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hfcap.captioners.base import Captioner
from hfcap.data.source import load_split
from hfcap.errors import UserError
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.build import build_captioner, make_trainable
from hfcap.training.checkpoint import checkpoint_path, checkpoint_steps, damage_of, load_weights, read_progress
from hfcap.training.run_record import describe_start, place_contents, read_environment, start_changes
from hfcap.training.train import save_model

Which = Literal["best", "last"]


def require_checkpoint(run: RunDirectory) -> None:
    """Refuse a run without a checkpoint.

    Raises:
        UserError: there is none.
    """
    if not checkpoint_steps(run.checkpoints):
        raise UserError(f"{run.path}: has no checkpoint yet; train first: hfcap train {run.path}")


def chosen_checkpoint(run: RunDirectory, which: Which) -> int:
    """Return the step of the newest checkpoint, or of the best one that was validated.

    Raises:
        UserError: there is none, or it is damaged.
    """
    require_checkpoint(run)
    steps = checkpoint_steps(run.checkpoints)
    step: int | None = steps[-1]
    if which == "best":
        step = read_progress(checkpoint_path(run.checkpoints, steps[-1])).best_step
        if step is None or step not in steps:
            raise UserError(f"{run.path}: no checkpoint was validated yet, so that none is the best; take the last one")
    assert step is not None
    if problem := damage_of(checkpoint_path(run.checkpoints, step)):
        raise UserError(f"{problem}; run the recipe again, and training goes on from the one before")
    return step


def save_checkpoint_model(recipe: Recipe, run: RunDirectory, which: Which, folder: Path) -> int:
    """Write the captioner of a checkpoint into a folder, as training does at its end; return the step.

    Args:
        recipe: that of the run.

    Raises:
        UserError: there is no such checkpoint, or base model or tokenizer are not those that the training began with.
    """
    step = chosen_checkpoint(run, which)
    captioner = _as_it_began(recipe, run)
    trainable = make_trainable(captioner, recipe)
    load_weights(checkpoint_path(run.checkpoints, step), captioner.model, recipe.train.ema_decay is not None)
    captioner.model.eval()
    save_model(recipe, run, trainable, folder)
    return step


def _as_it_began(recipe: Recipe, run: RunDirectory) -> Captioner:
    # Captions are needed for a tokenizer of their words alone.
    captioner = build_captioner(recipe, load_split(recipe.data, "train") if recipe.model.tokenizer is not None else [])
    now = {"start": describe_start(captioner), "places": place_contents(recipe)}
    if changes := start_changes(read_environment(run), now):
        raise UserError(
            f"{run.path}: what this run began with has changed ({'; '.join(changes)}), so that its checkpoints say "
            "nothing any more; put it back as it was"
        )
    return captioner
