"""A folder given for a file, or a file for a folder: one sentence with the remedy, in every command with a path."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from hfcap.cli.examples import EXAMPLES
from tests.cli.command_line import Hfcap, assert_refused
from tests.data.sample_images import write_jpeg

_NO_RUN = "folder: not a run directory"
_IS_FILE = r"f\.txt: is a file, where the [a-z ]+ is wanted; "
_RUN_IS_FILE = r"f\.txt: is a file, where the run directory is wanted; give the folder that 'hfcap run' made"
_MODEL_IS_FILE = (
    r"f\.txt: is a file, where the folder of a model is wanted; give a run directory, a model folder or a Hub"
)
_GIVE_FOLDER = r"f\.txt: is a file; give the name of a folder"
_GIVE_FILE = r"folder: is a folder; give the name of a file"

COMMANDS: dict[str, list[tuple[str, str]]] = {
    "run": [("folder", _NO_RUN), ("blip/folder_lora data.root=f.txt", _IS_FILE)],
    "doctor": [
        ("folder", _NO_RUN),
        ("blip/folder_lora data.root=f.txt", _IS_FILE),
        ("quickstart -o f.txt", _GIVE_FOLDER),
    ],
    "train": [("folder", _NO_RUN), ("blip/folder_lora 'data={source: coco, root: f.txt}'", _IS_FILE)],
    "status": [("f.txt", _RUN_IS_FILE), ("folder", _NO_RUN)],
    "plot": [("f.txt -o c.html", _RUN_IS_FILE), ("f.txt -o folder", _GIVE_FILE)],
    "watch": [("f.txt", _RUN_IS_FILE)],
    "card": [("folder", _NO_RUN)],
    "list": [],
    "recipe-schema": [],
    "caption": [
        ("f.txt a.jpg", _MODEL_IS_FILE),
        ("folder a.jpg -o folder", _GIVE_FILE),
        ("m --alt-text site.html -o copy.html", r"site\.html: is a folder, where the page is wanted; give the file"),
    ],
    "review": [("f.txt", _IS_FILE)],
    "explain": [("f.txt a.jpg -o m.png", _MODEL_IS_FILE), ("folder a.jpg -o folder", _GIVE_FILE)],
    "demo": [("f.txt", _MODEL_IS_FILE), ("folder", r"folder: holds neither a model .*; give another folder")],
    "ensemble": [
        (
            "folder p.json -o e.jsonl",
            r"folder: is a folder, where the prediction file is wanted; give a file in it, such as ",
        ),
        ("p.json p.json -o folder", _GIVE_FILE),
        (
            "p.json p.json -o e.jsonl --document-frequencies folder",
            r"folder: is a folder, where the file of human capt",
        ),
    ],
    "search": [("dog f.txt", r"f\.txt: neither an image, .*; give a folder"), ("dog folder -o folder", _GIVE_FILE)],
    "score": [
        ("folder", r"folder: no run directory \(no recipe\.yaml\); give one .*hfcap score PREDICTIONS REFERENCES"),
        (
            "folder r.json",
            r"folder: is a folder, where the prediction file is wanted; give a file in it, such as folder/p",
        ),
        ("p.json folder", r"folder: is a folder, where the reference file is wanted; .* folder/references\.json"),
        ("p.json r.json -o folder", _GIVE_FILE),
        (
            "p.json r.json --document-frequencies folder",
            r"folder: is a folder, where the file of human captions is wanted",
        ),
        ("p.json r.json --metrics clip_score --option clip_score.images=f.txt", _IS_FILE),
    ],
    "compare": [
        ("folder", _NO_RUN),
        ("p.json --references folder", r"folder: is a folder, where the reference file is wanted"),
        ("p.json --references r.json -o f.txt", _GIVE_FOLDER),
        ("p.json --references r.json -o out --images f.txt", r"--images: f\.txt: is a file, where the image folder is"),
    ],
    "judge-metrics": [("r.json -o f.txt", _GIVE_FOLDER)],
    "probe-objects": [
        ("m r.json folder -o f.txt", _GIVE_FOLDER),
        ("m folder folder", r"folder: is a folder, where the annotations of objects is wanted; give a file in it"),
    ],
    "judge": [
        ("folder p.json --model m", _NO_RUN),
        ("p.json r.json --model m -o f.txt", _GIVE_FOLDER),
        ("p.json r.json --model m --images f.txt", _IS_FILE),
        ("p.json r.json --model m --images . --agreement folder", r"folder: is a folder, where the file of agree"),
    ],
    "publish": [("folder", _NO_RUN)],
    "verify": [
        ("folder", r"folder is on this machine; give a repository of the Hub"),
        ("f.txt", r"f\.txt is on this mach"),
    ],
    "export": [("f.txt -o m --to onnx", _MODEL_IS_FILE), ("folder -o f.txt --to onnx", _GIVE_FOLDER)],
    "merge": [("f.txt -o m", _MODEL_IS_FILE), ("folder -o f.txt", _GIVE_FOLDER)],
    "publish-space": [("a/b --repo-id a/c -o f.txt --dry-run", _GIVE_FOLDER)],
    "publish-metric": [("cider --repo-id a/b -o f.txt --dry-run", _GIVE_FOLDER)],
    "data coco": [("--root f.txt", r"f\.txt: .*choose another --root")],
    "data inspect": [
        ("r.json --images f.txt", r"no column names an image|f\.txt: is a file, where the image folder is wanted"),
        (
            "t.csv --images f.txt",
            r"f\.txt: is a file, where the image folder is wanted; name it with the recipe's key data\.images",
        ),
        ("empty", r"empty: 0 images, .*; give the folder above images and captions, or the table itself"),
    ],
    "features list": [("--folder f.txt", _IS_FILE)],
    "features prune": [("--folder f.txt --all --yes", _IS_FILE)],
}
"""Command -> arguments with a path of the other kind, and what is said."""


def test_every_command_is_looked_at() -> None:
    assert COMMANDS.keys() == EXAMPLES.keys()


@pytest.fixture
def paths(tmp_path: Path, hfcap: Hfcap, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "site.html", "empty"):
        (tmp_path / name).mkdir()
    for name in ("p.json", "folder/predictions.json"):
        (tmp_path / name).write_text(json.dumps([{"image_id": "a", "caption": "a rose"}]))
    for name in ("r.json", "folder/references.json"):
        (tmp_path / name).write_text(json.dumps({"a": ["a red rose"]}))
    (tmp_path / "t.csv").write_text("file_name,caption\na.jpg,a rose\n")
    (tmp_path / "f.txt").write_text("a: 1\n")
    write_jpeg(tmp_path / "a.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [(command, *case) for command, cases in COMMANDS.items() for case in cases],
    ids=str,
)
def test_what_is_of_the_other_kind_is_refused_with_the_remedy(
    command: str, arguments: str, message: str, paths: Path, hfcap: Hfcap
) -> None:
    before = sorted(paths.rglob("*"))
    outcome = hfcap(*command.split(), *shlex.split(arguments))
    assert_refused(outcome)
    assert re.search(message, outcome.err), outcome.err
    assert sorted(paths.rglob("*")) == before
