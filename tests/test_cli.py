"""The command line: exit codes, one message for wrong input, what is printed and written."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml

from hfcap import __version__
from hfcap.captioners.loading import load_captioner
from hfcap.cli import main
from hfcap.data.images import FileImage, decode_image
from hfcap.data.source import load_split
from hfcap.files import read_json_lines
from hfcap.recipe_loading import load_recipe
from hfcap.run_directory import RunDirectory
from tests.data.pictures import write_jpeg
from tests.training.harness import Result, assert_same_tensors, forget_accelerator, recipe_values


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code and the two streams."""

    code: int
    out: str
    err: str


Hfcap = Callable[..., Outcome]


@pytest.fixture
def hfcap(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Hfcap]:
    """Run a command in this process, through `main` as the installed script does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: Any) -> Outcome:
        forget_accelerator()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["hfcap", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run
    torch.set_num_threads(threads)
    forget_accelerator()


def write_recipe(folder: Path, family: str = "vit_gpt2", method: str = "full", **blocks: Any) -> Path:
    """A recipe file whose runs go into `folder`/runs; a block given as mapping is merged into the default one."""
    values = recipe_values(family, folder / "runs", method, max_steps=2)
    for name, block in blocks.items():
        merge = isinstance(block, dict) and isinstance(values.get(name), dict) and name != "data"
        values[name] = {**values[name], **block} if merge else block
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2, nothing on standard output, one message on standard error that holds all fragments."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, outcome.err
    assert outcome.err.lstrip().startswith("error: "), outcome.err
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err


def assert_nothing_half_written(folder: Path) -> None:
    """No temporary files, no model, no checkpoints, no predictions."""
    names = {path.name for path in folder.rglob("*")}
    assert not [name for name in names if name.startswith(".")], names
    assert names.isdisjoint({"model", "checkpoints", "predictions", "scores", "publish", "environment.json"}), names


# ---- wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "fragments"),
    [
        ({"train": {"learning_rat": 1}}, ["recipe.yaml", "train.learning_rat", "learning_rate"]),
        ({"captioner": "blipp"}, ["recipe.yaml", "captioner", "blipp", "'blip'"]),
        ({"train": {"max_steps": "many"}}, ["recipe.yaml", "train.max_steps"]),
        ({"train": {"num_train_epochs": 2}}, ["num_train_epochs", "max_steps"]),
        ({"train": {"freeze": ["visoin"]}}, ["train.freeze", "visoin", "vision"]),
        ({"score": {"metrics": ["cidre"]}}, ["score.metrics", "cidre", "cider"]),
        ({"data": {"source": "scene"}}, ["data.source", "scene", "scenes"]),
    ],
    ids=str,
)
def test_a_wrong_recipe(blocks: dict[str, Any], fragments: list[str], tmp_path: Path, hfcap: Hfcap) -> None:
    outcome = hfcap("run", write_recipe(tmp_path, **blocks))
    assert_refused(outcome, *fragments)
    assert not (tmp_path / "runs").exists()


def test_all_errors_of_a_recipe_come_at_once(tmp_path: Path, hfcap: Hfcap) -> None:
    path = write_recipe(tmp_path, train={"learning_rat": 1, "seed": -1}, generate={"num_beams": 0})
    assert_refused(hfcap("train", path), "train.learning_rat", "train.seed", "generate.num_beams")


def test_a_recipe_that_is_not_there(tmp_path: Path, hfcap: Hfcap) -> None:
    assert_refused(hfcap("run", tmp_path / "nothing.yaml"), "nothing.yaml")


@pytest.mark.parametrize("override", ["train.learning_rat=1", "trian.seed=1", "seed", "train.seed=x"])
def test_a_wrong_override(override: str, tmp_path: Path, hfcap: Hfcap) -> None:
    assert_refused(hfcap("run", write_recipe(tmp_path), override), override.split("=")[0])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["run", "train", "caption", "score", "card", "publish"])
def test_a_folder_that_is_no_run_directory(command: str, tmp_path: Path, hfcap: Hfcap) -> None:
    assert_refused(hfcap(command, tmp_path), str(tmp_path), "recipe.yaml")


def picture_folder(folder: Path, **last: Any) -> Path:
    """Twelve captioned pictures; the keywords change the last one's metadata."""
    rows: list[dict[str, Any]] = []
    for number in range(12):
        write_jpeg(folder / f"{number}.jpg", size=(32, 32))
        rows.append({"file_name": f"{number}.jpg", "captions": ["a red square", "all red"]})
        rows[-1]["split"] = ("train", "validation", "test")[number % 3]
    rows[-1] |= last
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def on_folder(tmp_path: Path, hfcap: Hfcap) -> Outcome:
    return hfcap("run", write_recipe(tmp_path, data={"source": "folder", "root": str(tmp_path / "pictures")}))


def test_a_missing_picture(tmp_path: Path, hfcap: Hfcap) -> None:
    picture_folder(tmp_path / "pictures")
    (tmp_path / "pictures" / "3.jpg").unlink()
    assert_refused(on_folder(tmp_path, hfcap), "3.jpg", "max_unreadable_images")
    assert_nothing_half_written(tmp_path / "runs")


def test_a_corrupt_jpeg(tmp_path: Path, hfcap: Hfcap) -> None:
    path = picture_folder(tmp_path / "pictures") / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert_refused(on_folder(tmp_path, hfcap), "3.jpg", "max_unreadable_images")
    assert_nothing_half_written(tmp_path / "runs")


@pytest.mark.parametrize("captions", [[], ["   "], None])
def test_a_picture_without_caption(captions: Any, tmp_path: Path, hfcap: Hfcap) -> None:
    picture_folder(tmp_path / "pictures", captions=captions)
    assert_refused(on_folder(tmp_path, hfcap), "metadata.jsonl", "line 12")
    assert_nothing_half_written(tmp_path / "runs")


def test_after_mending_the_data_the_same_command_works(tmp_path: Path, hfcap: Hfcap) -> None:
    picture_folder(tmp_path / "pictures")
    broken = tmp_path / "pictures" / "3.jpg"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    assert on_folder(tmp_path, hfcap).code == 2
    broken.write_bytes(content)
    outcome = on_folder(tmp_path, hfcap)
    assert outcome.code == 0, outcome.err


def test_a_test_split_that_is_missing_is_known_before_the_training(tmp_path: Path, hfcap: Hfcap) -> None:
    scenes = {"source": "scenes", "n_train": 7, "n_validation": 4, "n_test": 0, "image_size": 32}
    path = write_recipe(tmp_path, data=scenes)
    assert_refused(hfcap("run", path), "data.test_split")
    assert_nothing_half_written(tmp_path / "runs")
    assert hfcap("train", path).code == 0  # which needs no test split


def test_a_lora_target_that_matches_nothing(tmp_path: Path, hfcap: Hfcap) -> None:
    path = write_recipe(tmp_path, method="lora", lora={"target_modules": ["c_atn"]})
    assert_refused(hfcap("run", path), "lora.target_modules", "'c_atn'", "c_attn")
    assert_nothing_half_written(tmp_path / "runs")


@pytest.mark.parametrize("captioner", ["blip", "clip_prefix", "vit_gpt2"])
def test_a_base_model_without_weights(captioner: str, tmp_path: Path, hfcap: Hfcap) -> None:
    first = hfcap("train", write_recipe(tmp_path, captioner))
    assert first.code == 0, first.err
    model = tmp_path / "runs" / "tiny" / "model"
    next(model.glob("*.safetensors")).unlink()
    path = write_recipe(tmp_path, captioner, name="second", model={})
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "model": {"pretrained": str(model)}}))
    assert_refused(hfcap("train", path), "model.pretrained", str(model), "safetensors")
    assert_nothing_half_written(tmp_path / "runs" / "second")


def test_training_pictures_fewer_than_one_update_needs(tmp_path: Path, hfcap: Hfcap) -> None:
    path = write_recipe(tmp_path, train={"max_steps": None, "num_train_epochs": 0.01})
    assert_refused(hfcap("train", path), "train.num_train_epochs")


def test_a_changed_recipe_for_a_trained_run(tmp_path: Path, hfcap: Hfcap) -> None:
    path = write_recipe(tmp_path)
    assert hfcap("train", path).code == 0
    outcome = hfcap("train", path, "train.seed=1")
    assert_refused(outcome, "train.seed: 42 there, 1 here", "name=")


@pytest.mark.parametrize(
    ("predictions", "references", "fragments"),
    [
        (None, {"1": ["a"]}, ["predictions.json", "not found"]),
        ("not json", {"1": ["a"]}, ["predictions.json"]),
        ([{"image_id": 1}], {"1": ["a"]}, ["predictions.json", "caption"]),
        ([{"image_id": 1, "caption": "a"}], None, ["references.json", "not found"]),
        ([{"image_id": 1, "caption": "a"}], {"images": []}, ["references.json"]),
        ([{"image_id": 1, "caption": "a"}], {"2": ["a"]}, ["1"]),
        ([{"image_id": 1, "caption": "a"}], {"1": []}, ["1"]),
    ],
    ids=str,
)
def test_score_with_wrong_files(
    predictions: Any, references: Any, fragments: list[str], tmp_path: Path, hfcap: Hfcap
) -> None:
    paths = [tmp_path / "predictions.json", tmp_path / "references.json"]
    for path, content in zip(paths, (predictions, references), strict=True):
        if content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    outcome = hfcap("score", *paths, "-o", tmp_path / "scores.json")
    assert_refused(outcome, *fragments)
    assert not (tmp_path / "scores.json").exists()


def test_score_with_an_unknown_metric(tmp_path: Path, hfcap: Hfcap) -> None:
    predictions, references = tmp_path / "p.json", tmp_path / "r.json"
    predictions.write_text('[{"image_id": 1, "caption": "a dog"}]')
    references.write_text('{"1": ["a dog"]}')
    assert_refused(hfcap("score", predictions, references, "--metrics", "cidre"), "cidre", "cider")


def test_click_refuses_wrong_options_with_code_2(hfcap: Hfcap) -> None:
    for arguments in (["nonsense"], ["run"], ["list", "nonsense"], ["caption", "x", "y", "--num-beams", "0"]):
        outcome = hfcap(*arguments)
        assert outcome.code == 2 and outcome.out == "" and "Traceback" not in outcome.err
        assert outcome.err


def test_a_full_disk_is_no_traceback(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **keywords: Any) -> None:
        raise OSError(28, "No space left on device", "checkpoint")

    monkeypatch.setattr("hfcap.training.checkpoint.save_file", full)
    outcome = hfcap("train", write_recipe(tmp_path))
    assert outcome.code == 1 and outcome.out == ""
    assert "failed: [Errno 28] No space left on device: 'checkpoint'" in outcome.err
    assert "Traceback" not in outcome.err


def test_work_that_fails_has_code_1(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hfcap.training.objectives.nn.functional.cross_entropy", lambda logits, *a, **k: logits.sum() * float("nan")
    )
    outcome = hfcap("train", write_recipe(tmp_path))
    assert outcome.code == 1 and outcome.out == ""
    assert "failed: step 1" in outcome.err and "Traceback" not in outcome.err


# ---- commands on a finished run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished LoRA run, made in a process of its own as a person would."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_recipe(folder, "vit_gpt2", "lora")
    done = subprocess.run(
        [sys.executable, "-m", "hfcap", "run", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = RunDirectory(folder / "runs" / "tiny")
    for place in (run.path, run.card, run.publish):
        assert str(place) in done.stdout  # on one line, however long the path
    assert f"hfcap caption {run.path}" in done.stdout
    assert "cider" in done.stdout and "blank images" in done.stdout
    assert "it/s" not in done.stderr  # no progress bars without a terminal
    return run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's own pictures: in a folder, in a subfolder, and something that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    write_jpeg(folder / "one [red].jpg", "red")
    write_jpeg(folder / "sub" / "two.jpg", "blue")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_caption_one_file_on_screen(finished: RunDirectory, pictures: Path, hfcap: Hfcap) -> None:
    outcome = hfcap("caption", finished.path, pictures / "sub" / "two.jpg", "--max-new-tokens", 3)
    assert outcome.code == 0, outcome.err
    assert "two.jpg" in outcome.out.replace("\n", "") or "jpg" in outcome.out
    assert "caption" in outcome.out


def test_caption_a_folder_to_jsonl(finished: RunDirectory, pictures: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    output = tmp_path / "out" / "captions.jsonl"
    outcome = hfcap("caption", finished.path, pictures, "-o", output)
    assert outcome.code == 0 and str(output) in outcome.out
    rows = [row for _, row in read_json_lines(output, "captions")]
    assert [Path(row["file_name"]).name for row in rows] == ["one [red].jpg", "two.jpg"]
    captioner = load_captioner(str(finished.path))
    for row, picture in zip(rows, (pictures / "one [red].jpg", pictures / "sub" / "two.jpg"), strict=True):
        assert row["caption"] == by_transformers(captioner, picture)
        assert row["candidates"] == [row["caption"]]


def by_transformers(captioner: Any, picture: Path) -> str:
    """The caption plain transformers generates with the recipe's beams and length."""
    pixels = captioner.image_processor(images=decode_image(FileImage(picture)), return_tensors="pt")["pixel_values"]
    ids = captioner.model.generate(
        pixels,
        num_beams=2,
        max_new_tokens=6,
        decoder_start_token_id=captioner.start_token_id,
        eos_token_id=captioner.end_token_id,
        pad_token_id=captioner.pad_token_id,
    )
    return " ".join(captioner.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)[0].split())


def test_caption_to_csv_with_several_captions_each(
    finished: RunDirectory, pictures: Path, tmp_path: Path, hfcap: Hfcap
) -> None:
    output = tmp_path / "captions.csv"
    assert hfcap("caption", finished.path, str(pictures / "**" / "*.jpg"), "-o", output).code == 0
    with output.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [Path(row["file_name"]).name for row in rows] == ["one [red].jpg", "two.jpg"]
    assert all(row["caption"] and float(row["score"]) < 0 for row in rows)
    several = tmp_path / "several.jsonl"
    assert hfcap("caption", finished.path, pictures, "-o", several, "--num-return-sequences", 4).code == 0
    for _, row in read_json_lines(several, "captions"):
        assert len(row["candidates"]) == 4 and row["candidates"][0] == row["caption"]


def test_caption_with_a_prompt_and_with_sampling(
    finished: RunDirectory, pictures: Path, tmp_path: Path, hfcap: Hfcap
) -> None:
    def captions(*options: Any) -> list[str]:
        output = tmp_path / "captions.jsonl"
        assert hfcap("caption", finished.path, pictures, "-o", output, *options).code == 0
        return [row["caption"] for _, row in read_json_lines(output, "captions")]

    sampled = captions("--sample", "--seed", 1, "--num-beams", 1)
    assert sampled == captions("--sample", "--seed", 1, "--num-beams", 1)
    assert sampled != captions("--sample", "--seed", 2, "--num-beams", 1)
    assert captions("--prompt", "three red", "--num-beams", 1) != captions("--num-beams", 1)


def test_caption_without_a_picture(finished: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    for wrong in (tmp_path, tmp_path / "missing.jpg", tmp_path / "*.jpg"):
        assert_refused(hfcap("caption", finished.path, wrong), str(wrong))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    assert_refused(hfcap("caption", finished.path, tmp_path / "broken.jpg"), "broken.jpg")
    assert_refused(hfcap("caption", finished.path, tmp_path, "-o", tmp_path / "out.txt"), "out.txt", ".jsonl")
    assert not (tmp_path / "out.txt").exists()


def test_caption_with_impossible_options(finished: RunDirectory, pictures: Path, hfcap: Hfcap) -> None:
    outcome = hfcap("caption", finished.path, pictures, "--num-beams", 2, "--num-return-sequences", 5)
    assert_refused(outcome, "num_return_sequences")


def test_caption_with_the_published_folder(
    finished: RunDirectory, pictures: Path, tmp_path: Path, hfcap: Hfcap
) -> None:
    output = tmp_path / "captions.jsonl"
    assert hfcap("caption", finished.publish, pictures, "-o", output).code == 0
    ours = tmp_path / "run.jsonl"
    assert hfcap("caption", finished.path, pictures, "-o", ours).code == 0
    published, by_run = ([row["caption"] for _, row in read_json_lines(p, "captions")] for p in (output, ours))
    assert published == by_run


def test_caption_with_no_model(pictures: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    assert_refused(hfcap("caption", tmp_path / "nothing", pictures), "nothing")
    assert_refused(hfcap("caption", tmp_path, pictures), "config.json")


def test_score_a_file_alone(finished: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    output = tmp_path / "scores.json"
    outcome = hfcap(
        "score", finished.predictions("test"), finished.references("test"), "-o", output, "--n-resamples", 0
    )
    assert outcome.code == 0, outcome.err
    ours, theirs = (json.loads(path.read_text()) for path in (output, finished.scores("test")))
    assert ours["metrics"] == pytest.approx(theirs["metrics"])
    assert ours["intervals"] == {} and "hfcap:" in outcome.out


def test_score_a_run(finished: RunDirectory, hfcap: Hfcap) -> None:
    outcome = hfcap("score", finished.path)
    assert outcome.code == 0 and "this captioner" in outcome.out


def test_merge(finished: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    assert hfcap("merge", finished.path, "-o", tmp_path / "merged").code == 0
    merged = load_captioner(str(tmp_path / "merged")).model.state_dict()
    assert_same_tensors(merged, load_captioner(str(finished.path)).model.state_dict())
    assert_refused(hfcap("merge", finished.path, "-o", tmp_path / "merged"), "merged", "not empty")
    assert_refused(hfcap("merge", tmp_path / "merged", "-o", tmp_path / "again"), "adapter_config.json")
    assert not (tmp_path / "again").exists()


def test_publish_dry_run_lists_and_stages_and_sends_nothing(finished: RunDirectory, hfcap: Hfcap) -> None:
    outcome = hfcap("publish", finished.path, "--dry-run", "--repo-id", "alice/tiny")
    assert outcome.code == 0, outcome.err
    staged = {path.name for path in finished.publish.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= staged
    for name in ("README.md", "config.json", "model.safetensors"):
        assert name in outcome.out


def test_publish_without_a_name_says_what_is_missing(finished: RunDirectory, hfcap: Hfcap) -> None:
    assert_refused(hfcap("publish", finished.path), "repo_id")


def test_card_check(finished: RunDirectory, hfcap: Hfcap) -> None:
    outcome = hfcap("card", finished.path, "--check")
    assert outcome.code in (0, 1) and (outcome.code == 0) == ("missing:" not in outcome.out)


# ---- stopping --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_goes_on_with_the_same_command(number: int, tmp_path: Path, hfcap: Hfcap) -> None:
    path = write_recipe(tmp_path, train={"max_steps": 100, "eval_steps": 100})
    result = Result(RunDirectory(tmp_path / "runs" / "tiny"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hfcap", "train", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (result.run.log.is_file() and result.run.log.stat().st_size):
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    (step,) = result.steps
    assert 0 < step < 100
    assert f"stopped at step {step} of 100; the same command continues there" in err
    again = hfcap("train", path)
    assert again.code == 0, again.err
    assert f"Continuing at step {step} of 100" in again.err
    assert again.out == f"Model: {result.run.model}\n"
    assert hfcap("train", path, "name=whole").code == 0
    other = Result(RunDirectory(tmp_path / "runs" / "whole"))
    assert_same_tensors(result.model_weights(), other.model_weights())
    assert result.losses == other.losses


# ---- what needs no run -----------------------------------------------------------------------------------------


def test_version(hfcap: Hfcap) -> None:
    assert hfcap("--version").out == f"hfcap {__version__}\n"


def test_help_of_every_command(hfcap: Hfcap) -> None:
    commands = hfcap("--help").out
    for name in ("run", "train", "caption", "score", "card", "publish", "merge", "compare", "doctor", "list", "data"):
        assert f" {name} " in commands
        outcome = hfcap(name, "--help")
        assert outcome.code == 0 and outcome.err == ""


def test_list(hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert {"blip", "clip_prefix", "vit_gpt2"} <= set(hfcap("list", "captioners").out.split())
    assert {"coco", "coco_json", "folder", "hub", "scenes"} <= set(hfcap("list", "sources").out.split())
    assert {"bleu", "rouge_l", "cider"} <= set(hfcap("list", "metrics").out.split())
    recipes = hfcap("list", "recipes").out.split()
    assert "recipes/quickstart.yaml" in recipes and all(Path(recipe).is_file() for recipe in recipes)
    everything = hfcap("list").out
    assert all(title in everything for title in ("captioners", "recipes", "metrics", "sources", "blip"))


def test_recipe_schema_accepts_a_recipe_and_refuses_a_typing_error(tmp_path: Path, hfcap: Hfcap) -> None:
    schema = json.loads(hfcap("recipe-schema").out)
    path = write_recipe(tmp_path)
    values = yaml.safe_load(path.read_text())
    jsonschema.validate(values, schema)
    values["train"]["learning_rat"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema)


def test_what_a_command_trained_is_the_recipe_with_its_overrides(tmp_path: Path, hfcap: Hfcap) -> None:
    outcome = hfcap("train", write_recipe(tmp_path), "train.max_steps=1", "name=other")
    assert outcome.code == 0 and outcome.out == f"Model: {tmp_path / 'runs' / 'other' / 'model'}\n"
    recipe = load_recipe(tmp_path / "runs" / "other" / "recipe.yaml")
    assert recipe.train.max_steps == 1 and recipe.name == "other"
    assert load_split(recipe.data, "train")
