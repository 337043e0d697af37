"""Photos that have captions already, in five forms that people keep them in: from folder to captioner to sidecars.

The commands are the tutorial's (docs/tutorial.md, steps 4 to 6) and the first one of docs/sidecars.md, nothing else.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build
from tests.cli import test_sidecar_tutorial, test_tutorial
from tests.cli.command_line import Hfcap
from tests.data.sample_images import write_jpeg

Captions = dict[str, str]
"""File name -> caption."""

N_PHOTOS = 24
"""A tenth of them each is set aside for validation and test."""


def sidecars(folder: Path, captions: Captions) -> None:
    for name, text in captions.items():
        (folder / name).with_suffix(".txt").write_text(f"{text}\n")


def metadata_csv(folder: Path, captions: Captions) -> None:
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "text"), *captions.items()])


def coco_json(folder: Path, captions: Captions) -> None:
    images = [{"id": number, "file_name": name} for number, name in enumerate(captions)]
    annotations = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(captions.values())]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def parquet(folder: Path, captions: Captions) -> None:
    columns = {"file_name": list(captions), "caption": list(captions.values())}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "metadata.parquet")


def kaggle(folder: Path, captions: Captions) -> None:
    with (folder / "captions.txt").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption"), *captions.items()])


def steps() -> list[list[str]]:
    """The commands that a person with captions goes on with; the new photos get sidecars."""
    lines = [shlex.split(line) for line in test_tutorial.commands()]
    chosen = [
        line
        for line in lines
        if line[:2] in (["hfcap", "doctor"], ["hfcap", "run"]) or line[:3] == ["hfcap", "caption", "runs/my_photos"]
    ]
    written = next(line for line in test_sidecar_tutorial.commands() if "--sidecar" in line)
    places = {"runs/mine": "runs/my_photos", "photos": "holiday"}
    return [*chosen, [places.get(one, one) for one in written]]


@pytest.mark.parametrize("form", [sidecars, metadata_csv, coco_json, parquet, kaggle])
def test_from_captions_in_any_form_to_sidecars(
    form: Callable[[Path, Captions], None], hfcap: Hfcap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All commands with one form; with the others those that read it, and no updates that the doctor measures."""
    all_commands = form is sidecars
    model = tmp_path / "model"
    build("blip").save(model, GenerateOptions(max_new_tokens=4))
    captions = {f"{n:03}.jpg": f"Grandpa, his roses, and cat number {n}" for n in range(N_PHOTOS)}
    for number, name in enumerate([*captions, "../holiday/1.jpg", "../holiday/sea/2.jpg", "../new.jpg"]):
        write_jpeg(tmp_path / "photos" / name, f"hsl({13 * number}, 80%, 50%)")
    form(tmp_path / "photos", captions)
    monkeypatch.chdir(tmp_path)
    done = []
    for _, *arguments in steps() if all_commands else steps()[:2]:
        more = [f"model.pretrained={model}", f"publish.base_model={test_tutorial.PUBLISHED}", *test_tutorial.SHORT]
        more += ["--steps", "0"] if arguments[0] == "doctor" and not all_commands else []
        found = hfcap(*arguments, *(more if arguments[0] in ("run", "doctor") else []))
        assert found.code == 0, (arguments, found.err)
        done.append(arguments[0])
    assert done == ["doctor", "run", "caption", "caption"][: None if all_commands else 2]
    references = json.loads((tmp_path / "runs/my_photos/references/test.json").read_text())
    found_captions = {image["file_name"]: image["id"] for image in references["images"]}
    texts = {note["image_id"]: note["caption"] for note in references["annotations"]}
    assert {name: texts[number] for name, number in found_captions.items()}.items() <= captions.items()
    environment = json.loads((tmp_path / "runs/my_photos/environment.json").read_text())
    assert sum(environment["datasets"][split]["n_images"] for split in ("train", "validation")) + len(texts) == N_PHOTOS
    if not all_commands:
        return
    written = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "holiday").rglob("*.txt")}
    assert written == {"holiday/1.txt", "holiday/sea/2.txt"}
    assert "new.jpg" in (tmp_path / "captions.csv").read_text()
