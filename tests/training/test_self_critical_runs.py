"""Self-critical training as a run: it continues from an earlier run, resumes exactly, takes LoRA, stops itself."""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hfcap.captioners.loading import load_captioner
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.files import read_json, write_text
from hfcap.recipe.blocks import Recipe
from hfcap.recipe.loading import RecipeError, dump_recipe, recipe_from_mapping
from hfcap.registry import names
from hfcap.run.stages import Run
from hfcap.run_directory.paths import RunDirectory
from hfcap.training.records.log import TrainingLog
from tests.training.harness import (
    FAMILIES,
    METHODS,
    Result,
    assert_same_tensors,
    forget_accelerator,
    recipe_values,
    send_signal_at,
    tiny_recipe,
    train,
)

SCST = {"num_samples": 3, "max_bad_endings": 1.0}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of cross-entropy training with LoRA, the more difficult start: its weights must be merged."""
    recipe = tiny_recipe("clip_prefix", tmp_path_factory.mktemp("earlier"), "lora")
    result = train(recipe)
    write_text(result.run.recipe, dump_recipe(recipe))
    return result.run.path


def scst_recipe(earlier: Path, folder: Path, method: str = "full", scst: Any = SCST, **train_options: Any) -> Recipe:
    options = {"metric_for_best_model": "cider", "eval_steps": 2, "learning_rate": 1e-3, **train_options}
    values = recipe_values("clip_prefix", folder, method, **options)
    values |= {"model": {"pretrained": str(earlier)}, "scst": dict(scst)}
    return recipe_from_mapping(values, "test")


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_exact(earlier: Path, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"gradient_accumulation_steps": 2, "mixed_precision": "bf16", "logging_steps": 2}
    scst = {**SCST, "kl_weight": 0.1, "baseline": "greedy" if method == "lora" else "leave_one_out"}
    whole = train(scst_recipe(earlier, tmp_path / "whole", method, scst, **options))
    cut = scst_recipe(earlier, tmp_path / "cut", method, scst, **options, save_steps=3)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(2, patch)
        train(cut)
    resumed = train(cut)
    for name in ("model", "optimizer", "random-0"):
        paths = [result.checkpoint(4) / f"{name}.safetensors" for result in (whole, resumed)]
        assert_same_tensors(load_file(paths[0]), load_file(paths[1]))
    measured = ("per_second", "seconds", "share", "memory")
    rows = [
        [{k: v for k, v in row.items() if not any(word in k for word in measured)} for row in result.rows]
        for result in (whole, resumed)
    ]
    assert rows[0] == rows[1]
    assert {"reward", "cider", "advantage", "bad_endings", "unfinished", "words", "divergence"} <= set(rows[0][0])
    assert {"validation_loss", "validation_cider", "validation_bad_endings"} <= set(rows[0][1])
    start = load_captioner(str(earlier)).model.state_dict()
    if method == "full":
        moved = whole.model_weights()
        assert any(not moved[name].equal(start[name]) for name in moved if name in start)


@pytest.mark.parametrize("captioner", FAMILIES)
def test_every_family_continues_with_rewards(captioner: str, tmp_path: Path) -> None:
    """Two updates from a run of the same family: adapters move, all others stay, and the log says what was earned."""
    start = train(tiny_recipe(captioner, tmp_path / "start", max_steps=1))
    write_text(start.run.recipe, dump_recipe(tiny_recipe(captioner, tmp_path / "start", max_steps=1)))
    options: dict[str, Any] = {"metric_for_best_model": "cider", "max_steps": 2, "learning_rate": 1e-2}
    values = recipe_values(captioner, tmp_path / "scst", "lora", **options)
    values |= {"model": {"pretrained": str(start.run.path)}, "scst": SCST}
    result = train(recipe_from_mapping(values, "test"))
    rows = [row for row in result.rows if "reward" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(math.isfinite(row[name]) for row in rows for name in ("loss", "reward", "cider", "grad_norm"))
    moved = result.model_weights()
    second = [tensor for name, tensor in moved.items() if "lora_B" in name]
    # LoRA's second matrices start from zero.
    assert second and any(float(tensor.abs().max()) > 0 for tensor in second)


@pytest.mark.parametrize("captioner", sorted(set(names("captioners")) - set(FAMILIES)))
def test_families_without_gradients_refuse_rewards(captioner: str, tmp_path: Path) -> None:
    values = recipe_values(captioner, tmp_path, metric_for_best_model="cider")
    with pytest.raises(RecipeError, match=rf"scst: captioner {captioner} trains no weights; remove this block"):
        recipe_from_mapping({**values, "scst": SCST}, "test")


def test_a_row_that_a_stop_cut_in_two_is_the_same(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(scst_recipe(earlier, tmp_path / "whole", logging_steps=4))
    recipe = scst_recipe(earlier, tmp_path / "cut", logging_steps=4, max_steps=4)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        _signal_at_validation(patch)
        train(recipe)
    resumed = train(recipe)
    rows = [next(row for row in result.rows if "reward" in row) for result in (whole, resumed)]
    assert rows[0]["reward"] == pytest.approx(rows[1]["reward"], rel=1e-12)
    assert rows[0]["words"] == rows[1]["words"]


def _signal_at_validation(patch: pytest.MonkeyPatch) -> None:
    write = TrainingLog.write

    def write_and_signal(self: TrainingLog, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(TrainingLog, "write", write_and_signal)


def test_every_stage_after_lora_on_an_earlier_run(earlier: Path, tmp_path: Path) -> None:
    forget_accelerator()
    recipe = scst_recipe(earlier, tmp_path, "lora")
    Run(recipe).execute("publish")
    run = RunDirectory(tmp_path / "tiny")
    # The start is in no repository, so the run keeps it, and what is published stands alone.
    assert run.base_model.is_dir() and (run.model / "adapter_config.json").is_file()
    assert not (run.publish / "adapter_config.json").exists()
    kept = load_captioner(str(run.base_model)).model.state_dict()
    assert_same_tensors(kept, load_captioner(str(earlier)).model.state_dict())
    assert str(earlier) not in run.card.read_text(encoding="utf-8")
    forget_accelerator()
    before = Result(run).rows
    Run(recipe).execute("publish")
    assert Result(run).rows == before  # all finished: nothing is done again


def test_training_stops_when_captions_stop_in_the_middle(earlier: Path, tmp_path: Path) -> None:
    # A captioner that hardly learnt anything ends its captions anywhere.
    recipe = scst_recipe(earlier, tmp_path, scst={"num_samples": 8, "max_bad_endings": 0.0}, max_steps=30)
    with pytest.raises(WorkError, match=r"scst\.max_bad_endings: 0\.0"):
        train(recipe)
    assert Result(RunDirectory(tmp_path / "tiny")).rows[-1]["step"] < 30


def test_earlier_run_without_model_or_of_another_kind(earlier: Path, tmp_path: Path) -> None:
    recipe = scst_recipe(earlier, tmp_path)
    other = recipe_values("vit_gpt2", tmp_path, metric_for_best_model="cider")
    other |= {"model": {"pretrained": str(earlier)}}
    with pytest.raises(UserError, match=r"holds a clip_prefix, not a vit_gpt2"):
        train(recipe_from_mapping(other, "test"))
    prompted = recipe.model_copy(update={"model": recipe.model.model_copy(update={"prompt": "a photo of"})})
    with pytest.raises(UserError, match=r"model\.prompt: .* not 'a photo of'"):
        train(prompted)
    unfinished = tmp_path / "unfinished"
    write_text(unfinished / "recipe.yaml", dump_recipe(recipe))
    with pytest.raises(UserError, match="this run has no model yet"):
        train(scst_recipe(unfinished, tmp_path))


def test_base_models_of_the_earlier_run_are_kept(earlier: Path, tmp_path: Path) -> None:
    result = train(scst_recipe(earlier, tmp_path, max_steps=1))
    found = read_json(result.run.environment, "environment")["base_models"]
    assert found == [{"id": str(earlier), "revision": None, "role": "captioner", "local": True}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {}}, "model.pretrained"),
        ({"train": {"metric_for_best_model": "loss"}}, "train.metric_for_best_model: cider"),
        ({"train": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor"),
        ({"scst": {"num_samples": 1}}, "num_samples"),
        ({"scst": {"reward": {"cider": 0.0}}}, "rewards nothing"),
        ({"scst": {"rewards": {}}}, "did you mean 'scst.reward'"),
    ],
    ids=str,
)
def test_recipes_that_cannot_be_meant(change: dict[str, dict[str, Any]], message: str, tmp_path: Path) -> None:
    values = recipe_values("clip_prefix", tmp_path, metric_for_best_model="cider")
    if "model" not in change:
        values["model"] = {"pretrained": "earlier"}
    values["scst"] = {}
    for block, keys in change.items():
        values[block] |= keys
    with pytest.raises(RecipeError, match=re.escape(message)):
        recipe_from_mapping(values, "test")
