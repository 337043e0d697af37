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
    from hfcap.recipe import Recipe
    from hfcap.stages import Run, StageName

app = typer.Typer(
    help="Compare, cheaply fine-tune and publish image captioners on the Hugging Face stack.",
    epilog="First: hfcap list recipes, then hfcap run RECIPE. Each command explains itself: hfcap run --help.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeOrRun = Annotated[
    str, typer.Argument(help="recipe: file, or name ('hfcap list recipes'); or run directory", show_default=False)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="recipe keys to change, key=value", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="do this stage again although its output is there")]
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


def recipe_of(target: str, overrides: list[str] | None) -> Recipe:
    """Load a recipe by its file or name, or the recipe of a run directory."""
    from hfcap.api import runs

    return runs.recipe_of(target, overrides)


def run_directory_of(target: str) -> Path:
    """Return a run directory as it is; of a recipe, where its run is."""
    from hfcap.api import runs

    return runs.run_directory_of(target)


def say(text: str) -> None:
    """Print a result as it is: paths are neither wrapped nor read as markup; strangers' text commands no terminal."""
    console.print(printable(text, "\n\t"), markup=False, soft_wrap=True)


def execute(
    target: str,
    overrides: list[str] | None,
    last: StageName,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Run:
    """Bring a recipe or run directory up to a stage."""
    from hfcap.api import runs
    from hfcap.captioners.parts import quiet_loading

    quiet_loading()
    return runs.execute(target, overrides, last, force, trust_remote_code)


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
                f"torchvision {ours} cannot be imported beside torch {torch} ({reason}): install the two that belong "
                "together (pip install --upgrade torch torchvision), or remove torchvision, which only timm and some "
                "vision-language models need (pip uninstall torchvision)"
            )
    return None
