"""Whether what a recipe trains can be published, known before it is trained."""

from __future__ import annotations

from pathlib import Path

from hfcap.captioners.loading import is_run_directory
from hfcap.errors import UserError
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.text import printable


def adapter_without_base(recipe: Recipe) -> tuple[str, str, str] | None:
    """Return key, problem and remedy where LoRA is trained on a folder of this machine, which strangers do not have.

    The base of a run directory is merged when it is published.
    """
    pretrained, options = recipe.model.pretrained, recipe.publish
    if recipe.lora is None or options.merged or options.base_model or pretrained is None:
        return None
    if not Path(pretrained).is_dir() or is_run_directory(pretrained):
        return None
    return (
        "publish",
        f"an adapter needs a base model on the Hub to be published, and model.pretrained is a folder ({pretrained})",
        "set publish.base_model to the Hub id of the same weights, or publish.merged: true to publish merged weights",
    )


def say_of_missing_base(recipe: Recipe) -> None:
    """Warn, before a run, of an adapter that cannot be published at its end.

    Raises:
        UserError: the recipe names the repository that it is to be published to.
    """
    problem = adapter_without_base(recipe)
    if problem is None:
        return
    key, what, remedy = problem
    if recipe.publish.repo_id is not None:
        raise UserError(f"{key}: {what}; {remedy}")
    said = f"warning: {key}: {what}; the run ends with scores and card; {remedy}"
    error_console.print(printable(said), markup=False, soft_wrap=True)
