"""The recipe of a run directory, which somebody else may have made, and paths of recipes that hold from every folder.

A run directory names no programs: what its recipe says about them is left out, and the command line or the environment
chooses. Its model's own code needs --trust-remote-code (`recipe_of` in api/runs.py).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap import registry
from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.places import Place, absolute, changed_place, place_of, with_changed_places
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import load_recipe, recipe_from_mapping
from hfcap.run_directory.paths import RunDirectory

_MADE_BY_RUNS = ("stages.json", "environment.json", "training_summary.json")


def run_directory_at(path: Path) -> RunDirectory | None:
    """Return the run directory that a folder is, or that a `recipe.yaml` lies in; None for any other recipe file.

    Raises:
        UserError: a folder without recipe, or a published model, which carries its recipe next to the weights.
    """
    if path.is_dir():
        run = RunDirectory.existing(_with_name(path))
        if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(
                f"{path}: is a published model, not a run directory; caption with it (hfcap caption {path} IMAGE), or "
                f"begin a run with its recipe: hfcap run {run.recipe} name=NAME"
            )
        return run
    made = path.name == "recipe.yaml" and any((path.parent / name).is_file() for name in _MADE_BY_RUNS)
    return RunDirectory(_with_name(path.parent)) if made else None


def _with_name(folder: Path) -> Path:
    """Return the folder under its own name, where it is called `.` or `..`."""
    return folder.resolve() if folder.name in ("", "..") else folder


def recipe_of_run(run: RunDirectory, overrides: Sequence[str] = ()) -> Recipe:
    """Load the recipe of a run directory; overrides are the person's own words and may name programs.

    Raises:
        UserError: the recipe or an override is wrong.
    """
    recipe = with_absolute_places(_moved(_without_programs(load_recipe(run.recipe), run), run))
    if not overrides:
        return recipe
    return with_absolute_places(recipe_from_mapping(recipe.model_dump(mode="json"), str(run.recipe), overrides))


def with_absolute_places(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """Return the recipe with paths that mean the same from every folder.

    Args:
        folder: what relative ones are relative to; None = the working directory.
    """
    here = Path.cwd() if folder is None else folder
    return _with_changed_places(recipe, functools.partial(absolute, folder=here))


def _with_changed_places(recipe: Recipe, change: Any) -> Recipe:
    recipe = with_changed_places(recipe, change)
    given = recipe.score.metric_options
    changed: dict[str, dict[str, Any]] = {}
    for name, options in given.items():
        fields = registry.load("metrics", name).REGISTERED.options_class.model_fields
        changed[name] = {key: changed_place(fields[key], value, change) for key, value in options.items()}
    if changed == given:
        return recipe
    return recipe.model_copy(update={"score": recipe.score.model_copy(update={"metric_options": changed})})


def _without_programs(recipe: Recipe, run: RunDirectory) -> Recipe:
    """Leave out of a run's recipe what would be run on this machine."""
    kept: dict[str, dict[str, Any]] = {}
    for name, options in recipe.score.metric_options.items():
        kept[name] = options_without_programs(name, options)
        for key in options.keys() - kept[name].keys():
            full = f"score.metric_options.{name}.{key}"
            _say_once(
                f"warning: {run.recipe}: {full} is not used, because a run directory may be somebody else's and cannot "
                f"choose programs; give it yourself: hfcap run {run.path} {full}=PATH, or in the environment"
            )
    score = recipe.score.model_copy(update={"metric_options": kept})
    return recipe if kept == recipe.score.metric_options else recipe.model_copy(update={"score": score})


def options_without_programs(metric: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a metric without those that name a program to run."""
    fields = registry.load("metrics", metric).REGISTERED.options_class.model_fields
    marks = {key: place_of(fields[key]) for key in options}
    return {key: value for key, value in options.items() if (mark := marks[key]) is None or not mark.program}


@functools.cache
def _say_once(text: str) -> None:
    error_console.print(text, markup=False, soft_wrap=True)


def place_of_work(run: RunDirectory) -> dict[str, str]:
    """Return where commands are given now, to be kept in the run directory: itself, and as seen from the run."""
    here = Path.cwd()
    return {"path": str(here), "from_run": os.path.relpath(here, run.path.absolute())}


def _moved(recipe: Recipe, run: RunDirectory) -> Recipe:
    """Find files again that moved together with the run directory, as a whole project does."""
    noted = _noted_place_of_work(run)
    if noted is None:
        return recipe
    old, new = Path(noted["path"]), Path(os.path.normpath(run.path.absolute() / noted["from_run"]))

    def change(text: str, place: Place) -> str:
        path = Path(text).expanduser()
        if old == new or not path.is_absolute() or path.exists() or not path.is_relative_to(old):
            return text
        candidate = new / path.relative_to(old)
        return str(candidate) if candidate.exists() else text

    return _with_changed_places(recipe, change)


def _noted_place_of_work(run: RunDirectory) -> dict[str, str] | None:
    try:
        noted = read_json(run.stages, "record of finished stages").get("working_directory")
    except (UserError, AttributeError):
        return None  # not there or damaged: what reads it for its stages says so
    good = isinstance(noted, Mapping) and all(isinstance(noted.get(key), str) for key in ("path", "from_run"))
    return dict(noted) if good else None
