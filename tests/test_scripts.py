"""The shell scripts: what they say when they cannot work, and that they leave nothing behind then."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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
