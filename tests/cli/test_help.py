"""Every `--help` has examples that the command understands, and shells complete commands."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hfcap.cli import app
from hfcap.cli.examples import EXAMPLES
from tests.cli.command_line import Hfcap


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_every_command_has_examples_and_no_example_lacks_a_command() -> None:
    assert set(EXAMPLES) == set(COMMANDS) and len(COMMANDS) > 15
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_shown_and_understood(
    name: str, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = hfcap(*name.split(), "--help")
    assert shown.code == 0 and "Examples:" in shown.out
    monkeypatch.chdir(tmp_path)
    for line in EXAMPLES[name]:
        assert line in shown.out
        program, *arguments = shlex.split(line.partition(" > ")[0])
        assert program == "hfcap" and arguments[: len(name.split())] == name.split()
        with COMMANDS[name].make_context(name, arguments[len(name.split()) :]) as context:
            assert not context.args


def test_what_the_seed_depends_on_is_said(hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples change with the batch size under one seed, which stood nowhere."""
    monkeypatch.setenv("COLUMNS", "200")
    (line,) = (line for line in hfcap("caption", "--help").out.splitlines() if "--seed" in line)
    assert "an equal --batch-size draws equal captions" in line


def _bash(script: str, home: Path, **variables: str) -> str:
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", script],
        env=dict(os.environ, HOME=str(home), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_shell_completion_can_be_installed_and_completes(tmp_path: Path) -> None:
    said = _bash("hfcap --install-completion; true", tmp_path)
    assert "completion installed" in said
    (script,) = (path for path in tmp_path.rglob("*") if path.is_file() and "_HFCAP_COMPLETE" in path.read_text())
    assert str(script) in said and "hfcap" in (tmp_path / ".bashrc").read_text()
    asked = {"_HFCAP_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert _bash("hfcap", tmp_path, COMP_WORDS="hfcap comp", **asked).split() == ["compare"]
    options = _bash("hfcap", tmp_path, COMP_WORDS="hfcap caption --num-b", **(asked | {"COMP_CWORD": "2"}))
    assert options.split() == ["--num-beams"]
