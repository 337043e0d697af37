"""A run directory is where it stands: named, moved, renamed or copied, every stage works there and nowhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hfcap.captioners.loading import load_captioner
from hfcap.files import only_one
from hfcap.metrics.spice import SpiceOptions
from hfcap.places import absolute, place_of, with_changed_places
from hfcap.recipe.loading import load_recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.run_directory.recipe import recipe_of_run
from tests.cli.command_line import Hfcap, assert_refused, write_recipe
from tests.cli.conftest import hfcap as hfcap
from tests.data.sample_images import write_jpeg

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "orange", "purple")


def write_photos(folder: Path) -> None:
    """Eight images: four to train on, two to validate with, two to test."""
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    rows = []
    for split, colour in zip(splits, COLOURS, strict=True):
        write_jpeg(folder / f"{colour}.jpg", colour)
        rows.append({"file_name": f"{colour}.jpg", "captions": [f"a {colour} wall", f"all {colour}"], "split": split})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def project(forking: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a recipe that names them by a relative path, and its finished run in `runs/tiny`."""
    folder = tmp_path_factory.mktemp("project")
    write_photos(folder / "photos")
    data = {"source": "folder", "root": "photos"}
    path = write_recipe(folder, data=data, output_dir="runs", score={"baselines": [], "n_resamples": 10})
    run_outside(forking, folder, "run", path.name)
    return folder


def run_outside(python: str, folder: Path, *arguments: Any, code: int = 0) -> str:
    """Run hfcap in a process of its own that works in `folder`; returns what it said."""
    done = subprocess.run(
        [python, "-m", "hfcap", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the whole project, the original of which must stay as it is."""
    before = snapshot(project)
    target = tmp_path / "copy"
    shutil.copytree(project, target)
    yield target
    assert snapshot(project) == before


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_captioner(str(path)).model.state_dict() for path in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- named from elsewhere, moved, renamed, copied ------------------------------------------------------------------


def test_a_run_is_scored_where_it_stands(copied: Path, tmp_path: Path, hfcap: Hfcap, monkeypatch: Any) -> None:
    """Once `runs/tiny` of the working directory was trained again."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = RunDirectory(copied / "runs" / "tiny")
    (run.path / "scores" / "test.json").unlink()
    outcome = hfcap("score", Path("..") / "copy" / "runs" / "tiny")
    assert outcome.code == 0, outcome.err
    assert run.scores("test").is_file() and list(elsewhere.iterdir()) == []


def test_a_renamed_run_stays_what_it_is(copied: Path, hfcap: Hfcap, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied)
    (copied / "runs" / "tiny").rename(copied / "runs" / "mine")
    before = snapshot(copied / "runs" / "mine")
    outcome = hfcap("card", "runs/mine")
    assert outcome.code == 0 and "runs/mine/README.md" in outcome.out, outcome.err
    assert [path.name for path in (copied / "runs").iterdir()] == ["mine"]
    after = snapshot(copied / "runs" / "mine")
    trained = [name for name in before if name.startswith(("model/", "checkpoints/", "predictions/", "scores/"))]
    assert trained and {name: after[name] for name in trained} == {name: before[name] for name in trained}


def test_an_edited_copy_never_writes_to_the_original(copied: Path, hfcap: Hfcap, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied)
    original, copy = RunDirectory(copied / "runs" / "tiny"), RunDirectory(copied / "runs" / "edited")
    shutil.copytree(original.path, copy.path)
    recipe = yaml.safe_load(copy.recipe.read_text())
    recipe["generate"]["max_new_tokens"] = 2
    recipe["score"]["metrics"] = ["rouge_l"]
    copy.recipe.write_text(yaml.safe_dump(recipe))
    before = snapshot(original.path)
    assert hfcap("score", "runs/edited").code == 0
    assert snapshot(original.path) == before
    assert json.loads(copy.scores("test").read_text())["metrics"].keys() == {"rouge_l"}
    assert load_recipe(copy.recipe).generate.max_new_tokens == 2


def test_an_edited_copy_of_another_training_is_refused(copied: Path, hfcap: Hfcap) -> None:
    run = RunDirectory(copied / "runs" / "tiny")
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["train"]["learning_rate"] = 0.5
    run.recipe.write_text(yaml.safe_dump(recipe))
    before = snapshot(run.path)
    assert_refused(hfcap("score", run.path), "train.learning_rate: 0.01 there, 0.5 here", "--accept-changes")
    assert snapshot(run.path) == before


def test_the_recipe_inside_a_run_means_the_run(copied: Path, tmp_path: Path, hfcap: Hfcap, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    shutil.move(copied / "runs" / "tiny", moved)
    outcome = hfcap("run", moved / "recipe.yaml")
    assert outcome.code == 0 and f"Run directory: {moved}\n" in outcome.out, outcome.err
    assert not (tmp_path / "runs").exists()


def test_another_name_on_the_command_line_is_another_run_beside_it(
    copied: Path, tmp_path: Path, hfcap: Hfcap, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = hfcap("train", copied / "runs" / "tiny", "name=other", "train.max_steps=1")
    assert outcome.code == 0, outcome.err
    assert (copied / "runs" / "other" / "model").is_dir() and not (tmp_path / "runs").exists()
    elsewhere = hfcap("train", copied / "runs" / "tiny", "output_dir=there", "train.max_steps=1")
    assert elsewhere.code == 0 and (tmp_path / "there" / "tiny" / "model").is_dir(), elsewhere.err


def test_a_published_model_is_no_run(copied: Path, hfcap: Hfcap) -> None:
    """It carries its recipe; no stage may begin inside it."""
    publish = copied / "runs" / "tiny" / "publish"
    before = snapshot(publish)
    for command in (("score",), ("train",), ("card",), ("run",), ("publish", "--dry-run")):
        assert_refused(hfcap(command[0], publish, *command[1:]), "is a published model, not a run directory")
    assert snapshot(publish) == before


def test_a_run_is_also_named_from_inside(copied: Path, hfcap: Hfcap, monkeypatch: Any) -> None:
    monkeypatch.chdir(copied / "runs" / "tiny")
    (copied / "runs" / "tiny" / "scores" / "test.json").unlink()
    assert hfcap("score", ".").code == 0
    assert (copied / "runs" / "tiny" / "scores" / "test.json").is_file()
    hfcap("doctor", "recipe.yaml", "--steps", 0)
    assert sorted(path.name for path in (copied / "runs").iterdir()) == ["tiny", "tiny.doctor"]


def test_the_doctor_writes_beside_the_run(copied: Path, tmp_path: Path, hfcap: Hfcap, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = hfcap("doctor", copied / "runs" / "tiny", "--steps", 0)
    assert (copied / "runs" / "tiny.doctor" / "doctor.json").is_file(), outcome.err
    assert not (tmp_path / "runs").exists()


# ---- paths ---------------------------------------------------------------------------------------------------------


def test_paths_of_a_run_hold_from_every_folder(project: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_of_run(RunDirectory(project / "runs" / "tiny")).data.root == str(project / "photos")  # type: ignore[attr-defined]


def test_a_moved_project_finds_its_photos_again(copied: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """As long as the old place is there, the old place is meant."""
    run = RunDirectory(copied / "runs" / "tiny")
    old = json.loads(run.stages.read_text())["working_directory"]["path"]
    assert recipe_of_run(run).data.root == str(Path(old) / "photos")  # type: ignore[attr-defined]
    gone = run.recipe.read_text().replace(old, f"{old}-gone")
    run.recipe.write_text(gone)
    run.stages.write_text(run.stages.read_text().replace(old, f"{old}-gone"))
    monkeypatch.chdir(tmp_path)
    assert recipe_of_run(run).data.root == str(copied / "photos")  # type: ignore[attr-defined]


def test_which_values_are_paths(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    path = write_recipe(tmp_path, augment={"synonyms": "words.json"}, score={"document_frequencies": "corpus"})
    recipe = load_recipe(path, ["data.feature_store_folder=store", "model.pretrained=null"])
    (tmp_path / "corpus").mkdir()
    found = with_changed_places(recipe, lambda text, place: absolute(text, place, tmp_path))
    assert found.augment is not None and found.augment.synonyms == str(tmp_path / "words.json")
    assert found.score.document_frequencies == "corpus"
    assert found.data.feature_store_folder == str(tmp_path / "store")
    marks = {name: place_of(info) for name, info in SpiceOptions.model_fields.items()}
    assert {name for name, mark in marks.items() if mark is not None and mark.program} == {"jar", "java"}
    java = marks["java"]
    assert java is not None and absolute("java", java, tmp_path) == "java"
    assert absolute("there", java, tmp_path) == "there" and absolute("./there", java, tmp_path) == f"{tmp_path}/there"


# ---- one command at a time -----------------------------------------------------------------------------------------


def test_a_refused_command_changes_nothing(copied: Path, hfcap: Hfcap) -> None:
    """Once a second command with another recipe deleted `base_model` of the one that was still running."""
    run = RunDirectory(copied / "runs" / "tiny")
    shutil.rmtree(run.checkpoints)
    shutil.rmtree(run.model)  # as at the start of a LoRA run, before its first checkpoint
    run.base_model.mkdir()
    (run.base_model / "model.safetensors").write_bytes(b"half-written by the other command")
    (run.path / ".model.unfinished-abc").mkdir()
    commands: list[tuple[Any, ...]] = [
        ("train", run.path, "train.seed=7"),
        ("run", run.path, "train.seed=7"),
        ("train", run.path, "--force"),
        ("caption", run.path),
        ("score", run.path),
        ("card", run.path),
        ("publish", run.path, "--dry-run"),
    ]
    with only_one(run.lock, "busy"):
        before = snapshot(run.path)
        for command in commands:
            assert_refused(hfcap(*command), "another hfcap is working on this run")
            assert snapshot(run.path) == before, command
            assert (run.path / ".model.unfinished-abc").is_dir(), command


def test_left_over_folders_of_killed_commands_go(copied: Path, hfcap: Hfcap) -> None:
    run = RunDirectory(copied / "runs" / "tiny")
    for name in (".model.unfinished-1", ".publish.unfinished-old-2", "checkpoints/.step-00000002.unfinished-3"):
        (run.path / name).mkdir()
        (run.path / name / "model.safetensors").write_bytes(b"half")
    for name in (".recipe.yaml.unfinished-4", "scores/.test.json.unfinished-5"):
        (run.path / name).write_bytes(b"half")
    assert hfcap("score", run.path).code == 0
    assert [path for path in run.path.rglob("*") if "unfinished" in path.name] == []
    assert run.model.is_dir() and run.publish.is_dir()


def test_a_log_that_is_a_link_is_not_written_to(copied: Path, tmp_path: Path, hfcap: Hfcap) -> None:
    run, target = RunDirectory(copied / "runs" / "tiny"), tmp_path / "precious"
    target.write_text("mine\n")
    run.log.unlink()
    run.log.symlink_to(target)
    outcome = hfcap("train", run.path, "train.max_steps=3", "--accept-changes")
    assert outcome.code == 2 and "log.jsonl: is a link" in outcome.err
    assert target.read_text() == "mine\n"


def test_without_recipe_and_record_nobody_guesses(copied: Path, hfcap: Hfcap) -> None:
    run = RunDirectory(copied / "runs" / "tiny")
    text = run.recipe.read_text()
    recipe = copied / "again.yaml"
    recipe.write_text(text.replace("output_dir: runs", f"output_dir: {copied / 'runs'}"))
    run.recipe.unlink()
    run.stages.unlink()
    before = snapshot(run.path)
    assert_refused(hfcap("train", recipe), "no recipe.yaml or stages.json")
    assert snapshot(run.path) == before


@pytest.mark.parametrize(("variables", "refused"), [(("MASTER_ADDR",), True), ((), False)])
def test_accelerate_launch_that_starts_one_process_of_two_is_refused(
    variables: tuple[str, ...], refused: bool, copied: Path, hfcap: Hfcap, monkeypatch: Any
) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process it starts."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    for name in ("MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "127.0.0.1")
    outcome = hfcap("score", copied / "runs" / "tiny")
    if refused:
        assert_refused(outcome, "asked for several processes and started one", "torchrun --nproc-per-node 2")
    else:
        assert outcome.code == 0, outcome.err
