"""Commands for a run: run, train, doctor, and what recipes may say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hfcap.cli.common import (
    AcceptChanges,
    Finish,
    Force,
    Overrides,
    RecipeOrRun,
    TrustRemoteCode,
    app,
    execute,
    output_folder,
    recipe_of,
    say,
)
from hfcap.errors import UserError
from hfcap.progress import console


@app.command()
def run(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    accept_changes: AcceptChanges = False,
    finish: Finish = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Do every stage: train, caption, score, write the card, publish. Finished stages are skipped."""
    done = execute(recipe, overrides, "publish", False, trust_remote_code, accept_changes, finish)
    if done.accelerator.is_main_process:
        done.print_scores()
        say(f"Run directory: {done.directory.path}")
        say(f"Card:          {done.directory.card}")
        if done.directory.publish.is_dir():
            say(f"To publish:    {done.directory.publish}")
        trust = " --trust-remote-code" if done.recipe.model.trust_remote_code else ""
        say(f"Next, caption an image of your own:  hfcap caption {done.directory.path} IMAGE.jpg{trust}")


@app.command()
def train(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    force: Force = False,
    accept_changes: AcceptChanges = False,
    finish: Finish = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train, or continue training, up to the finished model."""
    done = execute(recipe, overrides, "train", force, trust_remote_code, accept_changes, finish)
    if done.accelerator.is_main_process:
        say(f"Model: {done.directory.model}")


@app.command()
def doctor(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    output: Annotated[Path | None, output_folder("folder for doctor.json and contact_sheet.png")] = None,
    steps: Annotated[int, typer.Option(min=0, help="training steps to measure; 0 = no memory and time estimate")] = 3,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check labels, data, LoRA targets, memory and time before any training; exits with 1 if an error is found."""
    from hfcap.captioners.quiet import quiet_loading
    from hfcap.doctor import examine

    quiet_loading()
    chosen, directory = recipe_of(recipe, overrides, trust_remote_code)
    # Beside the run directory, which the doctor never touches.
    place = output or directory.path.parent / f"{directory.path.name}.doctor"
    if not examine(chosen, place, steps):
        raise typer.Exit(1)


@app.command("list")
def list_entries(
    kind: Annotated[
        Literal["captioners", "recipes", "metrics", "sources", "layouts"] | None,
        typer.Argument(help="default: all but layouts"),
    ] = None,
    folder: Annotated[bool, typer.Option("--folder", help="only say where the recipes lie, to copy one")] = False,
) -> None:
    """List captioners, recipes, metrics, data sources, or the layouts of source folder."""
    from hfcap.recipe.shipped import SHIPPED, shipped_recipes
    from hfcap.registry import names

    if folder:
        if kind != "recipes":
            raise UserError("--folder: only recipes are files to copy; write 'hfcap list recipes --folder'")
        say(str(SHIPPED.resolve()))
        return
    if kind == "layouts":
        from hfcap.data.tables.layouts import LAYOUTS

        for layout in LAYOUTS:
            say(f"{layout.name}: {layout.title}")
        return
    for one in [kind] if kind else ["captioners", "sources", "metrics", "recipes"]:
        entries = list(shipped_recipes()) if one == "recipes" else names(one)
        if kind is None:
            console.print(one, style="bold")
        for entry in entries:
            say(f"{'' if kind else '  '}{entry}{_explained(entry) if one == 'metrics' else ''}")


def _explained(metric: str) -> str:
    """What a metric is, and its options."""
    from hfcap.metrics.suite import metric_class

    found = metric_class(metric)
    options = ", ".join(found.options_class.model_fields)
    return f": {found.summary}{f' [options: {options}]' if options else ''}"


@app.command("recipe-schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for completion in editors."""
    from hfcap.recipe.loading import recipe_json_schema

    sys.stdout.write(json.dumps(recipe_json_schema(), indent=2) + "\n")
