"""Damaged files of a run are named, and training goes on from the checkpoint before, to the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hfcap.errors import StoppedError
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.checkpoint import CHECKSUMS, checkpoint_steps, damage_of
from hfcap.training.records.log_file import cut_end, read_log
from tests.training.harness import Result, assert_same_tensors, send_signal_at, tiny_recipe, train

OPTIONS: dict[str, Any] = {"save_steps": 1, "eval_steps": 4, "save_total_limit": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The training that nothing disturbs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = train(tiny_recipe("vit_gpt2", tmp_path_factory.mktemp("whole"), **OPTIONS))
    torch.set_num_threads(threads)
    return result


def stopped_at(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Result:
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(step, patch)
        train(tiny_recipe("vit_gpt2", folder, **{**OPTIONS, **options}))
    return Result(RunDirectory(folder / "tiny"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a flipped bit in the weights": ("model.safetensors", flip_a_bit),
    "a flipped bit in the optimiser": ("optimizer.safetensors", flip_a_bit),
    "cut weights": ("model.safetensors", cut),
    "zeros in the random state": ("random-0.safetensors", zeros),
    "no random state": ("random-0.safetensors", Path.unlink),
    "zeros in the state": ("state.json", zeros),
    "a list as state": ("state.json", lambda path: path.write_text("[]")),
    "zeros in the checksums": (CHECKSUMS, zeros),
    "a list of checksums": (CHECKSUMS, lambda path: path.write_text("[]")),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_checkpoint_before_is_used_and_that_is_said(
    kind: str, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, damage = DAMAGE[kind]
    result = stopped_at(2, tmp_path, monkeypatch)
    assert result.steps == [1, 2] and damage_of(result.checkpoint(2)) is None
    damage(result.checkpoint(2) / name)
    resumed = train(tiny_recipe("vit_gpt2", tmp_path, **OPTIONS))
    said = " ".join(capsys.readouterr().err.split())
    assert "step-00000002" in said and "damaged checkpoint" in said
    assert "continuing from the one before, step 1" in said and "Continuing at step 1 of 4" in said
    assert_same_tensors(resumed.model_weights(), whole.model_weights())
    assert resumed.losses == whole.losses
    assert [path.name for path in resumed.run.checkpoints.glob("damaged-*")] == ["damaged-step-00000002"]


def test_without_a_checkpoint_before_training_begins_anew(
    whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = stopped_at(1, tmp_path, monkeypatch)
    flip_a_bit(result.checkpoint(1) / "model.safetensors")
    resumed = train(tiny_recipe("vit_gpt2", tmp_path, **OPTIONS))
    assert "training begins again" in " ".join(capsys.readouterr().err.split())
    assert_same_tensors(resumed.model_weights(), whole.model_weights())


def test_weights_that_are_no_numbers_are_not_continued_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint written between the update that broke the weights and the loss that shows it."""
    result = stopped_at(2, tmp_path, monkeypatch)
    path = result.checkpoint(2) / "model.safetensors"
    tensors = load_file(path)
    first = min(tensors)
    tensors[first] = torch.full_like(tensors[first], torch.nan)
    save_file(tensors, path)
    (result.checkpoint(2) / CHECKSUMS).unlink()  # as an earlier version left it
    resumed = train(tiny_recipe("vit_gpt2", tmp_path, **OPTIONS))
    said = " ".join(capsys.readouterr().err.split())
    assert f"weights that are no longer numbers ({first})" in said and "Continuing at step 1" in said
    assert resumed.steps[-1] == 4


def test_a_damaged_best_checkpoint_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"eval_steps": 1, "metric_for_best_model": "cider", "save_total_limit": 2}
    result = stopped_at(3, tmp_path, monkeypatch, **options)
    best = result.state(3)["best_step"]
    assert best is not None and best < 3, "choose other options: the best one must not be the newest"
    flip_a_bit(result.checkpoint(best) / "model.safetensors")
    resumed = train(tiny_recipe("vit_gpt2", tmp_path, **{**OPTIONS, **options}))
    assert "the best of the checkpoints after it" in " ".join(capsys.readouterr().err.split())
    assert resumed.summary["best_step"] == 4
    kept = load_file(resumed.checkpoint(4) / "model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in resumed.model_weights().items() if name in kept)


def test_other_folders_and_later_keys_do_not_matter(
    whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = stopped_at(2, tmp_path, monkeypatch)
    copies = [result.run.checkpoints / name for name in ("step-00000002 (copy)", "step-2", "step-00000009.bak")]
    for copy in copies:
        shutil.copytree(result.checkpoint(1), copy)
    state = json.loads((result.checkpoint(2) / "state.json").read_text())
    (result.checkpoint(2) / "state.json").write_text(json.dumps({**state, "a_later_key": 7}))
    (result.checkpoint(2) / CHECKSUMS).unlink()
    resumed = train(tiny_recipe("vit_gpt2", tmp_path, **OPTIONS))
    assert_same_tensors(resumed.model_weights(), whole.model_weights())
    assert resumed.losses == whole.losses
    assert all(copy.is_dir() for copy in copies)
    assert checkpoint_steps(resumed.run.checkpoints) == [2, 3, 4]


@pytest.mark.parametrize(
    "end",
    [
        b"\0" * 5000,
        b'{"step": 2, "los',
        b"\0" * 4096 + b"\n" + b"\0" * 10,
        b"[]\n" * 3,
        b'{"step": "x"}\n',
        b"\xff\xfe\n",
    ],
    ids=["zeros", "cut", "zero lines", "lists", "no step", "no text"],
)
def test_a_damaged_log_is_cut_behind_its_last_row(
    end: bytes, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = stopped_at(2, tmp_path, monkeypatch)
    with result.run.log.open("ab") as log:
        log.write(end)
    resumed = train(tiny_recipe("vit_gpt2", tmp_path, **OPTIONS))
    assert resumed.losses == whole.losses
    assert [row["step"] for row in resumed.rows if "loss" in row] == [1, 2, 3, 4]


def test_cutting_a_log_reads_only_its_end(tmp_path: Path) -> None:
    """Rows before the end may be anything; so may a line without end."""
    path = tmp_path / "log.jsonl"
    rows = [b'{"step": 1}\n', b"\0\0\0\n", b'{"step": 2}\n', b'{"step": 3}\n']
    path.write_bytes(b"".join(rows) + b"x" * 3_000_000)
    assert cut_end(path, 2) == 0
    assert path.read_bytes() == b"".join(rows[:3])
    assert cut_end(path, 1) == 1
    assert path.read_bytes() == rows[0]
    assert cut_end(path, 0) == 0 and path.read_bytes() == b""


def test_a_long_log_is_read_in_a_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hfcap.training.records.log_file._MOST_ROWS", 10)
    path = tmp_path / "log.jsonl"
    rows = [{"step": step, **({"validation_loss": 1.0} if step == 57 else {"loss": 2.0})} for step in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\0" * 9)
    assert [row["step"] for row in read_log(path)] == [0, 10, 20, 30, 40, 50, 57, 60, 70, 80, 90]
