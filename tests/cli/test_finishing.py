"""A training that was stopped for good: --finish takes its best checkpoint, and --checkpoint captions with any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hfcap.captioners.loading import load_captioner
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.helpers import write_image
from tests.cli.command_line import Hfcap, assert_refused, write_recipe
from tests.training.harness import METHODS, Result, assert_same_tensors, send_signal_at

TRAIN = {"max_steps": 9, "eval_steps": 2, "save_total_limit": 9}


@pytest.fixture(params=METHODS)
def stopped(request: pytest.FixtureRequest, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> Result:
    """A run whose training was stopped at step 5 of 9, after validations at 2 and 4."""
    recipe = write_recipe(tmp_path, method=request.param, train=TRAIN, score={"baselines": [], "metrics": ["rouge_l"]})
    with monkeypatch.context() as patch:
        send_signal_at(5, patch)
        outcome = hfcap("run", recipe)
    assert outcome.code == 130, outcome.err
    assert "stopped at step 5 of 9; the same command continues there, and with --finish it ends the training there" in (
        outcome.err
    )
    return Result(RunDirectory(tmp_path / "runs" / "tiny"))


def best_of(result: Result) -> int:
    """The step of the lowest validation loss in the log."""
    rows = [row for row in result.rows if "validation_loss" in row]
    assert [row["step"] for row in rows] == [2, 4]
    return int(min(rows, key=lambda row: row["validation_loss"])["step"])


def captions(hfcap: Hfcap, *arguments: Any, output: Path) -> list[dict[str, Any]]:
    outcome = hfcap("caption", *arguments, "-o", output)
    assert outcome.code == 0, outcome.err
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_finish_ends_the_training_there_and_goes_on(stopped: Result, hfcap: Hfcap) -> None:
    best, run = best_of(stopped), stopped.run
    outcome = hfcap("run", run.path, "--finish")
    assert outcome.code == 0, outcome.err
    assert "Ending the training at step 5 of 9\n" in outcome.err and "Continuing" not in outcome.err
    assert stopped.summary["stopped"] == "on request" and stopped.summary["steps"] == 5
    assert stopped.summary["best_step"] == best
    assert run.scores("test").is_file() and run.publish.is_dir()
    assert "ended on request before the planned end" in run.card.read_text()
    if stopped.summary["method"] == "full":
        kept, model = stopped.weights(best), load_captioner(str(run.path)).model.state_dict()
        assert_same_tensors(kept, {name: model[name] for name in kept})
    written = run.summary.read_bytes()
    assert hfcap("run", run.path).code == 0  # the training is done
    assert run.summary.read_bytes() == written and stopped.steps[-1] == 5


def test_checkpoints_caption_as_the_run_does_that_ends_there(stopped: Result, hfcap: Hfcap, tmp_path: Path) -> None:
    image, run = write_image(tmp_path / "one.png", seed=3), stopped.run.path
    options = ("--num-beams", 4, "--num-return-sequences", 4)
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    best = captions(hfcap, run, image, "--checkpoint", "best", *options, output=tmp_path / "best.jsonl")
    last = captions(hfcap, run, image, "--checkpoint", "last", *options, output=tmp_path / "last.jsonl")
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before  # nothing is left in the run
    other = tmp_path / "runs" / "other"
    shutil.copytree(run, other)
    changed = ("train.load_best_model_at_end=false", "--accept-changes")
    assert hfcap("train", other, "--finish", *changed).code == 0
    assert hfcap("train", run, "--finish").code == 0
    ended = [captions(hfcap, place, image, *options, output=tmp_path / f"{place.name}.jsonl") for place in (run, other)]
    for ours, theirs in zip((best, last), ended, strict=True):
        assert [row["candidates"] for row in ours] == [row["candidates"] for row in theirs]
        assert [row["score"] for row in ours] == pytest.approx([row["score"] for row in theirs], rel=1e-4)


@pytest.mark.parametrize("stopped", ["full"], indirect=True)
def test_what_cannot_be_finished(stopped: Result, hfcap: Hfcap, tmp_path: Path) -> None:
    image, run = write_image(tmp_path / "one.png"), stopped.run
    assert_refused(hfcap("run", write_recipe(tmp_path, name="new"), "--finish"), "has no checkpoint yet", "hfcap train")
    assert not (tmp_path / "runs" / "new").exists()
    assert_refused(hfcap("train", run.path, "--finish", "--force"), "give one of them")
    assert_refused(hfcap("caption", run.path, "--checkpoint", "best"), "--checkpoint: give images")
    state = stopped.checkpoint(5) / "state.json"
    state.write_text(state.read_text().replace('"best_step": ', '"best_step": null, "was": '))
    (stopped.checkpoint(5) / "checksums.json").unlink()
    unvalidated = hfcap("caption", run.path, image, "--checkpoint", "best")
    assert_refused(unvalidated, "no checkpoint was validated yet", "take the last one")
    (stopped.checkpoint(5) / "model.safetensors").write_bytes(b"no")
    assert_refused(hfcap("caption", run.path, image, "--checkpoint", "last"), "damaged checkpoint")
    for step in stopped.steps:
        (stopped.checkpoint(step) / "model.safetensors").write_bytes(b"no")
    outcome = hfcap("run", run.path, "--finish")
    assert outcome.code == 1 and "no checkpoint is whole" in outcome.err


@pytest.mark.parametrize("stopped", ["full"], indirect=True)
def test_checkpoints_of_other_data_say_nothing(stopped: Result, hfcap: Hfcap, tmp_path: Path) -> None:
    """The tokenizer is made of the training captions: other ones, other words."""
    image, run = write_image(tmp_path / "one.png"), stopped.run
    run.recipe.write_text(run.recipe.read_text().replace("n_train: 7", "n_train: 9"))
    outcome = hfcap("caption", run.path, image, "--checkpoint", "last")
    assert outcome.code == 2 and "has changed (" in outcome.err and "put it back" in outcome.err
