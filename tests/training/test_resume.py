"""A run that was stopped ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hfcap.errors import StoppedError, WorkError
from hfcap.run_directory.paths import RunDirectory
from hfcap.training import checkpoint
from hfcap.training.records.log import TrainingLog
from tests.training.harness import (
    FAMILIES,
    METHODS,
    Result,
    assert_same_tensors,
    send_signal_at,
    tiny_recipe,
    train,
)

pytestmark = pytest.mark.contract

EVERYTHING: dict[str, Any] = {
    "gradient_accumulation_steps": 3,  # of 4 micro-batches per epoch: windows of 3 and 1
    "ema_decay": 0.9,
    "eval_steps": 2,
    "warmup_steps": 2,
    "lr_scheduler_type": "cosine",
    "label_smoothing_factor": 0.1,
}


def assert_same_end(ours: Result, theirs: Result, step: int = 4) -> None:
    names = {path.name for path in theirs.checkpoint(step).glob("*.safetensors")}
    assert {"model.safetensors", "optimizer.safetensors", "random-0.safetensors"} <= names
    for name in names:
        assert_same_tensors(load_file(ours.checkpoint(step) / name), load_file(theirs.checkpoint(step) / name))
    assert_same_tensors(ours.model_weights(), theirs.model_weights())
    kept = ("step", "loss", "learning_rate", "grad_norm", "validation_loss", "epoch")
    assert [{k: row.get(k) for k in kept} for row in ours.rows] == [
        {k: row.get(k) for k in kept} for row in theirs.rows
    ]
    counted = ("step", "epoch", "window", "images_seen", "captions_seen", "best_value", "best_step", "scheduler")
    assert {k: ours.state(step)[k] for k in counted} == {k: theirs.state(step)[k] for k in counted}


def stop_and_continue(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch, *recipe: Any, **options: Any) -> Result:
    interrupted = tiny_recipe(recipe[0], folder, *recipe[1:], **options)
    with monkeypatch.context() as patch, pytest.raises(StoppedError, match=f"step {at} of 4"):
        send_signal_at(at, patch)
        train(interrupted)
    result = Result(_run_of(folder))
    assert result.steps[-1] == at
    assert not result.run.model.exists()
    return train(interrupted)


def _run_of(folder: Path) -> RunDirectory:
    return RunDirectory(folder / "tiny")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("captioner", FAMILIES)
def test_resume_is_exact_for_every_family(
    captioner: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_recipe(captioner, tmp_path / "whole", method, **EVERYTHING))
    # Step 3 lies inside the second epoch.
    resumed = stop_and_continue(tmp_path / "cut", 3, monkeypatch, captioner, method, **EVERYTHING)
    assert_same_end(resumed, whole)
    assert whole.losses[0] != whole.losses[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_num_workers": 2},
        {"freeze": ["vision"]},
        {"freeze": ["vision"], "data": {"feature_store": "off"}},
        {"logging_steps": 4},
        {"metric_for_best_model": "cider", "eval_steps": 1},
        {"gradient_accumulation_steps": 1, "mixed_precision": "bf16", "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_resume_is_exact_under(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**EVERYTHING, **options}
    whole = train(tiny_recipe("vit_gpt2", tmp_path / "whole", **settings))
    if settings.get("logging_steps") == 4:
        # Inside what one row of the log sums up; the signal comes with a validation's row.
        resumed = _stop_at_validation(tmp_path / "cut", monkeypatch, settings)
    else:
        resumed = stop_and_continue(tmp_path / "cut", 1, monkeypatch, "vit_gpt2", **settings)
    assert_same_end(resumed, whole)


def _stop_at_validation(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> Result:
    recipe = tiny_recipe("vit_gpt2", folder, **settings)
    write = TrainingLog.write

    def write_and_signal(self: TrainingLog, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(TrainingLog, "write", write_and_signal)
        train(recipe)
    return train(recipe)


def test_dropout_is_on_in_these_tests(tmp_path: Path) -> None:
    """Without it, a resume that forgets the random state would pass."""
    with_dropout = train(tiny_recipe("blip", tmp_path / "a", max_steps=1))
    without = train(tiny_recipe("blip", tmp_path / "b", dropout=0.0, max_steps=1))
    assert with_dropout.losses != without.losses


def test_how_often_one_validates_does_not_change_training(tmp_path: Path) -> None:
    often = train(tiny_recipe("blip", tmp_path / "a", eval_steps=1, metric_for_best_model="cider"))
    seldom = train(tiny_recipe("blip", tmp_path / "b", eval_steps=4))
    assert_same_tensors(often.weights(4), seldom.weights(4))


@pytest.mark.parametrize("moment", ["during the files", "at the rename"])
def test_a_kill_while_saving_leaves_only_complete_checkpoints(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os._exit` in a child is as sudden as SIGKILL: no handler, no `finally` runs."""
    recipe = tiny_recipe("vit_gpt2", tmp_path / "cut", save_steps=2, eval_steps=4)
    child = os.fork()
    if child == 0:
        saved: list[int] = []

        def die_at_second_checkpoint(*arguments: Any, **keywords: Any) -> Any:
            target = Path(arguments[1])
            if target.name == "step-00000004":
                os._exit(9)
            return replace(*arguments, **keywords)

        def die_in_optimizer_file(tensors: Any, path: Path, **keywords: Any) -> None:
            if Path(path).name == "optimizer.safetensors":
                saved.append(1)
                if len(saved) == 2:
                    Path(path).write_bytes(b"half")
                    os._exit(9)
            save_file(tensors, path, **keywords)

        replace = os.replace
        if moment == "at the rename":
            monkeypatch.setattr(os, "replace", die_at_second_checkpoint)
        else:
            monkeypatch.setattr(checkpoint, "save_file", die_in_optimizer_file)
        try:
            train(recipe)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    result = Result(_run_of(tmp_path / "cut"))
    assert result.steps == [2]
    assert [path.name for path in result.run.checkpoints.iterdir() if path.name.startswith(".")]
    with result.run.log.open("a") as log:
        log.write('{"step": 4, "lo')  # a row that the kill cut off
    resumed = train(recipe)
    assert resumed.steps == [2, 4]
    assert [path.name for path in result.run.checkpoints.iterdir() if path.name.startswith(".")] == []
    assert [row["step"] for row in resumed.rows if "loss" in row] == [1, 2, 3, 4]
    whole = train(tiny_recipe("vit_gpt2", tmp_path / "whole", save_steps=2, eval_steps=4))
    assert_same_end(resumed, whole)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(2, patch)
        train(tiny_recipe("vit_gpt2", tmp_path))
    with pytest.raises(WorkError, match="other weights than this recipe trains"):
        train(tiny_recipe("vit_gpt2", tmp_path, freeze=["vision"]))


def test_a_second_interrupt_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A shell's background jobs start with Ctrl-C ignored; a person's command does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    send_signal_at(1, monkeypatch, signal.SIGINT)
    send_signal_at(1, monkeypatch, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe("vit_gpt2", tmp_path))
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


def test_nothing_in_a_run_is_pickled(tmp_path: Path) -> None:
    result = train(tiny_recipe("clip_prefix", tmp_path, "lora", ema_decay=0.9, report_to=["tensorboard"]))
    written = [path for path in result.run.path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        if path.suffix == ".safetensors":
            load_file(path)  # a JSON header and raw numbers, nothing else
            continue
        start = path.read_bytes()[:2]
        # Pickle protocols 2 to 5 start with 0x80 and their number; torch.save writes a zip file.
        assert start[:1] != b"\x80" and start != b"PK", path
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}, path


def test_a_full_disk_ends_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors has an error of its own for it; OSError is a message of the command line already."""

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    recipe = tiny_recipe("vit_gpt2", tmp_path, save_steps=2, eval_steps=4)
    with pytest.raises(WorkError, match=r"step-00000002: cannot be written \(I/O error: No space"):
        train(recipe)
    assert not list(_run_of(tmp_path).checkpoints.glob("*writing*"))
