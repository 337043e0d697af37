"""Wrong input: exit code 2, one message that names file, key and remedy, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hfcap.cli.common import say
from tests.cli.command_line import Hfcap, Outcome, assert_nothing_half_written, assert_refused, write_recipe
from tests.data.sample_images import write_jpeg
from tests.training.harness import FAMILIES


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


@pytest.mark.parametrize("command", ["run", "train", "caption", "score", "card"])
def test_a_run_directory_does_not_trust_itself(command: str, tmp_path: Path, hfcap: Hfcap) -> None:
    run = tmp_path / "downloaded"
    run.mkdir()
    recipe = write_recipe(tmp_path, model={"trust_remote_code": True})
    recipe.rename(run / "recipe.yaml")
    assert_refused(hfcap(command, run), str(run), "model.trust_remote_code", "--trust-remote-code")
    assert_nothing_half_written(tmp_path)


def image_folder(folder: Path, **last: Any) -> Path:
    """Twelve captioned images; the keywords change the last one's metadata."""
    rows: list[dict[str, Any]] = []
    for number in range(12):
        write_jpeg(folder / f"{number}.jpg", size=(32, 32))
        rows.append({"file_name": f"{number}.jpg", "captions": ["a red square", "all red"]})
        rows[-1]["split"] = ("train", "validation", "test")[number % 3]
    rows[-1] |= last
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def on_folder(tmp_path: Path, hfcap: Hfcap) -> Outcome:
    return hfcap("run", write_recipe(tmp_path, data={"source": "folder", "root": str(tmp_path / "images")}))


def test_data_that_is_not_there_leaves_no_run_directory(tmp_path: Path, hfcap: Hfcap) -> None:
    for command in ("run", "train", "caption"):
        path = write_recipe(tmp_path, data={"source": "coco_json", "captions": str(tmp_path / "gone.json")})
        assert_refused(hfcap(command, path), "gone.json", "not found")
        assert not (tmp_path / "runs").exists()


def test_a_missing_image(tmp_path: Path, hfcap: Hfcap) -> None:
    image_folder(tmp_path / "images")
    (tmp_path / "images" / "3.jpg").unlink()
    assert_refused(on_folder(tmp_path, hfcap), "3.jpg", "max_unreadable_images")
    assert_nothing_half_written(tmp_path / "runs")


def test_a_corrupt_jpeg(tmp_path: Path, hfcap: Hfcap) -> None:
    path = image_folder(tmp_path / "images") / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert_refused(on_folder(tmp_path, hfcap), "3.jpg", "max_unreadable_images")
    assert_nothing_half_written(tmp_path / "runs")


@pytest.mark.parametrize("captions", [[], ["   "], None])
def test_a_image_without_caption(captions: Any, tmp_path: Path, hfcap: Hfcap) -> None:
    image_folder(tmp_path / "images", captions=captions)
    assert_refused(on_folder(tmp_path, hfcap), "metadata.jsonl", "line 12")
    assert_nothing_half_written(tmp_path / "runs")


def test_after_mending_the_data_the_same_command_works(tmp_path: Path, hfcap: Hfcap) -> None:
    image_folder(tmp_path / "images")
    broken = tmp_path / "images" / "3.jpg"
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


@pytest.mark.parametrize("captioner", FAMILIES)
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


def test_training_images_fewer_than_one_update_needs(tmp_path: Path, hfcap: Hfcap) -> None:
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
        "hfcap.training.objectives.cross_entropy.nn.functional.cross_entropy",
        lambda logits, *a, **k: logits.sum() * float("nan"),
    )
    outcome = hfcap("train", write_recipe(tmp_path))
    assert outcome.code == 1 and outcome.out == ""
    assert "failed: step 1" in outcome.err and "Traceback" not in outcome.err


def test_score_with_wrong_options_names_all_of_them(tmp_path: Path, hfcap: Hfcap) -> None:
    wrong = ("clip_score.modl=x", "spice.memory_gigabytes=x", "bleu.x=1", "chair.instances=f", "cidre.a=1", "plain")
    outcome = hfcap(
        *("score", tmp_path / "p.json", tmp_path / "r.json", "--metrics", "bleu,clip_score,spice"),
        *(part for option in wrong for part in ("--option", option)),
    )
    assert_refused(
        outcome,
        "--option 'clip_score.modl=x': clip_score.modl: unknown key; did you mean 'model'?",
        "--option 'spice.memory_gigabytes=x': spice.memory_gigabytes: must be a whole number, not \"x\"",
        "--option 'bleu.x=1': bleu.x: unknown key; there is none",
        "--option 'chair.instances=f': chair: this metric is not computed; add chair to --metrics, or leave its",
        "unknown metric 'cidre'; did you mean 'cider'",
        "--option 'plain': write metric.option=value",
    )


@pytest.mark.parametrize(
    ("metric", "options", "fragments"),
    [
        ("clip_score", [], ["give its option images"]),
        ("clip_score", ["clip_score.images=nowhere"], ["nowhere", "folder not found"]),
        ("chair", [], ["instances"]),
        ("chair", ["chair.instances=nowhere.json"], ["nowhere.json", "not found"]),
        ("spice", ["spice.jar=nowhere.jar"], ["nowhere.jar", "not found"]),
        ("diversity", ["diversity.training_captions=nowhere.json"], ["nowhere.json", "not found"]),
    ],
)
def test_score_with_resources_that_are_not_there(
    metric: str, options: list[str], fragments: list[str], tmp_path: Path, hfcap: Hfcap
) -> None:
    predictions, references = tmp_path / "p.json", tmp_path / "r.json"
    predictions.write_text('[{"image_id": 1, "caption": "a dog"}]')
    references.write_text('{"1": ["a dog", "one dog"]}')
    given = [part for option in options for part in ("--option", option)]
    outcome = hfcap("score", predictions, references, "--metrics", metric, *given)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert all(fragment in outcome.err for fragment in fragments), outcome.err


def test_text_of_strangers_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a [red]dog[/red]\x1b[31m\x07\u202e b\nc")
    assert capsys.readouterr().out == "a [red]dog[/red]\ufffd[31m\ufffd\ufffd b\nc\n"


@pytest.mark.parametrize(
    ("command", "output", "problem"),
    [
        ("caption no/model {0}/p.png", "here/f.jsonl", "here is no folder"),
        ("caption no/model {0}/p.png", "there", "is a folder; give the name of a file"),
        ("ensemble {0}/a.json {0}/b.json", "here/f.jsonl", "here is no folder"),
        ("search dog {0}", "here/hits.html", "here is no folder"),
        ("explain no/model {0}/p.png", "here/f.png", "here is no folder"),
        ("score {0}/a.json {0}/r.json", "there", "is a folder"),
        ("compare {0}/a.json", "here", "is a file; give the name of a folder"),
        ("merge {0}/run", "here/merged", "here is no folder"),
        ("doctor {0}/recipe.yaml", "here", "is a file"),
        ("publish-metric cider --repo-id a/cider --dry-run", "here/x", "here is no folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_known_before_the_work(
    command: str, output: str, problem: str, tmp_path: Path, hfcap: Hfcap
) -> None:
    (tmp_path / "here").write_text("mine")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert_refused(hfcap(*command.format(tmp_path).split(), "-o", tmp_path / output), str(tmp_path / output), problem)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "here").read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "subject"),
    [
        ("caption {0}/model {0}/p.jpg --revision v2", "/model: is a folder on this machine"),
        ("explain {0}/model {0}/p.jpg --revision v2 -o {0}/maps.png", "/model: is a folder on this machine"),
        ("search dog {0} --model {0}/model --revision v2", "--model: "),
    ],
)
def test_a_revision_of_a_folder(command: str, subject: str, tmp_path: Path, hfcap: Hfcap) -> None:
    write_jpeg(tmp_path / "p.jpg")
    (tmp_path / "model").mkdir()
    assert_refused(hfcap(*command.format(tmp_path).split()), subject, "no revision 'v2'", "leave the revision out")


@pytest.mark.parametrize(
    ("model", "code", "fragments"),
    [
        ("runs/my_blp", 2, ["runs/my_blp: no such folder here (did you mean runs/my_blip?)"]),
        ("my_model", 2, ["my_model: no such folder here;"]),
        ("somebody/model", 1, ["somebody/model: no such folder here;"]),
    ],
)
def test_a_model_that_is_not_here_while_the_hub_cannot_be_reached(
    model: str, code: int, fragments: list[str], tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can only be a path is wrong input; what may well be on the Hub is work that failed."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "my_blip").mkdir(parents=True)
    write_jpeg(tmp_path / "p.jpg")
    outcome = hfcap("caption", model, "p.jpg")
    assert outcome.code == code and outcome.out == "" and "Traceback" not in outcome.err
    assert outcome.err.count(model) == len(outcome.err.splitlines()) == 1
    for fragment in [*fragments, "the Hub at http://127.0.0.1:9 cannot be reached", "check the network"]:
        assert fragment in outcome.err


@pytest.mark.parametrize(
    ("command", "fragments"),
    [
        ("run gone.yaml", ["gone.yaml: no such recipe or run directory; 'hfcap list recipes' names"]),
        ("score gone", ["gone: no such recipe or run directory"]),
        ("doctor blip/folder_lra", ["no such recipe or run directory; did you mean 'blip/folder_lora'"]),
        ("publish quikstart", ["no such recipe or run directory; did you mean 'quickstart'?"]),
        ("card quickstart --check", ["runs/quickstart: not a run directory"]),
        ("list metrics --folder", ["--folder: only recipes are files to copy"]),
        ("search dog recipes/none.yaml", ["recipes/none.yaml: no such recipe"]),
        ("score captions.json", ["give the human captions after it", "hfcap score captions.json REFERENCES"]),
        ("caption run --num-beams 5", ["--num-beams: give images or a dataset as INPUT"]),
        ("caption run -o captions.csv", ["--output: give images or a dataset as INPUT"]),
        ("caption run --batch-size 4 --seed 0", ["--seed, --batch-size: give images or a dataset as INPUT"]),
        (
            "score run --metrics cider --split train",
            ["--metrics, --split: a run is scored as its recipe says", "hfcap run"],
        ),
        ("score run --document-frequencies corpus", ["--document-frequencies: ", "score.document_frequencies"]),
        ("score run --option clip_score.images=x", ["--option: ", "score.metric_options"]),
        ("score run --n-resamples 0 --seed 0", ["--n-resamples, --seed: ", "score.n_resamples"]),
        ("score run -o scores.json", ["--output: ", "hfcap score PREDICTIONS REFERENCES"]),
        ("score run --allow-missing", ["--allow-missing: ", "hfcap score PREDICTIONS REFERENCES"]),
        ("compare a b --metrics cider --allow-missing", ["--metrics, --allow-missing: ", "give --references"]),
        ("compare a b --document-frequencies corpus", ["--document-frequencies: ", "give --references"]),
        ("compare a b --option spice.jar=x", ["--option: ", "give --references"]),
        ("caption no/model ftp://a.b/c.jpg", ["ftp://a.b/c.jpg: images are fetched by http and https only"]),
        ("caption no/model file:///etc/passwd", ["file:///etc/passwd: images are fetched by http and https only"]),
        ("search dog {0}/notes.txt", ["notes.txt: neither an image, nor a COCO .json file, nor a recipe"]),
        ("verify noslash", ["'noslash' lacks the namespace"]),
        ("merge {0}", ["is not a LoRA adapter"]),
    ],
)
def test_what_strangers_try(command: str, fragments: list[str], tmp_path: Path, hfcap: Hfcap) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    words = command.format(tmp_path).split()
    written = ["-o", str(tmp_path / "out")] if words[0] == "merge" else []
    assert_refused(hfcap(*words, *written), *fragments)


def test_a_torchvision_that_does_not_fit_torch_is_named(tmp_path: Path) -> None:
    """transformers says only that it could not import a module of its own."""
    package, notes = tmp_path / "torchvision", tmp_path / "torchvision-0.20.0.dist-info"
    for folder in (package, notes):
        folder.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.0\n")
    (notes / "RECORD").write_text("torchvision/__init__.py,,\n")
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    paths = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-m", "hfcap", "caption", "no/model", "a.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        timeout=120,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    [message] = done.stderr.strip().splitlines()
    assert message.startswith("error: torchvision 0.20.0 cannot be imported next to torch ")
    assert "operator torchvision::nms does not exist" in message and "pip uninstall torchvision" in message
