"""Commands: what they print, write, and how they stop and go on."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from hfcap import __version__, registry
from hfcap.captioners.loading import load_captioner
from hfcap.children import run_program
from hfcap.cli import PANELS, app
from hfcap.data.images import FileImage, decode_image
from hfcap.data.source import load_split
from hfcap.files import read_json_lines
from hfcap.metrics.suite import metric_class
from hfcap.recipe.loading import load_recipe
from hfcap.recipe.shipped import shipped_recipes
from hfcap.run_directory.paths import RunDirectory
from tests.captioners.clip_folder import write_clip
from tests.cli.command_line import Hfcap, assert_refused, write_recipe
from tests.data.sample_images import write_jpeg
from tests.training.harness import Result, assert_same_tensors


@pytest.fixture(scope="module")
def finished(forking: str, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished LoRA run, made in a process of its own as a person would."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_recipe(folder, "vit_gpt2", "lora")
    done = subprocess.run(
        [forking, "-m", "hfcap", "run", str(path)],
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
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's own images: in a folder, in a subfolder, and something that is no image."""
    folder = tmp_path_factory.mktemp("images")
    write_jpeg(folder / "one [red].jpg", "red")
    write_jpeg(folder / "sub" / "two.jpg", "blue")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_caption_one_file_on_screen(
    finished: RunDirectory, images: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images)
    outcome = hfcap("caption", finished.path, "sub/two.jpg", "--max-new-tokens", 3)
    assert outcome.code == 0, outcome.err
    words = by_transformers(load_captioner(str(finished.path)), images / "sub" / "two.jpg", max_new_tokens=3)
    assert "sub/two.jpg" in outcome.out
    assert words and words in outcome.out


def test_caption_a_folder_to_jsonl(finished: RunDirectory, images: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    output = tmp_path / "out" / "captions.jsonl"
    outcome = hfcap("caption", finished.path, images, "-o", output)
    assert outcome.code == 0 and str(output) in outcome.out
    rows = [row for _, row in read_json_lines(output, "captions")]
    assert [Path(row["file_name"]).name for row in rows] == ["one [red].jpg", "two.jpg"]
    captioner = load_captioner(str(finished.path))
    for row, image in zip(rows, (images / "one [red].jpg", images / "sub" / "two.jpg"), strict=True):
        assert row["caption"] == by_transformers(captioner, image)
        assert row["candidates"] == [row["caption"]]


def test_explain_draws_one_image(finished: RunDirectory, images: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    output = tmp_path / "maps.png"
    outcome = hfcap("explain", finished.path, images / "one [red].jpg", "-o", output)
    assert outcome.code == 0, outcome.err
    assert str(output) in outcome.out
    assert output.read_bytes().startswith(b"\x89PNG")
    assert_refused(hfcap("explain", finished.path, images, "-o", output), "matches 2 images; give one")
    # The image is looked at before the model, which may have to be fetched.
    assert_refused(hfcap("explain", "no/model", images / "notes.txt", "-o", output), "notes.txt")


def by_transformers(captioner: Any, image: Path, max_new_tokens: int = 6) -> str:
    """The caption plain transformers generates with the recipe's beams and length."""
    pixels = captioner.image_processor(images=decode_image(FileImage(image)), return_tensors="pt")["pixel_values"]
    ids = captioner.model.generate(
        pixels,
        num_beams=2,
        max_new_tokens=max_new_tokens,
        decoder_start_token_id=captioner.start_token_id,
        eos_token_id=captioner.end_token_id,
        pad_token_id=captioner.pad_token_id,
    )
    return " ".join(captioner.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)[0].split())


def test_caption_to_csv_with_several_captions_each(
    finished: RunDirectory, images: Path, tmp_path: Path, hfcap: Hfcap
) -> None:
    output = tmp_path / "captions.csv"
    assert hfcap("caption", finished.path, str(images / "**" / "*.jpg"), "-o", output).code == 0
    with output.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [Path(row["file_name"]).name for row in rows] == ["one [red].jpg", "two.jpg"]
    assert all(row["caption"] and float(row["score"]) < 0 for row in rows)
    several = tmp_path / "several.jsonl"
    assert hfcap("caption", finished.path, images, "-o", several, "--num-return-sequences", 4).code == 0
    for _, row in read_json_lines(several, "captions"):
        assert len(row["candidates"]) == 4 and row["candidates"][0] == row["caption"]


def test_caption_with_a_prompt_and_with_sampling(
    finished: RunDirectory, images: Path, tmp_path: Path, hfcap: Hfcap
) -> None:
    def captions(*options: Any) -> list[str]:
        output = tmp_path / "captions.jsonl"
        assert hfcap("caption", finished.path, images, "-o", output, *options).code == 0
        return [row["caption"] for _, row in read_json_lines(output, "captions")]

    sampled = captions("--sample", "--seed", 1, "--num-beams", 1)
    assert sampled == captions("--sample", "--seed", 1, "--num-beams", 1)
    assert sampled != captions("--sample", "--seed", 2, "--num-beams", 1)
    assert captions("--prompt", "three red", "--num-beams", 1) != captions("--num-beams", 1)


def test_caption_without_a_image(finished: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    for wrong in (tmp_path, tmp_path / "missing.jpg", tmp_path / "*.jpg"):
        assert_refused(hfcap("caption", finished.path, wrong), str(wrong))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    assert_refused(hfcap("caption", finished.path, tmp_path / "broken.jpg"), "broken.jpg")
    assert_refused(hfcap("caption", finished.path, tmp_path, "-o", tmp_path / "out.doc"), "out.doc", ".jsonl")
    assert not (tmp_path / "out.doc").exists()


def test_caption_with_impossible_options(finished: RunDirectory, images: Path, hfcap: Hfcap) -> None:
    outcome = hfcap("caption", finished.path, images, "--num-beams", 2, "--num-return-sequences", 5)
    assert_refused(outcome, "num_return_sequences")


def test_caption_with_the_published_folder(finished: RunDirectory, images: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    output = tmp_path / "captions.jsonl"
    assert hfcap("caption", finished.publish, images, "-o", output).code == 0
    ours = tmp_path / "run.jsonl"
    assert hfcap("caption", finished.path, images, "-o", ours).code == 0
    published, by_run = ([row["caption"] for _, row in read_json_lines(p, "captions")] for p in (output, ours))
    assert published == by_run


def test_caption_with_no_model(images: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    assert_refused(hfcap("caption", tmp_path / "nothing", images), "nothing")
    assert_refused(hfcap("caption", tmp_path, images), "config.json")


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
    # The recipe names the run as the directory does.
    assert_refused(hfcap("publish", finished.recipe), "repo_id")


def test_card_check(finished: RunDirectory, hfcap: Hfcap) -> None:
    outcome = hfcap("card", finished.path, "--check")
    assert outcome.code in (0, 1) and (outcome.code == 0) == ("missing:" not in outcome.out)


# ---- stopping --------------------------------------------------------------------------------------------------


N_STEPS = 100


def write_long_recipe(folder: Path) -> Path:
    return write_recipe(folder, train={"max_steps": N_STEPS, "eval_steps": N_STEPS})


@pytest.fixture(scope="module")
def undisturbed(forking: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A training that nobody stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run_program([forking, "-m", "hfcap", "train", str(write_long_recipe(folder))], timeout=280)
    assert done.returncode == 0, done.stderr
    return Result(RunDirectory(folder / "runs" / "tiny"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_goes_on_with_the_same_command(
    number: int, undisturbed: Result, tmp_path: Path, hfcap: Hfcap, forking: str
) -> None:
    path = write_long_recipe(tmp_path)
    result = Result(RunDirectory(tmp_path / "runs" / "tiny"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [forking, "-m", "hfcap", "train", str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (result.run.log.is_file() and result.run.log.stat().st_size):
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    (step,) = result.steps
    assert 0 < step < N_STEPS
    assert f"stopped at step {step} of {N_STEPS}; the same command continues there" in err
    again = hfcap("train", path)
    assert again.code == 0, again.err
    assert f"Continuing at step {step} of {N_STEPS}" in again.err
    assert again.out == f"Model: {result.run.model}\n"
    assert_same_tensors(result.model_weights(), undisturbed.model_weights())
    assert result.losses == undisturbed.losses


# ---- what needs no run -----------------------------------------------------------------------------------------


def test_version(hfcap: Hfcap) -> None:
    assert hfcap("--version").out == f"hfcap {__version__}\n"


def test_help_of_every_command(hfcap: Hfcap) -> None:
    commands = hfcap("--help").out
    named = [name for group in PANELS.values() for name in group]
    assert sorted(named) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a click group
    places = [commands.index(f"│ {name} ") for name in named]
    assert places == sorted(places)
    for name in named:
        outcome = hfcap(name, "--help")
        assert outcome.code == 0 and outcome.err == ""


def test_list(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what comes with hfcap is there in every folder
    assert {"blip", "clip_prefix", "vit_gpt2"} <= set(hfcap("list", "captioners").out.split())
    assert {"coco", "coco_json", "folder", "hub", "scenes"} <= set(hfcap("list", "sources").out.split())
    recipes = hfcap("list", "recipes").out.split()
    assert recipes == list(shipped_recipes())
    folder = Path(hfcap("list", "recipes", "--folder").out.removesuffix("\n"))
    assert all((folder / f"{name}.yaml").is_file() for name in [*recipes, "accelerate/cpu"])
    everything = hfcap("list").out
    assert all(title in everything for title in ("captioners", "recipes", "metrics", "sources", "blip", *recipes))


@pytest.mark.parametrize("name", ["quickstart", "recipes/quickstart.yaml"])
def test_a_recipe_that_comes_with_hfcap_goes_by_its_name(
    name: str, tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands differ only in how far they go: all of them look where `doctor` looks."""
    monkeypatch.chdir(tmp_path)
    outcome = hfcap("doctor", name, "data.n_train=60", "data.n_validation=8", "data.n_test=8", "--steps", 0)
    assert "quickstart" in outcome.out and "Traceback" not in outcome.err and outcome.code == 0, outcome.err


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


def test_score_with_options_of_metrics(finished: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    """Images are found by the file names that the prediction file gives."""
    folder = tmp_path / "images"
    rows = [row for _, row in read_json_lines(finished.predictions("test"), "predictions")]
    for row in rows:
        write_jpeg(folder / row["file_name"], "red")
    options = {
        "clip_score.model": write_clip(tmp_path / "clip"),
        "clip_score.images": folder,
        "diversity.training_captions": finished.references("test"),
        "cider.document_frequencies": finished.references("test"),
    }
    output = tmp_path / "scores.json"
    outcome = hfcap(
        *("score", finished.predictions("test"), finished.references("test"), "-o", output, "--n-resamples", 0),
        *("--metrics", "cider,clip_score,diversity"),
        *(part for name, value in options.items() for part in ("--option", f"{name}={value}")),
    )
    assert outcome.code == 0, outcome.err
    scores = json.loads(output.read_text())
    assert scores["metrics"]["clip_score"] is not None and scores["metrics"]["novel_captions"] is not None
    assert scores["signature"]["metrics"]["cider"]["document_frequencies"] == finished.references("test").name


def test_list_metrics_says_what_each_is_and_its_options(hfcap: Hfcap) -> None:
    lines = dict(line.split(": ", 1) for line in hfcap("list", "metrics").out.splitlines())
    assert lines.keys() == set(registry.names("metrics"))
    for name, line in lines.items():
        options = metric_class(name).options_class.model_fields
        assert line.startswith(metric_class(name).summary)
        assert ("options: " + ", ".join(options) in line) == bool(options)
        assert all(field.description for field in options.values()), name


def test_compare_prediction_files(finished: RunDirectory, tmp_path: Path, hfcap: Hfcap) -> None:
    files = [finished.predictions(name) for name in ("test", "test.blank_images")]
    assert_refused(hfcap("compare", *files), "test.jsonl", "no score file", "human captions")
    outcome = hfcap(
        *("compare", *files, "--references", finished.references("test"), "-o", tmp_path / "board"),
        *("--metrics", "bleu,cider", "--n-resamples", 100, "--seed", 4),
    )
    assert outcome.code == 0, outcome.err
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert board["settings"] == {"n_resamples": 100, "seed": 4, "confidence_level": 0.95}
    assert {system["name"] for system in board["systems"]} == {"test", "test.blank_images"}
    assert board["outputs"] == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"]
    # Both systems are scored against the same few human captions.
    assert outcome.err.count("warning: only") == 1
    assert str(tmp_path / "board" / "leaderboard.html") in outcome.out
    assert "By CIDEr-D, test" in (tmp_path / "board" / "leaderboard.html").read_text()
    for option in ("--show-images", "--pictures"):  # the second is the old spelling
        assert_refused(hfcap("compare", finished.path, option), "--show-images", "give its folder with -o")
    assert_refused(
        hfcap("compare", finished.path, "--images", tmp_path / "gone", "-o", tmp_path / "x"),
        "--images",
        "gone",
        "folder not found",
    )
    missing = hfcap("compare", tmp_path / "gone.jsonl", "--references", finished.references("test"))
    assert_refused(missing, "gone.jsonl: no such file or folder", "a prediction file")


def test_score_in_another_language(hfcap: Hfcap, tmp_path: Path) -> None:
    captions = {"1": "一只狗在草地上奔跑", "2": "两只猫"}
    for name, rows in (("p", captions), ("r", {key: [text] for key, text in captions.items()})):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    files = (tmp_path / "p.json", tmp_path / "r.json")
    done = hfcap("score", *files, "--language", "zh", "--n-resamples", 0)
    assert (
        done.code == 0 and "tok:zh-lower-sacrebleu-" in done.out.replace("\n", "") and "without spaces" not in done.err
    )
    assert_refused(hfcap("score", *files, "--language", "chinese"), "language 'chinese'", "zh")
    assert_refused(hfcap("score", *files, "--language", "zh", "--metrics", "meteor"), "meteor", "English only")
    assert_refused(hfcap("compare", *files, "--language", "zh"), "--language", "--references")
