"""The scripts: what the shell ones say when they cannot work; the benchmark of picture loading on tiny pictures."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from hfcap.errors import UserError
from scripts import bench_images

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.fixture
def only_old_python(tmp_path: Path) -> str:
    """A PATH on which every Python says that it is too old, with the few tools that the scripts call."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "grep"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
        stub = tools / name
        stub.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n', encoding="utf-8")
        stub.chmod(0o755)
    return str(tools)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    result = bash("-n", str(script), PATH=os.environ["PATH"])
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("script", ["test.sh", "quickstart.sh"])
def test_too_old_python_is_named_and_nothing_is_made(script: str, only_old_python: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    result = bash(str(ROOT / "scripts" / script), PATH=only_old_python, HFCAP_VENV=str(venv))
    assert result.returncode == 2
    assert "hfcap needs Python 3.11 or newer; found: Python 3.9.2." in result.stderr
    assert not venv.exists()


def test_an_environment_with_an_old_python_is_refused(only_old_python: str, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    old = venv / "bin" / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -m ] && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    result = bash(str(ROOT / "scripts/test.sh"), PATH=only_old_python, HFCAP_VENV=str(venv))
    assert result.returncode == 2
    assert "is older than Python 3.11; set HFCAP_VENV to another folder" in result.stderr
    assert sorted(path.name for path in venv.rglob("*")) == ["bin", "python"]


def test_the_documented_benchmark_of_pictures_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    [shown] = [line for line in page.splitlines() if line.startswith("python scripts/bench_images.py ")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    for number in range(4):
        picture = Image.effect_noise((64 + number, 48), 60).convert("RGB")
        (tmp_path / "pictures").mkdir(exist_ok=True)
        picture.save(tmp_path / "pictures" / f"{number}.jpg")
    threads = torch.get_num_threads()
    # In this process: workers would each take seconds to start.
    bench_images.main([*shlex.split(shown)[2:], "--workers", "0", "--repeats", "1"])
    torch.set_num_threads(threads)
    values = json.loads((tmp_path / "bench_images.json").read_text(encoding="utf-8"))
    [row] = values["results"]
    assert (row["processor"], row["photos"], row["first_size"]) == ("vit", 4, [64, 48])
    assert set(row["ratios"]) == set(row["photos_per_second"]) > {"hfcap", "processor in a DataLoader"}
    assert row["ratios"]["processor in a DataLoader"] == 1
    assert 0 <= row["levels_apart"]["exact"]["mean"] < 0.6


def test_the_benchmark_of_pictures_needs_photos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no photos there"):
        bench_images.main([str(tmp_path)])


def test_the_pinned_versions_are_those_that_the_project_allows() -> None:
    """Every extra that the scripts install resolves under constraints.txt; `demo` is the one that leaves it out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    wanted = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]]
    assert [str(one) for one in wanted if not one.specifier.contains(pinned[canonicalize_name(one.name)])] == []
    demo = [Requirement(text).name for text in project["optional-dependencies"]["demo"]]
    assert not set(demo) & set(pinned)
