"""Runs from Python: a recipe with changes -> a run directory brought up to a stage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.progress import reported
from hfcap.run_directory import RunDirectory

if TYPE_CHECKING:
    import torch

    from hfcap.captioning import ImageCaptioner
    from hfcap.recipe import Recipe
    from hfcap.schema import ScoreReport
    from hfcap.stages import Run, StageName


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
        trust_remote_code: of a run directory whose recipe allows code that came with a model: let it run.
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
        run = execute(recipe, override_texts(overrides), until, force, trust_remote_code)
    return TrainedRun(run.directory.path)


def execute(
    target: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] | None,
    last: StageName,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Run:
    """Bring a recipe or run directory up to a stage.

    Raises:
        UserError: a run directory, which somebody else may have made, allows itself to run code that came with it.
    """
    from hfcap.stages import STAGES, Run

    if last not in STAGES:
        raise UserError(f"no stage {last!r}; choose one of {', '.join(STAGES)}")
    recipe = recipe_of(target, overrides)
    is_run = isinstance(target, str | os.PathLike) and Path(target).is_dir()
    if is_run and recipe.model.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"{target}: model.trust_remote_code of its recipe lets code that came with a model run on this machine; "
            "give --trust-remote-code if the run is yours or you trust its author"
        )
    run = Run(recipe)
    run.execute(last, force)
    return run


def recipe_of(
    target: str | os.PathLike[str] | Mapping[str, Any] | Recipe, overrides: Sequence[str] | None = None
) -> Recipe:
    """Load a recipe by its file or name, or the recipe of a run directory; or check one given as an object.

    Raises:
        RecipeError: the recipe or an override is wrong; names every problem.
        UserError: there is no such recipe.
    """
    from hfcap.recipe import Recipe
    from hfcap.recipe_files import recipe_path
    from hfcap.recipe_loading import load_recipe, recipe_from_mapping

    if isinstance(target, str | os.PathLike):
        path = recipe_path(os.fspath(target))
        if path.is_dir():
            path = RunDirectory.existing(path).recipe
        return load_recipe(path, overrides or [])
    values = target.model_dump(mode="json") if isinstance(target, Recipe) else target
    return recipe_from_mapping(values, "recipe", overrides or [])


def run_directory_of(target: str | os.PathLike[str]) -> Path:
    """Return a run directory as it is; of a recipe, where its run is."""
    if Path(target).is_dir():
        return Path(target)
    recipe = recipe_of(target)
    return Path(recipe.output_dir) / recipe.name


def override_texts(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as the command line writes them: `block.key=value`, values as JSON (which is YAML)."""
    return [f"{key}={json.dumps(value, default=str)}" for key, value in _leaves(overrides, "")]


def _leaves(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
