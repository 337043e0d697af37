"""What README and docs say is so: commands exist, files exist, examples load."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from hfcap.cli import app
from hfcap.data.source import load_split
from hfcap.recipe.loading import RecipeError, load_recipe
from hfcap.recipe.scst import ScstOptions
from hfcap.registry import names
from hfcap.training.optimization import require_optimization

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a click group


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(page: Path, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for name, content in blocks if name == language]


def commands_in(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"`hfcap ([a-z][a-z-]*)", text)
    for block in code_blocks(page, "bash"):
        yield from re.findall(r"^hfcap +([a-z-]+)", block, re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "scripts/quickstart.sh"], ids=name_of)
def test_commands_exist(page: Path) -> None:
    assert set(commands_in(page)) - COMMANDS == set()


def test_nobody_is_told_to_install_hfcap_from_a_package_index() -> None:
    """No index has it, and one may have something else by that name (errors.MissingPackageError)."""
    from_index = re.compile(r"pip install [^`\n]*?(?<![\w/.-])hfcap(?:\[[\w,]+\])?['\"]?(?![\w/.\[ -])")
    assert all(map(from_index.search, ("pip install hfcap", "pip install 'hfcap[demo]'", "(pip install -U hfcap[x])")))
    assert not any(map(from_index.search, ("pip install 'hfcap @ git+ADDRESS'", "pip install x/hfcap-0.1.0-py3.whl")))
    places = ("hfcap", "docs", "recipes", "scripts", "model_cards")
    files = [ROOT / "README.md", *(path for place in places for path in (ROOT / place).rglob("*.*"))]
    texts = [path for path in files if path.suffix in (".md", ".py", ".jinja", ".yaml", ".sh")]
    assert len(texts) > 200
    assert [str(path) for path in texts if from_index.search(path.read_text(encoding="utf-8"))] == []


def test_the_commands_of_the_captioning_page_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in code_blocks(ROOT / "docs/captioning.md", "bash") for line in block.splitlines()]
    caption = typer.main.get_command(app).commands["caption"]  # type: ignore[attr-defined]
    for line in lines:
        _, name, *arguments = shlex.split(line)
        with caption.make_context(name, arguments) as context:
            assert (
                name == "caption"
                and context.params["model"] == "runs/mine"
                and (context.params["inputs"] or context.params["alt_text"])
            )
    assert len(lines) == 17


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    named = re.findall(r"\b(?:recipes|scripts|docs|hfcap|tests)/[\w./-]*\w", text)
    paths = [ROOT / name for name in named if not name.startswith(("recipes/mine", "hfcap/data/sources/name"))]
    assert links or paths or page.parent.name == "notes"
    assert [str(path) for path in links + paths if not path.exists()] == []


def test_readme_lists_every_captioner_source_and_metric() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == names("captioners")
    sources = text.partition("Data sources:")[2].partition("\n")[0]
    assert sorted(re.findall(r"`(\w+)`", sources.replace("`datasets`", ""))) == names("sources")


def test_the_recipe_of_the_documentation_loads(tmp_path: Path) -> None:
    (example,) = code_blocks(ROOT / "docs/recipes.md", "yaml")
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    overrides = ["train.num_train_epochs=3", "lora.r=8", "train.freeze=[vision]"]
    assert all(override in (ROOT / "docs/recipes.md").read_text(encoding="utf-8") for override in overrides)
    assert load_recipe(path, overrides).train.num_train_epochs == 3
    lora = load_recipe(path, ["lora={}"]).lora
    assert lora is not None
    assert load_recipe(path, ["lora=null"]).lora is None


def test_the_recipes_about_training_load(tmp_path: Path) -> None:
    arguments, self_critical, preferred, augmentation, more = code_blocks(ROOT / "docs/training.md", "yaml")
    path = tmp_path / "example.yaml"
    path.write_text(self_critical, encoding="utf-8")
    recipe = load_recipe(path)
    # The page spells the defaults out.
    assert recipe.scst == ScstOptions() and recipe.model.pretrained == "runs/my_images"
    path.write_text(preferred, encoding="utf-8")
    dpo = load_recipe(path).dpo
    assert dpo is not None and dpo.beta == 0.1 and dpo.pairs.endswith("images/edits.jsonl")
    path.write_text(self_critical.split("scst:")[0] + augmentation, encoding="utf-8")
    augment = load_recipe(path).augment
    assert augment is not None and augment.changes_images and augment.word_dropout == 0.1
    path.write_text(self_critical.split("train:")[0] + more, encoding="utf-8")
    recipe = load_recipe(path, ["train.num_train_epochs=1"])
    path.write_text(self_critical.split("train:")[0] + arguments, encoding="utf-8")
    chosen = load_recipe(path, ["train.num_train_epochs=1"]).train
    assert (chosen.mixed_precision, chosen.warmup_steps) == ("bf16", 0.05)
    require_optimization(chosen, torch.device("cpu"))
    assert recipe.train.report_to == ["tensorboard"] and recipe.lora is not None and recipe.lora.use_dora


def test_the_errors_of_the_documentation_are_the_real_ones(tmp_path: Path) -> None:
    page = ROOT / "docs/recipes.md"
    (shown,) = [block for block in code_blocks(page, "") if block.startswith("recipes/mine.yaml")]
    text = """\
name: mine
captioner: blip
model: {pretrained: x}
data: {source: folder, root: x}
train:
  max_steps: 1
  num_train_epochs: 1
  learning_rte: 1
"""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["train.freeze=[visoin]"])
    real = [line.replace(str(path), "recipes/mine.yaml") for line in caught.value.problems]
    assert real == shown.splitlines()


def test_the_readmes_folder_of_images_loads(tmp_path: Path) -> None:
    (example,) = [block for block in code_blocks(ROOT / "README.md", "") if "metadata.jsonl" in block]
    row = json.loads(example[example.index("{") : example.index("}") + 1])
    rows = [{**row, "file_name": f"{number}.jpg"} for number in range(200)]
    for entry in rows:
        Image.new("RGB", (8, 8)).save(tmp_path / entry["file_name"])
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    recipe = load_recipe(ROOT / "recipes/blip/folder_lora.yaml", [f"data.root={tmp_path}"])
    loaded = [record for split in ("train", "validation", "test") for record in load_split(recipe.data, split)]
    assert sorted(record.file_name for record in loaded) == sorted(entry["file_name"] for entry in rows)
    assert all(record.captions == tuple(row["captions"]) for record in loaded)


def test_the_quick_start_s_score_is_that_of_the_recorded_card() -> None:
    readme, card = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "model_cards/quickstart.md"))
    said = re.search(r"CIDEr-D x 100: ([\d.]+) as recorded", readme)
    shown = re.search(r"^\| CIDEr-D \| \*\*([\d.]+)\*\*", card, re.MULTILINE)
    assert said is not None and shown is not None and said[1] == shown[1]


def test_tests_that_notes_name_exist() -> None:
    """A table that says what was tested is believed for the names of its tests."""
    named = {
        name for page in (ROOT / "docs/notes").glob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())
    }
    there = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named and named - there == set()
