"""A metadata file that changes while shards are unfinished is noticed, whoever goes on, and whatever changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning.sharded import Place, caption_shards, reading, work
from hfcap.errors import UserError
from hfcap.files import read_json, write_json
from tests.captioners.helpers import write_image
from tests.captioning.sharded.conftest import contents, rows
from tests.captioning.sharded.test_sharded import job

Model = tuple[Captioner, str]
PROMPT = "this {name} is"
SAID = r"{name}: was changed since the captioning began, and prompts name its columns; put it back .* --force"


def write_table(folder: Path, word: str) -> Path:
    lines = [json.dumps({"file_name": f"{n}.png", "name": f"{word} {n}"}) + "\n" for n in range(6)]
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder / "metadata.jsonl"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(6):
        write_image(tmp_path / "in/images" / f"{number}.png", seed=number)
    write_table(tmp_path / "in/images", "cup")
    return tmp_path / "in/images"


@pytest.fixture
def half(model: Model, images: Path, tmp_path: Path) -> Any:
    """A captioning that stops after the first of its three shards."""
    given = job(model, tmp_path / "out", images, prompt=PROMPT, images_per_shard=2)
    written: list[str] = []

    def stopping(self: Any, shard: Any, claims: Any) -> None:
        if written:
            raise RuntimeError("killed here")
        written.append(shard.name)
        write(self, shard, claims)

    write = work._Work._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work._Work, "_write", stopping)
        with pytest.raises(RuntimeError, match="killed here"):
            caption_shards(given)
    return given


def appended(images: Path) -> str:
    """Another value, for an image that is not captioned yet."""
    write_table(images, "boat")
    return "metadata.jsonl"


def removed(images: Path) -> str:
    (images / "metadata.jsonl").unlink()
    return "metadata.jsonl"


def added(images: Path) -> str:
    """A table above the images, which counts for those that the nearer one leaves out."""
    (images.parent / "metadata.csv").write_text("file_name,name\nimages/5.png,x\n")
    return "metadata.csv"


@pytest.mark.parametrize("change", [appended, removed, added])
@pytest.mark.parametrize("place", [Place(), Place(0, 2, 0, launched=True)])
def test_a_change_is_noticed(change: Any, place: Place, half: Any, images: Path) -> None:
    name = change(images)
    with pytest.raises(UserError, match=SAID.replace("{name}", name)):
        caption_shards(half, place)


def test_a_change_within_a_shard_is_noticed(
    model: Model, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*arguments: Any) -> Iterator[Any]:
        for record in reading.images_in(*arguments):
            write_table(images, "boat")
            yield record

    monkeypatch.setattr(work, "images_in", changing)
    with pytest.raises(UserError, match=SAID.replace("{name}", "metadata.jsonl")):
        caption_shards(job(model, tmp_path / "out", images, prompt=PROMPT))
    assert not list((tmp_path / "out/.unfinished/done").glob("*"))


def test_the_same_table_goes_on(half: Any, images: Path, tmp_path: Path, model: Model) -> None:
    """Put back with the time of its last change; and begun again with --force where it is another one."""
    path = images / "metadata.jsonl"
    status = path.stat()
    write_table(images, "boat")
    write_table(images, "cup")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert caption_shards(half).images == 6
    whole = job(model, tmp_path / "whole", images, prompt=PROMPT, images_per_shard=2)
    caption_shards(whole)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    write_table(images, "boat")
    before = [row["caption"] for row in rows(tmp_path / "out")]
    caption_shards(half, again=True)
    assert [row["caption"] for row in rows(tmp_path / "out")] != before


def test_a_prompt_without_fields_does_not_ask(model: Model, images: Path, tmp_path: Path) -> None:
    given = job(model, tmp_path / "out", images)
    work.begin(given, launched=False, again=False)
    write_table(images, "boat")
    assert caption_shards(given).images == 6


def test_a_folder_of_an_earlier_hfcap_goes_on(half: Any, images: Path, tmp_path: Path) -> None:
    """It noted nothing of tables."""
    plan = tmp_path / "out/.unfinished/plan/plan.json"
    write_json(plan, {key: value for key, value in read_json(plan, "plan").items() if key != "tables"})
    write_table(images, "boat")
    assert caption_shards(half, Place(0, 2, 0, launched=True)).images == 6
