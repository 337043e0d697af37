"""A saved captioner, and what a command says."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hfcap.captioners.base import Captioner
from hfcap.captioning import images as images_module
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build

OPTIONS = GenerateOptions(num_beams=2, max_new_tokens=6)


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Captioner, str]:
    """A captioner and the folder it is saved in."""
    folder = tmp_path_factory.mktemp("captioner") / "model"
    captioner = build("blip")
    captioner.save(folder, OPTIONS)
    return captioner, str(folder)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    """What goes to standard output and to standard error."""
    out, error = io.StringIO(), io.StringIO()
    monkeypatch.setattr(images_module, "console", Console(file=out, width=200, highlight=False))
    monkeypatch.setattr(images_module, "error_console", Console(file=error, width=500, highlight=False))
    return out, error
