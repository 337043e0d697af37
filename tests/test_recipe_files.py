"""A recipe is found by its path or its name, wherever hfcap is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfcap.errors import UserError
from hfcap.recipe.loading import load_recipe
from hfcap.recipe.shipped import SHIPPED, find_recipes, recipe_path, shipped_recipes

ROOT = Path(__file__).resolve().parents[1]


def test_find_recipes_searches_below_and_skips_other_programs_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "x/a.yml", "x/y/c.yaml", "accelerate/cpu.yaml", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in find_recipes(tmp_path)] == ["b.yaml", "x/a.yml", "x/y/c.yaml"]
    with pytest.raises(UserError, match="no such folder"):
        find_recipes(tmp_path / "none")


def test_those_of_the_checkout_are_those_that_come_with_hfcap() -> None:
    assert SHIPPED.resolve() == ROOT / "recipes"
    named = {path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in find_recipes(ROOT / "recipes")}
    assert set(shipped_recipes()) == named >= {"quickstart", "blip/folder_lora"}
    assert not any(name.startswith("accelerate") for name in named)


@pytest.mark.parametrize(
    "target", ["blip/folder_lora", "blip/folder_lora.yaml", "recipes/blip/folder_lora.yaml", "recipes/blip/folder_lora"]
)
def test_a_shipped_recipe_goes_by_its_name_everywhere(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe_path(target)) == load_recipe(ROOT / "recipes/blip/folder_lora.yaml")


def test_a_path_that_exists_is_meant_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "recipes/quickstart.yaml"):
        assert recipe_path(name) == SHIPPED / "quickstart.yaml"
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
        assert recipe_path(name) == Path(name)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("quikstart", "^quikstart: no such recipe or run directory; did you mean 'quickstart'"),
        (
            "recipes/blip/folder_lroa.yaml",
            r"^recipes/blip/folder_lroa\.yaml: no such .*; did you mean 'blip/folder_lora'",
        ),
        ("runs/mine", "^runs/mine: no such recipe or run directory; 'hfcap list recipes' names those that come"),
        ("accelerate/cpu", "no such recipe"),
        ("../recipes/quickstart", "no such recipe"),
        ("/etc/quickstart.yaml", "no such recipe"),
    ],
)
def test_what_is_neither_a_path_nor_a_name_is_refused(
    target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        recipe_path(target)
