"""Every script in examples/ runs, on tiny data and without network, and what it says is right."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hfcap
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build, write_image
from tests.captioning.conftest import OPTIONS
from tests.cli.command_line import write_recipe
from tests.hub_server import Hub, hub  # noqa: F401
from tests.test_documentation import code_blocks
from tests.training.harness import forget_accelerator

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RUN = ("caption_folder", "compare_captioners", "fine_tune_lora", "publish")

pytestmark = pytest.mark.usefixtures("one_thread")

Script = Callable[..., str]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Script]:
    """Run an example as `python examples/NAME.py ARGUMENTS` would, in this process; returns what it printed."""

    def run(name: str, *arguments: Any) -> str:
        forget_accelerator()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capfd.readouterr().out

    yield run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three captioners of two families in folders."""
    folder = tmp_path_factory.mktemp("models")
    for name, family, seed in (("one", "blip", 0), ("two", "blip", 1), ("three", "vit_gpt2", 0)):
        build(family, seed).save(folder / name, OPTIONS)
    return [folder / name for name in ("one", "two", "three")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images with captions, in the layout of the README."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(20):
        write_image(folder / f"{number}.png", seed=number)
        captions = [f"a red cat number {number}", "two dogs run over the green grass"]
        rows.append({"file_name": f"{number}.png", "captions": captions})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_every_example_is_run_here() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(RUN)
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in page for name in RUN)


def test_the_page_names_every_option_and_function() -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    functions = [name for name in hfcap.__all__ if name.islower()]
    assert [name for name in [*GenerateOptions.model_fields, *functions] if name not in page] == []


def test_caption_a_folder(script: Script, models: list[Path], images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    for number in range(3):
        (folder / "x").mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes((images / f"{number}.png").read_bytes())
    (folder / "broken.jpg").write_text("no image")
    said = script("caption_folder", models[0], folder, tmp_path / "captions.csv", "--num-beams", 2)
    assert said.splitlines()[-1] == f"3 of 4 images captioned: {tmp_path / 'captions.csv'}"
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    captioner = hfcap.load_captioner(models[0])
    found = captioner.caption([folder / f"{number}.png" for number in range(3)], num_beams=2, num_return_sequences=2)
    assert [row["caption"] for row in rows] == [caption.text for caption in found]
    assert [row["other captions"] for row in rows] == [caption.candidates[1].text for caption in found]


def test_fine_tune_with_lora(script: Script, models: list[Path], images: Path, tmp_path: Path) -> None:
    arguments = ("--name", "mine", "--output-dir", tmp_path, "--base", models[0], "--epochs", 1)
    said = script("fine_tune_lora", images, *arguments)
    run = hfcap.TrainedRun(tmp_path / "mine")
    assert (run.model / "adapter_config.json").is_file()
    assert f"{run.summary['trainable_parameters']:,} of" in said
    assert f"cider      {100 * (run.scores().metrics['cider'] or 0):.1f}" in said
    assert run.load(device="cpu").caption(images / "0.png").image == str(images / "0.png")


def test_compare_three_captioners(script: Script, models: list[Path], images: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    references = tmp_path / "references.json"
    references.write_text(json.dumps({row["file_name"]: row["captions"] for row in rows}), encoding="utf-8")
    said = script("compare_captioners", references, images, *models, "--output", tmp_path / "page")
    assert "Leaderboard" in said and all(f" {name} " in said for name in ("one", "three", "two"))
    board = json.loads((tmp_path / "page" / "leaderboard.json").read_text(encoding="utf-8"))
    assert sorted(system["name"] for system in board["systems"]) == ["one", "three", "two"]


def test_publish(script: Script, tmp_path: Path, hub: Hub) -> None:  # noqa: F811
    forget_accelerator()
    run = hfcap.train(write_recipe(tmp_path), until="card")
    said = script("publish", run.folder, "alice/tiny", "--dry-run")
    assert said.startswith("Dry run: ") and "README.md" in said
    said = script("publish", run.folder, "alice/tiny", "--skip-verification")
    assert said.startswith("Published ") and "Not verified" in said
    image = write_image(tmp_path / "a.png")
    assert hfcap.load_captioner("alice/tiny").caption(image) == run.load().caption(image)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_code_of_the_pages_runs(
    page: str,
    models: list[Path],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In a folder with the files that the pages speak of."""
    blocks = code_blocks(ROOT / page, "python")
    assert blocks
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    write_recipe(tmp_path, output_dir="runs", score={"n_resamples": 10}).rename(tmp_path / "recipes" / "mine.yaml")
    (tmp_path / "runs").mkdir()
    build("blip").save(tmp_path / "runs" / "mine", OPTIONS)
    for number, name in enumerate(["cat.jpg", "dog.jpg"]):
        (tmp_path / name).write_bytes((images / f"{number}.png").read_bytes())
    forget_accelerator()
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    lines = capfd.readouterr().out.splitlines()
    found = hfcap.load_captioner("runs/mine").caption(["cat.jpg", "dog.jpg"], num_beams=5)
    said = f"cat.jpg {found[0].score:.2f} {found[0].text}"
    assert said in lines
