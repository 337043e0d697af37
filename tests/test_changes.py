"""What may change while a run goes on: data, base models and versions are compared, recipe keys have a table."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from hfcap.captioners.loading import load_captioner
from hfcap.data.sources.hub import HubOptions
from hfcap.errors import StoppedError, UserError
from hfcap.files import read_json
from hfcap.recipe import AugmentOptions, DataOptions, LoraOptions, ModelOptions, TrainOptions
from hfcap.recipe_block import Block
from hfcap.recipe_changes import _TABLE, Effect, changed_values, key_changes
from hfcap.recipe_loading import recipe_from_mapping
from hfcap.recipe_scst import ScstOptions
from hfcap.run_directory import RunDirectory
from hfcap.stage_record import part_of
from hfcap.stages import Run
from tests.data.pictures import write_jpeg
from tests.hub_server import Hub
from tests.hub_server import hub as hub
from tests.test_run_directories import snapshot, write_photos
from tests.training.harness import (
    Result,
    assert_same_tensors,
    forget_accelerator,
    recipe_values,
    send_signal_at,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def values_of(folder: Path, photos: Path, **blocks: Any) -> dict[str, Any]:
    data = {"source": "folder", "root": str(photos)}
    values = recipe_values("vit_gpt2", folder, eval_steps=4, save_steps=1)
    values["data"] = data
    values["score"] = {"n_resamples": 10, "baselines": []}
    for name, block in blocks.items():
        values[name] = {**values[name], **block} if isinstance(values.get(name), dict) and block is not None else block
    return values


def execute(values: dict[str, Any], last: Any = "train", force: bool = False, accept: bool = False) -> Result:
    forget_accelerator()
    run = Run(recipe_from_mapping(values, "test"), accept_changes=accept)
    run.execute(last, force)
    return Result(run.directory)


def stopped(values: dict[str, Any], step: int = 2) -> Result:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        send_signal_at(step, patch)
        execute(values)
    return Result(RunDirectory(Path(values["output_dir"]) / values["name"]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos")
    return tmp_path / "photos"


# ---- data ----------------------------------------------------------------------------------------------------------


def edit_metadata(photos: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = photos / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_captions(photos: Path) -> None:
    edit_metadata(photos, lambda rows: rows[0].update(captions=["something else", "entirely"]))


def one_picture_less(photos: Path) -> None:
    edit_metadata(photos, lambda rows: rows.pop(0))
    (photos / "red.jpg").unlink()


def other_pixels(photos: Path) -> None:
    write_jpeg(photos / "red.jpg", "pink")


def moved_between_splits(photos: Path) -> None:
    edit_metadata(photos, lambda rows: rows[4].update(split="train"))


CHANGES = {
    "captions": (
        other_captions,
        ["split train: captions (4 images with 8 captions then, 4 images with 8 captions now)"],
    ),
    "images removed": (
        one_picture_less,
        ["split train: image ids, file names, captions, content of images (4", "3 images"],
    ),
    "images changed": (other_pixels, ["split train: content of images"]),
    "another split": (moved_between_splits, ["split train: image ids", "split validation: image ids"]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_training_does_not_go_on_with_other_data(kind: str, photos: Path, tmp_path: Path) -> None:
    """Once: 'Continuing at step 14', and a vocabulary that fits neither the old captions nor the new ones."""
    change, said = CHANGES[kind]
    result = stopped(values_of(tmp_path / "runs", photos))
    before = snapshot(result.run.path)
    change(photos)
    with pytest.raises(UserError) as refused:
        execute(values_of(tmp_path / "runs", photos))
    for words in (*said, str(result.run.path), "hfcap train", "--force", "--accept-changes"):
        assert words in str(refused.value)
    assert snapshot(result.run.path) == before


def test_changed_data_may_be_accepted(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = stopped(values)
    other_pixels(photos)
    resumed = execute(values, accept=True)
    assert "Continuing at step 2 of 4" in capsys.readouterr().err
    assert resumed.summary["steps"] == 4
    changes = read_json(result.run.environment, "environment")["changes"]
    assert [change["stage"] for change in changes] == ["train"] and "content of images" in changes[0]["what"][0]
    # From here on the data as it is now is what the run knows.
    assert execute(values, "score").run.scores("test").is_file()


def test_a_vocabulary_of_other_captions_is_refused_whatever_is_accepted(photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos, model={"tokenizer": {"vocab_size": 300}})
    stopped(values)
    edit_metadata(photos, lambda rows: rows[0].update(captions=["zebra zebra zebra zebra", "quiz quiz quiz quiz"]))
    with pytest.raises(UserError, match="the tokenizer is not the one that this training began with"):
        execute(values, accept=True)
    assert execute(values, force=True).summary["steps"] == 4


def test_captions_and_scores_belong_to_the_data_they_were_made_of(photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = execute(values, "caption")
    edit_metadata(photos, lambda rows: rows[-1].update(captions=["nothing like it"]))
    with pytest.raises(UserError, match=r"split test: captions[\s\S]*hfcap caption .* --force"):
        execute(values, "score")
    assert not result.run.scores("test").exists()
    execute(values, "caption", force=True)
    references = result.run.references("test").read_text()
    assert "nothing like it" in references
    assert execute(values, "score").run.scores("test").is_file()
    # Of a finished run nothing is compared: nothing would be mixed.
    edit_metadata(photos, lambda rows: rows[-1].update(captions=["again"]))
    execute(values, "score")


def test_images_that_were_only_copied_are_the_same(photos: Path, tmp_path: Path) -> None:
    """What counts is content: the folder may move, and its files may be younger."""
    values = values_of(tmp_path / "runs", photos)
    stopped(values)
    shutil.copytree(photos, tmp_path / "elsewhere")
    shutil.rmtree(photos)
    moved = values_of(tmp_path / "runs", tmp_path / "elsewhere")
    assert execute(moved).summary["steps"] == 4
    assert execute(moved, "score").run.scores("test").is_file()


# ---- base models and versions --------------------------------------------------------------------------------------


def save_base(folder: Path, scale: float = 1.0) -> None:
    """A whole captioner as base model; `scale` changes its weights."""
    values = recipe_values("vit_gpt2", folder.parent / "bases")
    if not folder.exists():
        forget_accelerator()
        run = Run(recipe_from_mapping({**values, "name": folder.name}, "test"))
        run.execute("train")
        shutil.copytree(run.directory.model, folder)
    path = folder / "model.safetensors"
    save_file({name: tensor * scale for name, tensor in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_training_does_not_go_on_from_another_base(method: str, photos: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    save_base(base)
    lora = {"r": 2} if method == "lora" else None
    values = {**values_of(tmp_path / "runs", photos), "model": {"pretrained": str(base)}, "lora": lora}
    stopped(values)
    save_base(base, scale=1.01)
    with pytest.raises(UserError, match=r"content of model\.pretrained\n  the weights that training starts from"):
        execute(values)
    resumed = execute(values, accept=True)
    assert resumed.summary["steps"] == 4
    if method == "lora":
        save_base(base, scale=1.01)
        with pytest.raises(UserError, match=r"the base model of the adapter"):
            execute(values, "caption")


def test_a_base_that_moved_is_the_same(photos: Path, tmp_path: Path) -> None:
    base, moved = tmp_path / "base", tmp_path / "moved"
    save_base(base)
    values = {**values_of(tmp_path / "runs", photos), "model": {"pretrained": str(base)}}
    stopped(values)
    base.rename(moved)
    values["model"] = {"pretrained": str(moved)}
    assert execute(values).summary["steps"] == 4
    other = tmp_path / "other"
    shutil.copytree(moved, other)
    save_base(other, scale=2.0)
    with pytest.raises(UserError, match=r"model\.pretrained: .* another model"):
        execute({**values, "model": {"pretrained": str(other)}})


def test_a_base_on_the_hub_stays_the_commit_that_was_loaded(hub: Hub, photos: Path, tmp_path: Path) -> None:
    """Its branch moves while the run stands still."""
    base = tmp_path / "base"
    save_base(base)
    HfApi().create_repo("alice/base")
    first = HfApi().upload_folder(repo_id="alice/base", folder_path=base).oid
    model = {"pretrained": "alice/base"}
    values = {**values_of(tmp_path / "runs", photos), "model": model, "lora": {"r": 2}}
    stopped(values)
    whole = execute({**values, "name": "whole"})
    assert read_json(whole.run.model / "adapter_config.json", "adapter")["revision"] == first
    captions = execute({**values, "name": "whole"}, "caption").run.predictions("test")
    said = captions.read_text()
    save_base(base, scale=3.0)
    second = HfApi().upload_folder(repo_id="alice/base", folder_path=base).oid
    with pytest.raises(UserError, match=rf"base model alice/base: commit {first} then, {second} now"):
        execute(values)
    # The remedy that the message names; the spelling of a revision is no change of the recipe.
    resumed = execute({**values, "model": {**model, "revision": first}})
    assert_same_tensors(resumed.model_weights(), whole.model_weights())
    captions.unlink()
    assert execute({**values, "name": "whole"}, "caption").run.predictions("test").read_text() == said


def test_other_versions_are_a_warning(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = stopped(values)
    environment = read_json(result.run.environment, "environment")
    environment["versions"]["torch"] = "1.0"
    result.run.environment.write_text(json.dumps(environment))
    assert execute(values).summary["steps"] == 4
    assert "other versions than it began with: torch 1.0 -> " in " ".join(capsys.readouterr().err.split())
    assert "torch 1.0 -> " in json.dumps(read_json(result.run.environment, "environment")["changes"])


def test_weights_that_training_did_not_write_are_not_captioned_with(photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = execute(values)
    weights = result.run.model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model/model\.safetensors: gone, or not the file[\s\S]*delete .*model"):
        execute(values, "caption")
    shutil.rmtree(result.run.model)  # the remedy that the message names
    before = times(result.run.checkpoints)
    assert execute(values, "caption").run.predictions("test").is_file()
    assert times(result.run.checkpoints) == before


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ---- damaged records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "{", "\0\0\0", '{"train": 5}', '{"train": {"recipe": 7}}', "null"])
def test_a_damaged_record_of_stages_loses_no_training(
    content: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = execute(values, "caption")
    before = times(result.run.model) | times(result.run.checkpoints)
    result.run.stages.write_text(content)
    assert execute(values, "score").run.scores("test").is_file()
    assert "stages.json" in capsys.readouterr().err
    assert times(result.run.model) | times(result.run.checkpoints) == before
    assert read_json(result.run.stages, "stages")["train"]["done"] is True


def test_a_record_of_an_earlier_version_is_understood(photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = execute(values, "score")
    before = snapshot(result.run.path)
    result.run.stages.write_text(json.dumps({name: "0" * 64 for name in ("train", "caption", "score")}))
    execute(values, "score")
    after = snapshot(result.run.path)
    kept = [name for name in before if name.startswith(("model/", "predictions/", "scores/", "checkpoints/"))]
    assert kept and {name: after[name] for name in kept} == {name: before[name] for name in kept}


@pytest.mark.parametrize("content", ["[]", "{", "\0\0", '{"datasets": 5}'])
def test_a_damaged_environment_is_named(content: str, photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = stopped(values)
    result.run.environment.write_text(content)
    with pytest.raises(UserError, match=r"environment\.json[\s\S]*--accept-changes"):
        execute(values)
    assert execute(values, accept=True).summary["steps"] == 4


# ---- keys of the recipe --------------------------------------------------------------------------------------------


FREE: dict[str, dict[str, Any]] = {
    "workers": {"dataloader_num_workers": 1},
    "logging": {"logging_steps": 3, "report_to": ["tensorboard"]},
    "saving": {"save_steps": 3, "save_total_limit": 4},
    "memory of validation": {"per_device_eval_batch_size": 1},
    "memory of training": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", FREE)
def test_keys_that_change_nothing_that_is_learnt(kind: str, photos: Path, tmp_path: Path) -> None:
    whole = execute(values_of(tmp_path / "whole", photos))
    stopped(values_of(tmp_path / "runs", photos))
    changed = values_of(tmp_path / "runs", photos, train=FREE[kind])
    resumed = execute(changed)
    ours, theirs = resumed.model_weights(), whole.model_weights()
    if kind == "memory of training":
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    else:
        assert_same_tensors(ours, theirs)
    # A finished training stays finished, and is not done again for such a key.
    before = times(resumed.run.model)
    execute(values_of(tmp_path / "runs", photos))
    assert times(resumed.run.model) == before


def test_a_constant_rate_may_be_trained_longer(photos: Path, tmp_path: Path) -> None:
    steady = {"lr_scheduler_type": "constant", "eval_steps": 2}
    whole = execute(values_of(tmp_path / "whole", photos, train={**steady, "max_steps": 6}))
    first = execute(values_of(tmp_path / "runs", photos, train=steady), "score")
    assert first.summary["steps"] == 4
    longer = execute(values_of(tmp_path / "runs", photos, train={**steady, "max_steps": 6}), "score")
    assert longer.summary["steps"] == 6
    assert_same_tensors(longer.weights(6), whole.weights(6))
    assert_same_tensors(longer.model_weights(), whole.model_weights())
    assert longer.losses == whole.losses


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-3},
        {"max_steps": 6},  # of a cosine: its first steps would have been others
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"mixed_precision": "bf16"},
        {"early_stopping_patience": 3},
        {"lr_scheduler_type": "linear", "warmup_steps": 1},
        {"label_smoothing_factor": 0.1, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_other_keys_have_to_be_accepted(changed: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    """'lower train.learning_rate' after NaN was refused with 'holds a run of a different recipe'."""
    result = stopped(values_of(tmp_path / "runs", photos))
    before = snapshot(result.run.path)
    values = values_of(tmp_path / "runs", photos, train=changed)
    with pytest.raises(UserError) as refused:
        execute(values)
    for key, value in changed.items():
        assert f"train.{key}: " in str(refused.value) and f"{value!r} here" in str(refused.value)
    assert "--accept-changes" in str(refused.value) and snapshot(result.run.path) == before
    resumed = execute(values, accept=True)
    assert resumed.summary["steps"] == changed.get("max_steps", 4)
    rows = {row["step"]: row for row in resumed.rows if "loss" in row}
    assert list(rows) == list(range(1, resumed.summary["steps"] + 1))
    noted = json.dumps(read_json(resumed.run.environment, "environment")["changes"])
    assert all(f"train.{key}" in noted for key in changed)


def test_a_lower_rate_counts_from_the_checkpoint_on(photos: Path, tmp_path: Path) -> None:
    steady = {"lr_scheduler_type": "constant", "learning_rate": 1e-2}
    stopped(values_of(tmp_path / "runs", photos, train=steady))
    lower = values_of(tmp_path / "runs", photos, train={**steady, "learning_rate": 1e-4})
    resumed = execute(lower, accept=True)
    assert [row["learning_rate"] for row in resumed.rows if "loss" in row] == [1e-2, 1e-2, 1e-4, 1e-4]
    before, after = resumed.weights(3), resumed.weights(4)
    # Adam moves a weight by about the rate, or less.
    assert 0 < max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-3


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"freeze": ["vision"]}},
        {"train": {"ema_decay": 0.9}},
        {"lora": {"r": 2}},
        {"model": {"prompt": "a photo of"}},
    ],
    ids=str,
)
def test_another_model_is_not_continued_whatever_is_accepted(
    changed: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    result = stopped(values_of(tmp_path / "runs", photos))
    before = snapshot(result.run.path)
    values = values_of(tmp_path / "runs", photos, **changed)
    with pytest.raises(UserError, match="another model, which cannot go on"):
        execute(values, accept=True)
    assert snapshot(result.run.path) == before
    # The remedy that the message names.
    assert execute(values, force=True).summary["steps"] == 4
    assert load_captioner(str(result.run.path)).prompt.strip() == values["model"].get("prompt", "")


def test_the_table_has_no_dead_line_and_knows_every_key(photos: Path, tmp_path: Path) -> None:
    """A pattern that no key of any block meets first says nothing; the last one meets what remains."""
    blocks: dict[str, type[Block]] = {
        "model": ModelOptions,
        "data": DataOptions,
        "train": TrainOptions,
        "lora": LoraOptions,
        "augment": AugmentOptions,
        "scst": ScstOptions,
    }
    keys = [f"{name}.{key}" for name, block in blocks.items() for key in block.model_fields]
    keys += [*(f"data.{key}" for key in HubOptions.model_fields), "captioner", "augment", "lora", "scst"]
    first = {next(pattern for pattern, _, _ in _TABLE if fnmatch.fnmatchcase(key, pattern)) for key in keys}
    assert first == {pattern for pattern, _, _ in _TABLE}
    assert all(reason for _, _, reason in _TABLE)


def test_a_new_key_of_hfcap_is_no_change(photos: Path, tmp_path: Path) -> None:
    recipe = recipe_from_mapping(values_of(tmp_path, photos), "test")
    now, given = part_of(recipe, "train"), part_of(recipe, "train", only_given=True)
    before = json.loads(json.dumps(now))
    del before["train"]["adam_beta2"], before["train"]["learning_rate"]
    assert changed_values(before, now, given) == {"train.learning_rate": (None, 0.01)}
    assert [
        change.effect for change in key_changes(before, {"train.seed": (1, 2)}, recipe, lambda *_: False, True)
    ] == [Effect.ASK]
    (change,) = key_changes(before, {"train.seed": (1, 2)}, recipe, lambda *_: False, continues=False)
    assert change.effect is Effect.ANEW


def test_a_recipe_edited_inside_the_run_is_a_changed_recipe(photos: Path, tmp_path: Path) -> None:
    values = values_of(tmp_path / "runs", photos)
    result = stopped(values)
    written = yaml.safe_load(result.run.recipe.read_text())
    written["train"]["weight_decay"] = 0.5
    result.run.recipe.write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match=r"train\.weight_decay: 0\.05 there, 0\.5 here"):
        execute(written)
