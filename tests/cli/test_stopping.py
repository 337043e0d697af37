"""Ctrl-C and SIGTERM in every stage: exit code 130, one line, nothing half-written; the same command finishes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hfcap import decoding, files
from hfcap.captioning.partial_output import PartialOutput
from hfcap.card import render
from hfcap.comparison import leaderboard
from hfcap.doctor import dataset, run_checks
from hfcap.publishing import staging
from hfcap.recipe.blocks import GenerateOptions
from hfcap.scoring import score
from hfcap.store.row_store import RowStore
from hfcap.training import train
from tests.captioners.helpers import build, write_image
from tests.cli.command_line import Hfcap, Outcome, write_recipe
from tests.cli.test_features import make_store

Stop = Callable[[Any, str], None]


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A shell's background jobs begin with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def stop_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Let Ctrl-C come when a function has done its work for the first time."""

    def patch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def interrupted(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            setattr(owner, name, original)
            os.kill(os.getpid(), request.param)
            return result

        monkeypatch.setattr(owner, name, interrupted)

    return patch


def assert_stopped(outcome: Outcome, folder: Path) -> None:
    assert outcome.code == 130, outcome
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-1].startswith(("stopped; no file is half-written", "stopped at step 2 of 2; the"))
    assert outcome.err.count("stopped") == 1
    assert [path.name for path in folder.rglob(".*")] == []


def test_every_stage_of_a_run(tmp_path: Path, hfcap: Hfcap, stop_in: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    scenes = {"source": "scenes", "n_train": 7, "n_validation": 4, "n_test": 5, "image_size": 32, "feature_store": "on"}
    recipe, run = write_recipe(tmp_path, data=scenes, train={"freeze": ["vision"]}), tmp_path / "runs" / "tiny"
    for owner, name, lacking in (
        (RowStore, "write_shard", "checkpoints"),
        (files, "_flush_to_disk", "model"),  # the last checkpoint
        (train, "save_model", "predictions"),
        (decoding, "_finished_ids", "predictions/test.jsonl"),
        (score, "resampled_values", "scores/test.json"),
        (render, "render", "README.md"),
        (staging, "_copy_model", "publish"),
    ):
        stop_in(owner, name)
        assert_stopped(hfcap("run", recipe), tmp_path)
        assert not (run / lacking).exists(), name
    finished = hfcap("run", recipe)
    assert finished.code == 0, finished.err
    assert (run / "publish" / "README.md").is_file()


def test_the_doctor(tmp_path: Path, hfcap: Hfcap, stop_in: Stop) -> None:
    recipe = write_recipe(tmp_path)
    stop_in(run_checks, "examine_data")
    assert_stopped(hfcap("doctor", recipe), tmp_path)
    assert hfcap("doctor", recipe, "--steps", 0).code == 0


def test_what_the_caller_ignores_is_ignored(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup does with the signal of a terminal that is closed."""
    recipe, before = write_recipe(tmp_path), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        original = dataset.examine_data

        def hung_up(*arguments: Any, **keywords: Any) -> Any:
            os.kill(os.getpid(), signal.SIGHUP)
            return original(*arguments, **keywords)

        monkeypatch.setattr(run_checks, "examine_data", hung_up)
        assert hfcap("doctor", recipe, "--steps", 0).code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_makes_one_file(tmp_path: Path, hfcap: Hfcap, stop_in: Stop) -> None:
    (tmp_path / "a.json").write_text('{"1": "a dog", "2": "one cat"}')
    (tmp_path / "b.json").write_text('{"1": "a dog runs", "2": "cat"}')
    (tmp_path / "r.json").write_text('{"1": ["a dog"], "2": ["two cats"]}')
    a, b, references, output = (tmp_path / name for name in ("a.json", "b.json", "r.json", "out.json"))
    for owner, name, command in (
        (score, "resampled_values", ["score", a, references]),
        (leaderboard, "paired_differences", ["compare", a, b, "--references", references]),
    ):
        stop_in(owner, name)
        assert_stopped(hfcap(*command, "-o", output), tmp_path)
        assert not output.exists()


def test_captions_of_own_images(tmp_path: Path, hfcap: Hfcap, stop_in: Stop) -> None:
    build("blip").save(tmp_path / "model", GenerateOptions(num_beams=1, max_new_tokens=4))
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    command = ["caption", tmp_path / "model", tmp_path / "images", "--batch-size", 1, "-o", tmp_path / "out.csv"]
    stop_in(PartialOutput, "add")
    stopped = hfcap(*command)
    assert stopped.code == 130 and stopped.out == "" and "Traceback" not in stopped.err
    assert "stopped after 0 images; the same command continues there" in stopped.err.splitlines()[-1]
    assert not (tmp_path / "out.csv").exists()
    finished = hfcap(*command)
    assert finished.code == 0 and "Resuming after 1 image" in finished.err
    assert (tmp_path / "out.csv").read_text().count("\n") == 4
    assert list(tmp_path.glob("out.csv.*")) == []


def test_features_prune_goes_on_with_the_next_store(tmp_path: Path, hfcap: Hfcap, stop_in: Stop) -> None:
    for key in "ab":
        make_store(tmp_path, key * 32, "an encoder", 1, 1)
    stop_in(RowStore, "delete")
    assert_stopped(hfcap("features", "prune", "--all", "--yes", "--folder", tmp_path), tmp_path)
    assert "1 stores" in hfcap("features", "list", "--folder", tmp_path).out
    assert hfcap("features", "prune", "--all", "--yes", "--folder", tmp_path).code == 0
    assert list(tmp_path.iterdir()) == []
