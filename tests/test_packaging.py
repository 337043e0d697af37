"""What is installed from a wheel or an sdist is all of hfcap, and works outside a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from hfcap.recipe.shipped import shipped_recipes

ROOT = Path(__file__).resolve().parents[1]
INGREDIENTS = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "hfcap", "recipes")

OUTSIDE = """
import sys
from pathlib import Path
installed, commands = sys.argv[1], sys.argv[2:]
sys.path.insert(0, installed)
import evaluate, hfcap
from hfcap.cli import main
from hfcap.metrics.evaluate_metric import evaluate_folder
assert Path(hfcap.__file__).is_relative_to(installed), hfcap.__file__
cider = evaluate.load(str(evaluate_folder("cider")), cache_dir="cache")
scores = cider.compute(predictions=["a cat", "a dog"], references=[["a cat"], ["a dog"]])
print("CIDEr-D", round(scores["cider"], 9))
for command in commands:
    sys.argv[1:] = command.split()
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
"""


def run(*arguments: str, cwd: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def build(kind: str, source: Path, output: Path) -> Path:
    """Build a wheel or an sdist as pip does, without network; building writes into the source."""
    output.mkdir()
    run("-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})", cwd=source)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from."""
    folder = tmp_path_factory.mktemp("source")
    for name in INGREDIENTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source, source / "wheel")


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_holds_every_file_of_the_package(source: Path, wheel: Path) -> None:
    recipes = {f"hfcap/{path.relative_to(source).as_posix()}" for path in (source / "recipes").rglob("*.*")}
    others = {path.relative_to(source).as_posix() for path in (source / "hfcap").rglob("*") if path.is_file()}
    assert names_in(wheel) == recipes | others
    assert len(recipes) > len(shipped_recipes()) and "hfcap/card/card.md.jinja" in others


def test_every_pattern_of_package_data_names_something() -> None:
    """A folder that is gone, or a kind of file that nobody ships any more, is no pattern."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = [
        (package.replace(".", "/"), pattern)
        for package, listed in project["tool"]["setuptools"]["package-data"].items()
        for pattern in listed
    ]
    assert patterns and [one for one in patterns if not any((ROOT / one[0]).glob(one[1]))] == []


def test_an_sdist_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("hfcap-*")
    # Half of the tests would be worse than none: they need the whole checkout.
    assert not (unpacked / "tests").exists()
    assert names_in(build("wheel", unpacked, tmp_path / "wheel")) == names_in(wheel)


def test_from_a_wheel_everything_works_outside_a_checkout(wheel: Path, tmp_path: Path) -> None:
    installed, here = tmp_path / "installed", tmp_path / "here"
    here.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    small = "data.n_train=16 data.n_validation=8 data.n_test=8 train.num_train_epochs=1 generate.max_new_tokens=4"
    commands = [
        "list recipes",
        "list recipes --folder",
        f"run quickstart {small} score.n_resamples=20",
        "card runs/quickstart",
        "publish quickstart --dry-run",
        "publish-metric cider --repo-id you/cider --dry-run",
    ]
    # -I: neither the working folder nor PYTHONPATH is looked at, and of the user's own packages none.
    said = run("-I", "-c", OUTSIDE, str(installed), *commands, cwd=here).splitlines()
    assert said[0] == "CIDEr-D 5.0"  # two of four n-gram lengths exist, and agree: 10 * 2 / 4
    assert said[1 : 1 + len(shipped_recipes())] == list(shipped_recipes())
    assert said[1 + len(shipped_recipes())] == str(installed / "hfcap" / "recipes")
    assert (here / "runs" / "quickstart" / "README.md").read_text(encoding="utf-8").startswith("---\n")
    assert (here / "runs" / "quickstart" / "publish" / "model.safetensors").is_file()
    assert (here / "spaces" / "cider" / "README.md").is_file()
