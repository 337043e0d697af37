"""The doctor on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hfcap import cli
from hfcap.doctor.run_checks import examine
from hfcap.errors import UserError
from hfcap.recipe.loading import dump_recipe
from tests.doctor.examined import the_error, tiny_recipe


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hfcap", "doctor", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(tiny_recipe(tmp_path)), encoding="utf-8")
    output = tmp_path / "doctor"
    assert exit_code(monkeypatch, str(path), "--steps", "0", "-o", str(output)) == 0
    assert {file.name for file in output.iterdir()} == {"doctor.json", "contact_sheet.png"}
    assert exit_code(monkeypatch, str(path), "train.num_train_epochs=0.01", "--steps", "1") == 1
    capsys.readouterr()
    code = exit_code(monkeypatch, str(path), "lora.target_modules=[nothing_like_this]", "-o", str(output))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.count("lora.target_modules") == 1
    assert "Traceback" not in captured.err
    report = json.loads((output / "doctor.json").read_text("utf-8"))
    assert not report["healthy"]
    the_error(report, "'nothing_like_this' matches no linear layer")
    assert report["pixels"] is not None


def test_a_split_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.test_split"):
        examine(tiny_recipe(tmp_path, data={"n_test": 0}))
    assert list(tmp_path.iterdir()) == []
