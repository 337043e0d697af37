"""Stages of a run: what is skipped, what is done again, what is refused, what a run directory holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hfcap import decoding
from hfcap.captioners.loading import load_captioner
from hfcap.errors import MissingPackageError, UserError
from hfcap.files import only_one, read_json, read_json_lines
from hfcap.recipe.blocks import ExpectOptions, Recipe
from hfcap.recipe.loading import load_recipe, recipe_from_mapping
from hfcap.run.stages import Run, merged_model, most_frequent_caption
from hfcap.run_directory import stage_record
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.scoring import read_scores
from tests.training.harness import (
    FAMILIES,
    METHODS,
    Result,
    assert_same_tensors,
    forget_accelerator,
    recipe_values,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_of(folder: Path, captioner: str = "vit_gpt2", method: str = "full", **blocks: Any) -> Recipe:
    values = recipe_values(captioner, folder, method, max_steps=2)
    for name, block in blocks.items():
        values[name] = {**values[name], **block} if isinstance(values.get(name), dict) else block
    return recipe_from_mapping(values, "test")


def execute(recipe: Recipe, last: Any = "publish", force: bool = False) -> RunDirectory:
    forget_accelerator()
    run = Run(recipe)
    run.execute(last, force)
    return run.directory


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that went through all stages, to look at."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    directory = execute(recipe_of(tmp_path_factory.mktemp("finished")))
    torch.set_num_threads(threads)
    return directory


@pytest.fixture
def run(finished: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of it where `recipe_of(tmp_path)` has its run, to go on with."""
    return RunDirectory(shutil.copytree(finished.path, tmp_path / finished.path.name))


@pytest.mark.usefixtures("run")
def test_published_values_are_compared_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"bleu_1": 0.0, "cider": 2.5, "spice": 0.2}  # the last is not measured
    recipe = recipe_of(tmp_path, expect={"metrics": metrics, "source": "a paper, table 3", "tolerance": 0.02})
    execute(recipe, "score")
    run = Run(recipe)
    run.print_scores()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Published")]
    ours = {name: 100 * value for name, value in read_scores(run.directory.scores("test")).metrics.items() if value}
    assert said == [
        f"Published BLEU-1 0.0 (a paper, table 3): {ours.get('bleu_1', 0.0):.1f} here, reached within 2 %",
        f"Published CIDEr-D 250.0 (a paper, table 3): {ours.get('cider', 0.0):.1f} here, not reached",
    ]


def test_a_published_value_is_reached_within_its_tolerance() -> None:
    expect = ExpectOptions(metrics={"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}, tolerance=0.02, source="a paper")
    assert expect.reached({"a": 0.981, "b": 0.979, "c": None, "other": 9.0}) == {"a": True, "b": False}


def test_two_commands_do_not_work_on_one_run(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    directory = RunDirectory(Path(recipe.output_dir) / recipe.name)
    with only_one(directory.lock, "busy"), pytest.raises(UserError, match="another hfcap is working on this run"):
        execute(recipe, "train")
    assert not directory.recipe.exists()
    execute(recipe, "train")
    assert directory.model.is_dir() and not directory.lock.exists()


def test_a_finished_run_stays_finished_when_recipes_gain_a_key(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = run.summary.stat().st_mtime_ns
    # As if the block `expect` were new, in a later version, and training depended on it.
    more = (*stage_record.DEPENDS_ON["train"], "expect", "publish.tags")
    monkeypatch.setitem(stage_record.DEPENDS_ON, "train", more)
    execute(recipe_of(tmp_path), "train")
    assert run.summary.stat().st_mtime_ns == written


def times(folder: Path, *patterns: str) -> dict[str, int]:
    """Modification times of the files that match."""
    found = {str(path.relative_to(folder)): path.stat().st_mtime_ns for p in patterns for path in folder.glob(p)}
    assert found, patterns
    return found


TRAINED = ("model/*", "checkpoints/*/*", "training_summary.json", "log.jsonl")
CAPTIONED = ("predictions/*", "references/*")
SCORED = ("scores/*", "samples.json")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("captioner", FAMILIES)
def test_every_family_from_recipe_to_publishable_folder(captioner: str, method: str, tmp_path: Path) -> None:
    run = execute(recipe_of(tmp_path, captioner, method))
    rows = [row for _, row in read_json_lines(run.predictions("test"), "predictions")]
    assert [row["image_id"] for row in rows] == [f"test-{number:06d}" for number in range(5)]
    assert all(row.keys() - {"cut"} == {"image_id", "file_name", "caption", "score", "candidates"} for row in rows)
    scores = read_json(run.scores("test"), "scores")
    assert scores["n_images"] == 5 and {"bleu_4", "rouge_l", "cider"} <= scores["metrics"].keys()
    assert run.card.read_text().startswith("---\n")
    # What is published stands alone: it captions as the run does.
    published = load_captioner(str(run.publish), trust_remote_code=False)
    ours = load_captioner(str(run.path))
    assert_same_tensors(published.model.state_dict(), ours.model.state_dict())


def test_files_of_a_run_directory(finished: RunDirectory) -> None:
    run, folder = finished, finished.path.parent
    assert {path.name for path in run.path.iterdir()} == {
        "recipe.yaml",
        "environment.json",
        "log.jsonl",
        "training_summary.json",
        "stages.json",
        "checkpoints",
        "model",
        "predictions",
        "references",
        "scores",
        "samples.json",
        "verification",
        "README.md",
        "publish",
        "training_curve.png",  # of the card
    }
    names = ["test", "test.blank_images", "test.most_frequent_caption"]
    assert {path.name for path in (run.path / "predictions").iterdir()} == {f"{name}.jsonl" for name in names}
    assert {path.name for path in (run.path / "scores").iterdir()} == {f"{name}.json" for name in names}
    resolved = yaml.safe_load(run.recipe.read_text())
    assert resolved["train"]["adam_beta2"] == 0.999  # a default, spelled out
    assert load_recipe(run.recipe) == recipe_of(folder)
    environment = read_json(run.environment, "environment")
    assert environment["seed"] == 42 and environment["datasets"].keys() == {"train", "validation", "test"}
    assert environment["datasets"]["test"]["n_captions"] == 25
    assert str(folder) not in run.card.read_text()


def test_references_are_coco_and_baselines_say_the_same_to_every_image(finished: RunDirectory) -> None:
    references = read_json(finished.references("test"), "references")
    assert len(references["images"]) == 5 and len(references["annotations"]) == 25
    assert {note["image_id"] for note in references["annotations"]} == {image["id"] for image in references["images"]}
    for name in ("test.blank_images", "test.most_frequent_caption"):
        rows = [row for _, row in read_json_lines(finished.predictions(name), "predictions")]
        assert len(rows) == 5 and len({row["caption"] for row in rows}) == 1


def test_most_frequent_caption() -> None:
    class Nothing:
        def read(self) -> bytes:
            return b""

        def describe(self) -> str:
            return "nothing"

    records = [
        CaptionedImage("1", "1.png", ("A  dog", "a cat"), Nothing()),
        CaptionedImage("2", "2.png", ("a cat", "a dog"), Nothing()),
        CaptionedImage("3", "3.png", ("the bird",), Nothing()),
    ]
    assert most_frequent_caption(records) == "a dog"


def test_samples_show_best_middle_and_worst(tmp_path: Path) -> None:
    run = execute(recipe_of(tmp_path, data={"n_test": 12}), "score")
    samples = read_json(run.samples, "samples")
    assert len(samples) == 9
    per_image = read_json(run.scores("test"), "scores")["per_image"]
    ranked = sorted((values["cider"] for values in per_image.values()), reverse=True)
    assert [sample["score"] for sample in samples[:3]] == ranked[:3]
    assert [sample["score"] for sample in samples[-3:]] == ranked[-3:]
    assert all(len(sample["references"]) == 5 for sample in samples)


def test_samples_without_cider(run: RunDirectory, tmp_path: Path) -> None:
    execute(recipe_of(tmp_path, score={"metrics": ["rouge_l"]}), "publish")
    samples = read_json(run.samples, "samples")
    assert len(samples) == 5 and all(sample["score"] is None for sample in samples)


def test_finished_stages_are_skipped(run: RunDirectory, tmp_path: Path) -> None:
    before = times(run.path, *TRAINED, *CAPTIONED, *SCORED)
    execute(recipe_of(tmp_path))
    assert times(run.path, *TRAINED, *CAPTIONED, *SCORED) == before


def test_changed_decoding_is_captioned_and_scored_again_but_not_trained(run: RunDirectory, tmp_path: Path) -> None:
    trained, later = times(run.path, *TRAINED), times(run.path, *CAPTIONED, *SCORED)
    execute(recipe_of(tmp_path, generate={"max_new_tokens": 3}))
    assert times(run.path, *TRAINED) == trained
    again = times(run.path, *CAPTIONED, *SCORED)
    assert again.keys() == later.keys()
    assert [name for name in later if again[name] == later[name]] == []
    rows = [row for _, row in read_json_lines(run.predictions("test"), "predictions")]
    tokenizer = load_captioner(str(run.path)).tokenizer
    assert all(len(tokenizer(row["caption"], add_special_tokens=False)["input_ids"]) <= 3 for row in rows)
    assert read_json(run.scores("test"), "scores")["signature"]["run"]["decoding"]["max_new_tokens"] == 3


def test_changed_decoding_beyond_the_text_models_positions_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    before = times(run.path, "predictions/*")
    with pytest.raises(UserError, match=r"max_new_tokens=5000 does not fit into the text model"):
        execute(recipe_of(tmp_path, generate={"num_beams": 1, "max_new_tokens": 5000}), "caption")
    assert times(run.path, "predictions/*") == before


def test_changed_scoring_is_only_scored_again(run: RunDirectory, tmp_path: Path) -> None:
    before = times(run.path, *TRAINED, *CAPTIONED)
    execute(recipe_of(tmp_path, score={"metrics": ["bleu"]}))
    assert times(run.path, *TRAINED, *CAPTIONED) == before
    assert read_json(run.scores("test"), "scores")["metrics"].keys() == {"bleu_1", "bleu_2", "bleu_3", "bleu_4"}


def test_changed_training_is_refused_with_the_keys_named(run: RunDirectory, tmp_path: Path) -> None:
    before = times(run.path, *TRAINED, "recipe.yaml")
    with pytest.raises(UserError) as caught:
        execute(recipe_of(tmp_path, train={"learning_rate": 0.5}, data={"n_train": 9}))
    message = str(caught.value)
    assert "train.learning_rate: 0.01 there, 0.5 here" in message and "data.n_train: 7 there, 9 here" in message
    assert "choose another name" in message and str(run.path) in message
    assert times(run.path, *TRAINED, "recipe.yaml") == before


def test_a_mistake_may_be_mended_before_anything_was_trained(tmp_path: Path) -> None:
    """The first attempt leaves the start of a LoRA run; the second must not take it for its own."""
    first = recipe_of(tmp_path, "vit_gpt2", "lora", train={"freeze": ["vision", "text"]})
    with pytest.raises(UserError, match="leaves nothing to train"):
        execute(first)
    other = recipe_of(tmp_path, "vit_gpt2", "lora", train={"seed": 7})
    run = execute(other, "caption")
    base = load_captioner(str(run.base_model)).model.state_dict()
    fresh = execute(other.model_copy(update={"name": "fresh"}), "train")
    assert_same_tensors(base, load_captioner(str(fresh.base_model)).model.state_dict())


def test_force_trains_again_and_what_came_from_the_old_model_goes(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "vit_gpt2", "lora")
    run = execute(recipe)
    before = times(run.path, *TRAINED, *CAPTIONED, *SCORED, "merged_model/*", "publish/*.safetensors")
    execute(recipe, "train", force=True)
    assert not run.merged_model.exists()
    execute(recipe)
    after = times(run.path, *TRAINED, *CAPTIONED, *SCORED, "merged_model/*", "publish/*.safetensors")
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] == before[name]] == []


def test_force_of_one_stage_redoes_what_follows(run: RunDirectory, tmp_path: Path) -> None:
    trained, captioned, scored = times(run.path, *TRAINED), times(run.path, *CAPTIONED), times(run.path, *SCORED)
    execute(recipe_of(tmp_path), "caption", force=True)
    assert times(run.path, *TRAINED) == trained
    execute(recipe_of(tmp_path))
    assert all(value != captioned[name] for name, value in times(run.path, *CAPTIONED).items())
    assert all(value != scored[name] for name, value in times(run.path, *SCORED).items())


def test_captioning_goes_on_where_it_was_killed_but_never_with_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, train={"per_device_eval_batch_size": 2})
    execute(recipe, "train")
    captioned: list[int] = []
    original = decoding.caption_batches

    def killed_after_one_batch(captioner: Any, job: Any, numbers: Any) -> Iterator[Any]:
        for batch in original(captioner, job, numbers):
            captioned.append(len(batch))
            yield batch
            if limit and len(captioned) == limit:
                raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "caption_batches", killed_after_one_batch)
    limit = 1
    with pytest.raises(KeyboardInterrupt):
        execute(recipe, "caption")
    (part,) = (tmp_path / "tiny" / "predictions").glob("*.part-*")
    kept = part.read_text()
    assert kept.count("\n") == 2
    with part.open("a") as handle:
        handle.write('{"image_id": "test-00')  # a row that the kill cut off
    limit = 0
    captioned.clear()
    run = execute(recipe, "caption")
    assert run.predictions("test").read_text().startswith(kept)
    assert sum(captioned) == 3 + 5  # the rest of the split, then the blank images

    limit = len(captioned) + 1
    changed = recipe_of(tmp_path, train={"per_device_eval_batch_size": 2}, generate={"max_new_tokens": 2})
    with pytest.raises(KeyboardInterrupt):
        execute(changed, "caption")
    limit = 0
    captioned.clear()
    execute(recipe, "caption")  # back to the first options: rows made with the others are worthless
    assert sum(captioned) == 5 + 5


@pytest.mark.usefixtures("forks")
def test_a_killed_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL from outside, at whatever moment after the first checkpoint it comes."""
    values = recipe_values("vit_gpt2", tmp_path, max_steps=30, save_steps=1, eval_steps=30)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hfcap", "train", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    result = Result(RunDirectory(tmp_path / "tiny"))
    while process.poll() is None and not (result.run.checkpoints.is_dir() and result.steps):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # until its stream is closed, and it has ended
    assert process.returncode == -signal.SIGKILL
    assert result.steps and not result.run.model.exists()
    execute(load_recipe(path), "train")
    whole = execute(load_recipe(path, ["name=whole"]), "train")
    assert_same_tensors(result.model_weights(), Result(whole).model_weights())
    assert result.losses == Result(whole).losses


def test_merged_model(finished: RunDirectory, tmp_path: Path) -> None:
    assert merged_model(finished, wanted=False) is None
    with pytest.raises(UserError, match="--merged is for LoRA runs"):
        merged_model(finished, wanted=True)
    lora = execute(recipe_of(tmp_path, "blip", "lora"), "train")
    folder = merged_model(lora, wanted=False)
    assert folder == lora.merged_model
    adapted = load_captioner(str(lora.path), merge=False)
    merged = load_captioner(str(folder))
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = (
            captioner.model(pixel_values=pixels, input_ids=torch.tensor([[1, 5, 9]])).logits
            for captioner in (adapted, merged)
        )
    assert torch.allclose(ours, theirs, atol=1e-5)
    base = load_captioner(str(lora.base_model))
    with torch.no_grad():
        plain = base.model(pixel_values=pixels, input_ids=torch.tensor([[1, 5, 9]])).logits
    assert float((plain - ours).abs().max()) > 1e-4


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"train\.report_to: wandb.*pip install 'wandb>=0"):
        Run(recipe_of(tmp_path, train={"report_to": ["wandb"]}))


def test_the_record_of_stages_is_plain_json(finished: RunDirectory) -> None:
    state = json.loads((finished.path / "stages.json").read_text())
    assert state.keys() == {"train", "caption", "score", "working_directory"}
    assert all(state[name]["done"] is True for name in ("train", "caption", "score"))
    assert state["caption"]["recipe"]["generate"]["max_new_tokens"] == 6
    assert state["train"]["facts"]["weights"].keys() == {"model/model.safetensors"}
