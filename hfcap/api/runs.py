"""Runs from Python: a recipe with changes -> a run directory brought up to a stage."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.progress import error_console, reported
from hfcap.run_directory.paths import RunDirectory

if TYPE_CHECKING:
    import torch

    from hfcap.captioning import ImageCaptioner
    from hfcap.recipe.blocks import Recipe
    from hfcap.run.stages import Run, StageName
    from hfcap.schema import ScoreReport


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run directory with a trained captioner; it stands for its folder wherever a path is taken.

    Attributes:
        folder: the run directory.
    """

    folder: Path

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @property
    def model(self) -> Path:
        """Folder of the trained weights: from_pretrained layout, or a PEFT adapter."""
        return RunDirectory(self.folder).model

    @property
    def card(self) -> Path:
        """The model card, which the stage "card" writes."""
        return RunDirectory(self.folder).card

    @property
    def summary(self) -> dict[str, Any]:
        """What training cost and which checkpoint was kept (training_summary.json)."""
        values: dict[str, Any] = read_json(RunDirectory(self.folder).summary, "training summary")
        return values

    def scores(self, split: str | None = None) -> ScoreReport:
        """Return the scores of a split; default: the one that the recipe scores.

        Raises:
            UserError: it was not scored (train it `until="score"`).
        """
        from hfcap.comparison import read_system

        return read_system(self.folder, split).report

    def load(self, *, device: str | torch.device | None = None, trust_remote_code: bool = False) -> ImageCaptioner:
        """Load the trained captioner; see `hfcap.load_captioner`."""
        from hfcap.captioning import load_captioner

        return load_captioner(self, device=device, trust_remote_code=trust_remote_code)


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    /,
    *,
    until: StageName = "train",
    force: bool = False,
    accept_changes: bool = False,
    finish: bool = False,
    trust_remote_code: bool = False,
    progress: bool = False,
    **overrides: Any,
) -> TrainedRun:
    """Train the captioner of a recipe, and go on up to a later stage where asked for, as `hfcap run` does.

    Finished stages are skipped, and a stopped training goes on from its last checkpoint.

    Args:
        recipe: file, name of a recipe that comes with hfcap, run directory, nested mapping, or Recipe.
        until: the last stage: train, caption, score, card or publish. Only "publish" sends anything anywhere, and
            only with `publish.repo_id` in the recipe.
        force: do the last stage again although its output is there.
        accept_changes: go on although data, base model or keys of the training are not those that the run began with.
        finish: end a training that was stopped at its last checkpoint, with the best of its checkpoints.
        trust_remote_code: let code that came with the base model run, as the recipe's `model.trust_remote_code` does;
            a run directory that says so needs it here as well.
        progress: show bars and messages on the terminal; otherwise they go to the logger "hfcap".
        overrides: keys of the recipe: blocks as mappings, which change only the keys they name
            (`train={"max_steps": 500}`), or dotted keys (`**{"train.max_steps": 500}`); None removes a block.

    Raises:
        RecipeError: the recipe or an override is wrong; names every problem.
        UserError: data or models are not there, or the run directory belongs to another recipe.
        WorkError: training cannot go on.
        StoppedError: Ctrl-C; what is done is kept.
    """
    from hfcap.captioners.quiet import quiet_libraries

    with reported(progress), quiet_libraries(hub_bars=progress):
        run = execute(recipe, override_texts(overrides), until, force, trust_remote_code, accept_changes, finish)
    return TrainedRun(run.directory.path)


def execute(
    target: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | None,
    last: StageName,
    force: bool = False,
    trust_remote_code: bool = False,
    accept_changes: bool = False,
    finish: bool = False,
) -> Run:
    """Bring a recipe or run directory up to a stage.

    Raises:
        UserError: see `recipe_of`; or data, base model or recipe are not those that the run began with.
    """
    from hfcap.run.stages import STAGES, Run

    if last not in STAGES:
        raise UserError(f"no stage {last!r}; choose one of {', '.join(STAGES)}")
    recipe, directory = recipe_of(target, overrides, trust_remote_code)
    if finish and force:
        raise UserError("finish: ends a training that was begun, and force begins it again; give one of them")
    run = Run(recipe, directory=directory, accept_changes=accept_changes, finish=finish)
    run.execute(last, force)
    return run


def recipe_of(
    target: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> tuple[Recipe, RunDirectory]:
    """Load a recipe, or that of a run directory, and say where its run is: the one gate of commands and functions.

    A run directory is where it stands. Somebody else may have made it: its recipe names no programs
    (run_directory/recipe.py), and code of its model runs only with `trust_remote_code`. A recipe file is the word of
    whoever names it. `trust_remote_code` is the key `model.trust_remote_code`, said by whoever calls.

    Raises:
        RecipeError: the recipe or an override is wrong; names every problem.
        UserError: nothing is there, or a run directory lets code run and nobody said that it may.
    """
    from hfcap.recipe.blocks import Recipe
    from hfcap.recipe.loading import load_recipe, recipe_from_mapping
    from hfcap.recipe.shipped import recipe_path
    from hfcap.run_directory.recipe import recipe_of_run, run_directory_at

    if not isinstance(target, str | os.PathLike):
        values = target.model_dump(mode="json") if isinstance(target, Recipe) else target
        recipe = _trusting(recipe_from_mapping(values, "recipe", overrides or []), trust_remote_code)
        return recipe, RunDirectory(Path(recipe.output_dir) / recipe.name)
    run = run_directory_at(Path(target)) if Path(target).exists() else None
    if run is None:
        recipe = _trusting(load_recipe(recipe_path(os.fspath(target)), overrides or []), trust_remote_code)
        return recipe, RunDirectory(Path(recipe.output_dir) / recipe.name)
    recipe = recipe_of_run(run, overrides or [])
    if recipe.model.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"{target}: model.trust_remote_code of its recipe lets code that came with a model run on this machine; "
            "give --trust-remote-code (trust_remote_code=True) if the run is yours or you trust its author"
        )
    recipe = _trusting(recipe, trust_remote_code)
    renamed = [key for key in ("name", "output_dir") if any(text.startswith(f"{key}=") for text in overrides or [])]
    if not renamed:
        return recipe, run
    # The person's own words: another run, next to this one.
    place = Path(recipe.output_dir) if "output_dir" in renamed else run.path.parent
    return recipe, RunDirectory(place / (recipe.name if "name" in renamed else run.path.name))


def _trusting(recipe: Recipe, trust_remote_code: bool) -> Recipe:
    if not trust_remote_code or recipe.model.trust_remote_code:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"trust_remote_code": True})})


@contextmanager
def checkpoint_model(
    target: str, checkpoint: Literal["best", "last"] | None, trust_remote_code: bool = False
) -> Iterator[str]:
    """Give a model folder with the captioner of a run's checkpoint, for the length of the block.

    Args:
        target: run directory.
        checkpoint: None = what `target` names is given as it is.

    Raises:
        UserError: not a run directory, or it has no such checkpoint.
    """
    if checkpoint is None:
        yield target
        return
    from hfcap.run.from_checkpoint import save_checkpoint_model

    recipe, place = recipe_of(target, None, trust_remote_code)
    run = RunDirectory.existing(place.path)
    with tempfile.TemporaryDirectory(prefix="hfcap-checkpoint-") as folder:
        step = save_checkpoint_model(recipe, run, checkpoint, Path(folder))
        error_console.print(f"Captioning with the checkpoint of step {step:,}")
        yield folder


def override_texts(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as the command line writes them: `block.key=value`, values as JSON (which is YAML)."""
    return [f"{key}={json.dumps(value, default=str)}" for key, value in _leaves(overrides, "")]


def _leaves(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
