"""The command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from hfcap.cli import main
from tests.cli.command_line import Hfcap, Outcome
from tests.training.harness import forget_accelerator


@pytest.fixture
def hfcap(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hfcap]:
    """Run a command in this process, through `main` as the installed script does.

    The working directory is an empty one: the project may hold runs, as of its own quick start.
    """
    monkeypatch.chdir(tmp_path_factory.mktemp("working_directory"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: Any) -> Outcome:
        forget_accelerator()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["hfcap", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run
    torch.set_num_threads(threads)
    forget_accelerator()
