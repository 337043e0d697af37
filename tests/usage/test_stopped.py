"""A day of stops: a run that is killed, or stopped by Ctrl-C, ends as if nothing had been, with the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from tests.cli.command_line import Hfcap
from tests.usage.album import contents, leftovers, write_album, write_recipe

SAME = ("model/", "predictions/", "scores/")


def start(python: str, recipe: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [python, "-m", "hfcap", "run", str(recipe)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def results(run: Path) -> dict[str, str]:
    """What a run is for: weights, captions, scores."""
    return {name: value for name, value in contents(run).items() if name.startswith(SAME)}


def test_killed_and_stopped_again_and_again(forking: str, hfcap: Hfcap, tmp_path: Path) -> None:
    album = write_album(tmp_path / "album")
    (tmp_path / "undisturbed").mkdir()
    assert hfcap("run", write_recipe(tmp_path / "undisturbed", album)).code == 0
    recipe, run = write_recipe(tmp_path, album), tmp_path / "runs" / "tiny"

    process = start(forking, recipe)
    wait_for(run / "checkpoints/step-00000001", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    process = start(forking, recipe)
    wait_for(run / "checkpoints/step-00000002", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said and "the same command continues there" in said
    assert leftovers(tmp_path) == []

    process = start(forking, recipe)
    wait_for(run / "predictions", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    finished = hfcap("run", recipe)
    assert finished.code == 0 and "Traceback" not in finished.err, finished
    assert results(run) == results(tmp_path / "undisturbed/runs/tiny")
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert leftovers(tmp_path) == []
