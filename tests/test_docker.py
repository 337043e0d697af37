"""The Dockerfile, as far as it can be tried without Docker: its installation is that of the README's two commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.test_documentation import ROOT, code_blocks

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", TEXT, re.MULTILINE)


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """The environment of its steps, with a Python that only notes how it was called; pip brings a package or two."""
    venv, tools = tmp_path / "venv", tmp_path / "tools"
    for place in (venv / "bin", tools):
        place.mkdir(parents=True)
    script = f"""#!/usr/bin/env bash
echo "$@" >>{tmp_path}/calls
case "$*" in *"import torch"*) exit 1 ;; *print*) echo "3.12.1" ;; esac
"""
    (venv / "bin/python").write_text(script, encoding="utf-8")
    (venv / "bin/hfcap").write_text(f'#!/usr/bin/env bash\necho "hfcap $@" >>{tmp_path}/calls\n', encoding="utf-8")
    for path in (venv / "bin").iterdir():
        path.chmod(0o755)
    return {"PATH": os.environ["PATH"], "HFCAP_VENV": str(venv), "HFCAP_TORCH": "", "EXTRAS": "test"}


def calls(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    (tmp_path / "calls").write_text("", encoding="utf-8")
    return [line for line in lines if line.startswith(("-m pip install", "hfcap", "-m pytest"))]


def run(command: str, environment: dict[str, str]) -> None:
    """Do a step where the Dockerfile does it: in the project."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("torch", ["", "torch==2.13.0 --index-url https://wheels.example/cpu"], ids=["cuda", "cpu"])
def test_its_installation_is_what_both_commands_need(torch: str, container: dict[str, str], tmp_path: Path) -> None:
    [install] = [step for step in instructions("RUN") if "environment" in step]
    container["HFCAP_TORCH"] = torch
    run(install, container)
    first, second = calls(tmp_path)
    options = "-m pip install -qq --disable-pip-version-check "
    assert first == options + (torch or f"-c {ROOT}/constraints.txt torch")
    # The project itself: its packages are those of pyproject.toml, with the extra of the tests.
    assert second.startswith(options) and second.endswith(f"-e {ROOT}[test]")
    # Nothing is left to install for the README's commands.
    [block] = [block for block in code_blocks(ROOT / "README.md", "bash") if "scripts/quickstart.sh" in block]
    commands = [line.partition("#")[0].strip() for line in block.splitlines()]
    assert commands == ["bash scripts/quickstart.sh", "bash scripts/test.sh"]
    run(commands[0], container)
    assert calls(tmp_path) == ["hfcap run recipes/quickstart.yaml"]
    run(commands[1], container)
    assert calls(tmp_path) == ["-m pytest -n 2 --dist loadfile --no-loadscope-reorder"]


def test_it_runs_the_readme_s_commands() -> None:
    [default] = instructions("CMD")
    assert shlex.join(re.findall(r'"([^"]*)"', default)) == "bash scripts/quickstart.sh"
    assert "docker run --rm hfcap bash scripts/test.sh" in TEXT
    assert instructions("COPY") == ["--chown=hfcap . ."]
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    # What both commands read is copied: linters look at .github, packaging at the metadata.
    for name in (".github", "tests", "recipes", "scripts", "constraints.txt", "pyproject.toml", "README.md"):
        assert (ROOT / name).exists() and name not in left_out


def test_its_python_is_one_that_the_project_allows() -> None:
    [version] = re.findall(r"^ARG PYTHON=(\S+)$", TEXT, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [one.partition("=")[0] for one in instructions("ARG")] == ["PYTHON", "TORCH", "EXTRAS"]
    assert [one for one in instructions("USER") if one != "root"] == ["hfcap"]
