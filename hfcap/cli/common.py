"""What the commands share: the app, argument types, and the way from a recipe or run directory to a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfcap.errors import UserError
from hfcap.files import check_can_write
from hfcap.progress import console
from hfcap.text import printable

if TYPE_CHECKING:
    from hfcap.recipe.blocks import Recipe
    from hfcap.run.stages import Run, StageName
    from hfcap.run_directory.paths import RunDirectory

app = typer.Typer(
    help="Compare, cheaply fine-tune and publish image captioners on the Hugging Face stack.",
    epilog="First: hfcap list recipes, then hfcap run RECIPE. Each command explains itself: hfcap run --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeOrRun = Annotated[
    str, typer.Argument(help="recipe: file, or name ('hfcap list recipes'); or run directory", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="recipe keys to change, key=value", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="do this stage again although its output is there")]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes", help="go on although data, base model or training keys are not those the run began with"
    ),
]
Finish = Annotated[
    bool,
    typer.Option("--finish", help="end a stopped training at its last checkpoint; the best one so far is kept"),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that comes with the model; only if you trust its author")
]


def _checked_output(folder: bool) -> Callable[[Path | None], Path | None]:
    def check(path: Path | None) -> Path | None:
        if path is not None:
            check_can_write(path, folder)
        return path

    return check


def output_file(help_text: str) -> Any:
    """`-o FILE`, refused before any work where no file can be written."""
    return typer.Option("-o", "--output", help=help_text, callback=_checked_output(folder=False))


def output_folder(help_text: str) -> Any:
    """`-o FOLDER`, refused before any work where no folder can be written."""
    return typer.Option("-o", "--output", help=help_text, callback=_checked_output(folder=True))


def refuse_idle(reason: str, **options: object) -> None:
    """Refuse options that would be ignored.

    Args:
        reason: why they would be, and what to do instead.
        options: value of each by its name; None and False are not given.

    Raises:
        UserError: names every option that is given.
    """
    given = [
        f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None and value is not False
    ]
    if given:
        raise UserError(f"{', '.join(given)}: {reason}")


def given_options(**options: Any) -> dict[str, Any]:
    """Return the options that somebody gave."""
    return {name: value for name, value in options.items() if value is not None}


def recipe_of(target: str, overrides: list[str] | None, trust_remote_code: bool) -> tuple[Recipe, RunDirectory]:
    """Load a recipe file, or the recipe of a run directory, and say where its run is; see hfcap/api/runs.py."""
    from hfcap.api import runs

    return runs.recipe_of(target, overrides, trust_remote_code)


def say(text: str) -> None:
    """Print a result as it is: paths are neither wrapped nor read as markup; strangers' text commands no terminal."""
    console.print(printable(text, "\n\t"), markup=False, soft_wrap=True)


def execute(
    target: str,
    overrides: list[str] | None,
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
    from hfcap.api import runs
    from hfcap.captioners.quiet import quiet_loading

    quiet_loading()
    return runs.execute(target, overrides, last, force, trust_remote_code, accept_changes, finish)


def broken_torchvision(error: BaseException) -> str | None:
    """Return what is wrong with torchvision, and the remedy, where that is why something could not be imported.

    torchvision is built for one version of torch. With another one its import fails, and transformers, which takes it
    wherever it is installed, says only that it could not import a module of its own.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())
        if isinstance(error, ImportError) or "torchvision" in reason:
            ours, torch = (metadata.version(name) for name in ("torchvision", "torch"))
            return (
                f"torchvision {ours} cannot be imported next to torch {torch} ({reason}): install the two that belong "
                "together (pip install --upgrade torch torchvision), or remove torchvision, which only timm and some "
                "vision-language models need (pip uninstall torchvision)"
            )
    return None
