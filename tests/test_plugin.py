"""A captioner family in another package: one file and an entry point, and every command knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfcap.files import read_json

SOURCE = Path(__file__).parent / "plugin" / "sketch.py"

COMMANDS = """
import contextlib, io, json, sys
import torch
from hfcap.cli import main

torch.set_num_threads(1)
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    sys.argv = ["hfcap", *arguments]
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
    found[name] = [code, printed.getvalue()]
print("RESULT" + json.dumps(found))
"""


def _install(folder: Path) -> None:
    """What pip leaves of a package with one module and one entry point; the name is not the module's."""
    module = folder / "sketches"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("")
    (module / "family.py").write_text(SOURCE.read_text())
    info = folder / "sketches-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sketches\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hfcap.captioners]\nsketch = sketches.family\n")


def _recipe(folder: Path, **model: Any) -> str:
    values = {
        "name": "drawn",
        "output_dir": str(folder / "runs"),
        "captioner": "sketch",
        "model": model,
        "data": {"source": "scenes", "n_train": 6, "n_validation": 2, "n_test": 3, "image_size": 32},
        "lora": {"r": 2},
        "train": {"max_steps": 2, "per_device_train_batch_size": 2, "dataloader_num_workers": 0},
        "generate": {"num_beams": 2, "max_new_tokens": 5},
        "score": {"n_resamples": 5},
        "publish": {"license": "mit"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    """All commands in one process, in which the package is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    _install(folder / "site")
    wrong = folder / "wrong"
    wrong.mkdir()
    run = folder / "runs" / "drawn"
    commands = {
        "list": ["list", "captioners"],
        "schema": ["recipe-schema"],
        "wrong": ["run", _recipe(wrong, pen_widht=8)],
        "run": ["run", _recipe(folder, pen_width=16)],
        "again": ["caption", str(run), str(folder / "image.png"), "-o", str(folder / "captions.jsonl")],
    }
    from PIL import Image

    Image.new("RGB", (40, 30), "green").save(folder / "image.png")
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout.split("RESULT")[1])
    assert outcomes["run"][0] == 0, done.stderr[-3000:]
    return folder, {**outcomes, "errors": (0, done.stderr)}


def test_command_line_and_schema_know_it(ran: Any) -> None:
    _, found = ran
    assert "sketch" in found["list"][1].split()
    schema = json.loads(found["schema"][1])
    assert "SketchOptions" in json.dumps(schema)
    assert "pen_width" in found["schema"][1]


def test_its_own_keys_are_checked(ran: Any) -> None:
    _, found = ran
    assert found["wrong"][0] == 2
    assert "pen_widht" in found["errors"][1] and "pen_width" in found["errors"][1]


def test_it_runs_from_recipe_to_publishable_folder(ran: Any) -> None:
    folder, _ = ran
    run = folder / "runs" / "drawn"
    assert read_json(run / "scores" / "test.json", "scores")["n_images"] == 3
    assert read_json(run / "model" / "hfcap.json", "notes")["captioner"] == "sketch"
    assert (run / "model" / "adapter_model.safetensors").is_file()
    assert (run / "publish" / "README.md").is_file()
    assert "A sketch of a captioner." in (run / "README.md").read_text()


def test_what_it_saved_is_found_again(ran: Any) -> None:
    folder, found = ran
    assert found["again"][0] == 0, found["errors"][1]
    [line] = (folder / "captions.jsonl").read_text().splitlines()
    assert "image.png" in line


def test_nothing_in_hfcap_names_it() -> None:
    package = Path(__file__).parents[1] / "hfcap"
    assert not [path for path in package.rglob("*.py") if "sketch" in path.read_text(encoding="utf-8").lower()]
