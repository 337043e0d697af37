"""Progress bars: none for nothing to do."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hfcap import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "error_console", console)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    return screen


def test_nothing_to_do_has_no_bar(terminal: io.StringIO) -> None:
    """It stood on screen at 0/0 for good."""
    with progress.progress_bar() as bar:
        bar.add_task("Captioning", total=0)
    assert list(progress.track([], "Reading")) == []
    assert "Captioning" not in terminal.getvalue() and "Reading" not in terminal.getvalue()
    assert list(progress.track(["a"], "Reading")) == ["a"] and "1/1" in terminal.getvalue()
