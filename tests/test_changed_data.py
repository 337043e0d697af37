"""What a run goes on from: its data, base models and versions are compared, damaged records are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from hfcap.errors import UserError
from hfcap.files import read_json
from hfcap.recipe.loading import recipe_from_mapping
from hfcap.run.stages import Run
from tests.changed_runs import edit_metadata, execute, stopped, times, values_of
from tests.changed_runs import photos as photos
from tests.data.sample_images import write_jpeg
from tests.hub_server import Hub
from tests.hub_server import hub as hub
from tests.test_run_directories import snapshot
from tests.training.harness import (
    assert_same_tensors,
    forget_accelerator,
    recipe_values,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def other_captions(photos: Path) -> None:
    edit_metadata(photos, lambda rows: rows[0].update(captions=["something else", "entirely"]))


def one_image_less(photos: Path) -> None:
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
        one_image_less,
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


def test_captions_and_scores_belong_to_the_data_they_were_made_of(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    # Of a finished run nothing is refused, as nothing would be mixed; it is said.
    edit_metadata(photos, lambda rows: rows[-1].update(captions=["again"]))
    capsys.readouterr()
    execute(values, "score")
    said = capsys.readouterr().err
    assert "Nothing was done again" in said and "train, caption, score" in said
    assert "has changed since:\n  split test: captions" in said and "hfcap train" in said and "--force" in said


def test_a_finished_run_says_what_changed_since(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once: exit code 0 and the old scores, without a word."""
    values = values_of(tmp_path / "runs", photos)
    result = execute(values, "score")
    assert "has changed since" not in capsys.readouterr().err
    execute(values, "score")
    said = capsys.readouterr().err
    assert "Nothing was done again" in said and "has changed since" not in said
    other_pixels(photos)
    for change in ({}, {"generate": {"num_beams": 1}}):  # the second captions again, with the old model
        execute(values | change, "score")
        said = capsys.readouterr().err
        assert "split train: content of images" in said and "begin another run" in said
    (photos / "metadata.jsonl").write_text("no JSON\n")
    execute(values, "train")
    assert "the data cannot be read any more" in capsys.readouterr().err
    shutil.rmtree(photos)  # a run that was carried elsewhere
    execute(values, "train")
    assert "has changed since" not in capsys.readouterr().err
    assert result.run.model.is_dir()


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
