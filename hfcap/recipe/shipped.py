"""Recipe files: which come with hfcap, and what a person may call them."""

from __future__ import annotations

from pathlib import Path

from hfcap.errors import UserError
from hfcap.registry import nearest

SHIPPED = Path(__file__).parents[1] / "recipes"
"""The recipes that come with hfcap: package data of a wheel; in a checkout a link to the top-level folder."""

NOT_RECIPES = {"accelerate"}
"""Folders below recipes/ whose YAML files are for other programs."""

_SUFFIXES = (".yaml", ".yml")


def find_recipes(root: Path) -> list[Path]:
    """Return all recipe files below `root`, sorted.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of recipes; install hfcap again, it is not complete")
    return sorted(
        path
        for suffix in _SUFFIXES
        for path in root.rglob(f"*{suffix}")
        if not NOT_RECIPES.intersection(path.relative_to(root).parts[:-1])
    )


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with hfcap: name (`quickstart`, `blip/folder_lora`) -> file."""
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in find_recipes(SHIPPED)}


def recipe_path(target: str) -> Path:
    """Return what a person means by a recipe: a path that exists, or else a recipe that comes with hfcap.

    The latter goes by its name, or by its path in hfcap's source (`recipes/blip/folder_lora.yaml`), as docs show it.

    Raises:
        UserError: there is neither; the message offers the nearest names.
    """
    path = Path(target)
    if path.exists():
        return path
    name = target.removeprefix("recipes/")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    recipes = shipped_recipes()
    if name in recipes:
        return recipes[name]
    close = nearest(name, recipes)
    meant = f"; did you mean {close}?" if close else "; 'hfcap list recipes' names those that come with hfcap"
    raise UserError(f"{target}: no such recipe or run directory{meant}")
