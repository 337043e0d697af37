"""Every recipe of the repository loads, is short, and says where it comes from and what was reached."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from hfcap.recipe.loading import dump_recipe, load_recipe
from hfcap.recipe.shipped import find_recipes
from hfcap.registry import load, names

ROOT = Path(__file__).resolve().parents[1]
RECIPES = find_recipes(ROOT / "recipes")
HEADER = ("Source:", "Published:", "Hardware:", "Hours:", "Command:")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_none_is_missed() -> None:
    on_disk = {path for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    others = {path for path in on_disk if path.parent.name == "accelerate"}
    assert set(RECIPES) == on_disk - others
    assert "recipes/quickstart.yaml" in {name_of(path) for path in RECIPES}


@pytest.mark.parametrize("family", names("captioners"))
def test_every_family_has_its_recipes(family: str) -> None:
    """COCO for comparison with papers, a folder of one's own images; and from nothing, where the family can."""
    captioner = load("captioners", family).REGISTERED
    stems = {path.stem for path in (ROOT / "recipes" / family).glob("*.yaml")}
    assert {"coco", "folder"} <= {stem.split("_")[0] for stem in stems}
    if captioner.trains_by_gradients:
        assert {"coco_full", "flickr8k_scratch"} <= stems


def test_run_directories_do_not_collide() -> None:
    assert len({load_recipe(path).name for path in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(resolved) == recipe
    if path.parent.name != "recipes":
        assert recipe.captioner == path.parent.name
        assert recipe.name == f"{path.parent.name}_{path.stem}"
        assert (recipe.lora is not None) == path.stem.endswith("_lora")


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_header(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert [word for word in HEADER if not re.search(rf"^# {word} +\S", header, re.MULTILINE)] == []
    recipe = load_recipe(path)
    reproduced = recipe.expect is not None and recipe.expect.reproduced
    measured = re.search(r"^# Published: none[^\n]*\. Here, .*\d", header, re.MULTILINE)
    assert reproduced or measured or "not yet reproduced here" in header.lower()
    assert f"hfcap run {name_of(path)}" in header
    if recipe.expect and "expect" in header:
        assert recipe.expect.source


@pytest.mark.parametrize("path", [path for path in RECIPES if "lora" not in path.stem], ids=name_of)
def test_expected_scores_are_those_of_the_header(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\nname:")[0]
    recipe = load_recipe(path)
    named = {"CIDEr": "cider", "BLEU-4": "bleu_4", "METEOR": "meteor"}
    line = re.search(r"# Published: ([^(\n]*)", header)
    assert line is not None
    published = {
        named[name]: float(number) / 100
        for name, number in re.findall(rf"({'|'.join(named)}) (\d+(?:\.\d+)?)", line[1])
    }
    if recipe.expect is None:
        assert published == {}
        return
    assert recipe.expect.metrics == pytest.approx({name: published[name] for name in recipe.expect.metrics})


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/accelerate").glob("*")), ids=name_of)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert (config.num_machines > 1) == (path.stem == "multi_node")
    assert config.use_cpu == (path.stem == "cpu")
    several = ("multi_gpu", "fsdp2", "multi_node", "deepspeed_zero2")
    assert (config.num_processes > 1) == (path.stem in several)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/accelerate").glob("*")), ids=name_of)
def test_the_commands_of_accelerate_s_configurations_are_understood(path: Path) -> None:
    [shown] = re.findall(r"^# Command: accelerate launch (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    options = launch_command_parser().parse_args(shlex.split(shown))
    assert (options.config_file, options.module, options.training_script) == (name_of(path), True, "hfcap")
    assert (options.machine_rank, options.main_process_ip) == (
        (0, "FIRST") if path.stem == "multi_node" else (None,) * 2
    )
