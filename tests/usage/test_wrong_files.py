"""A day of wrong files: each is refused before any work, in one message that says where, what, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command_line import Hfcap, Outcome
from tests.usage.album import contents, leftovers, read_rows, write_album, write_recipe, write_rows

Damage = Callable[[Path], object]


def one_message(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2, nothing on standard output, one error that holds the fragments, no traceback."""
    assert outcome.code == 2, outcome
    assert outcome.out == "" and "Traceback" not in outcome.err
    assert outcome.err.count("error: ") == 1, outcome.err
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err


def change_row(number: int, **values: object) -> Damage:
    def change(album: Path) -> None:
        rows = read_rows(album)
        rows[number].update(values)
        write_rows(album, rows)

    return change


def table(text: str, encoding: str = "utf-8") -> Damage:
    def change(album: Path) -> None:
        (album / "metadata.jsonl").unlink()
        (album / "metadata.csv").write_text(text, encoding=encoding)

    return change


def append(text: str) -> Damage:
    return lambda album: (album / "metadata.jsonl").open("a").write(text)


ALBUMS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "a line that is no JSON": (append('{"file_name": "red.jpg",\n'), ("metadata.jsonl: line 13", "correct the file")),
    "a caption that is a number": (change_row(2, captions=[7]), ("metadata.jsonl: line 3 (blue.jpg)", "not a caption")),
    "an empty caption": (change_row(0, captions=["a wall", " "]), ("line 1 (red.jpg)", "empty caption")),
    "no captions": (change_row(0, captions=[]), ("line 1 (red.jpg)", "the list of captions is empty; add one")),
    "a cell of pandas": (change_row(1, captions=["nan"]), ("line 2 (green.jpg)", "as programs write an empty cell")),
    "a name in another folder": (change_row(1, file_name="../green.jpg"), ("line 2", "write it relative")),
    "an image that is not there": (change_row(0, file_name="crimson.jpg"), ("red.jpg", "without captions")),
    "a name that no file can have": (change_row(0, file_name="r" * 300 + ".jpg"), ("longer than file systems allow",)),
    "an image without captions": (lambda album: write_rows(album, read_rows(album)[1:]), ("red.jpg", "add captions")),
    "a damaged image": (lambda album: (album / "blue.jpg").write_bytes(b"\xff\xd8\xff no image"), ("blue.jpg",)),
    "an empty image": (lambda album: (album / "blue.jpg").write_bytes(b""), ("blue.jpg", "the file is empty")),
    "no metadata": (
        lambda album: (album / "metadata.jsonl").unlink(),
        ("no captions in a layout that hfcap knows", "hfcap data inspect"),
    ),
    "an open quotation mark": (table('file_name,caption\nred.jpg,"a wall\n'), ("metadata.csv: line 2", "never closed")),
    "a table in another encoding": (table("file_name,caption\nred.jpg,für\n", "latin-1"), ("metadata.csv", "UTF-8")),
    "two metadata files": (lambda album: (album / "metadata.csv").write_text("file_name,caption\n"), ("keep one",)),
    "hundreds of levels": (append('{"a": ' + "[" * 900 + "]" * 900 + "}\n"), ("line 13", "nested too deeply")),
}


@pytest.mark.parametrize("kind", ALBUMS)
def test_an_album_with(kind: str, hfcap: Hfcap, tmp_path: Path) -> None:
    damage, fragments = ALBUMS[kind]
    album = write_album(tmp_path / "album")
    damage(album)
    recipe = write_recipe(tmp_path, album)
    before = contents(tmp_path)
    one_message(hfcap("run", recipe), *fragments)
    assert contents(tmp_path) == before, "a refused run leaves nothing"
    doctor = hfcap("doctor", recipe)
    assert doctor.code == 2 and "Traceback" not in doctor.err
    assert any(fragment in doctor.out + doctor.err for fragment in fragments), doctor


@pytest.mark.parametrize(
    ("key", "fragments"),
    [
        ("train.max_step=3", ("train.max_step", "max_steps")),
        ("train.max_steps=many", ("train.max_steps",)),
        ("captioner=blop", ("blop", "blip")),
        ("data.root=nowhere", ("nowhere: folder not found", "data.root")),
        ("generate.num_beams=0", ("generate.num_beams",)),
        ("train.freeze=[eyes]", ("train.freeze", "eyes")),
        ("score.metrics=[cidre]", ("cidre", "cider")),
        ("train.max_steps", ("train.max_steps", "=")),
    ],
)
def test_a_key_with_a_mistake(key: str, fragments: tuple[str, ...], hfcap: Hfcap, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_album(tmp_path / "album"))
    before = contents(tmp_path)
    one_message(hfcap("run", recipe, key), *fragments)
    assert contents(tmp_path) == before


REFERENCES = {"1": ["a dog", "the dog"], "2": ["a cat"]}
CAPTION_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "other ids": ('{"7": "a dog", "8": "a cat"}', ("2 of 2 ids, for example '7'", "give the references")),
    "an image missing": ('{"1": "a dog"}', ("no caption for 1 of 2 images", "'2'")),
    "two captions of an image": (
        '[{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]',
        ("already has another caption", "keep one"),
    ),
    "a caption that is null": ('{"1": null, "2": "a cat"}', ("must be text",)),
    "no JSON": ("<html>", ("captions.json", "not valid JSON")),
    "nothing": ("[]", ("no captions", "give another")),
    "thousands of digits": ('[{"image_id": 1' + "0" * 5000 + "}]", ("digits",)),
    "half a character": ('{"1": "\\ud800", "2": "a cat"}', ("unpaired surrogate",)),
}


@pytest.mark.parametrize("kind", CAPTION_FILES)
def test_a_file_of_captions_with(kind: str, hfcap: Hfcap, tmp_path: Path) -> None:
    text, fragments = CAPTION_FILES[kind]
    (tmp_path / "captions.json").write_text(text)
    (tmp_path / "references.json").write_text(json.dumps(REFERENCES))
    before = contents(tmp_path)
    outcome = hfcap("score", tmp_path / "captions.json", tmp_path / "references.json", "-o", tmp_path / "scores.json")
    one_message(outcome, "captions.json", *fragments)
    assert contents(tmp_path) == before and leftovers(tmp_path) == []


def test_models_and_runs_that_are_none(hfcap: Hfcap, tmp_path: Path) -> None:
    photo = write_album(tmp_path / "album") / "red.jpg"
    empty = tmp_path / "empty"
    empty.mkdir()
    before = contents(tmp_path)
    one_message(hfcap("caption", empty, photo), str(empty), "give another folder")
    one_message(hfcap("caption", tmp_path / "runs" / "tyni", photo), "no such folder")
    one_message(hfcap("compare", empty), str(empty), "give the folder that 'hfcap run' made")
    one_message(hfcap("card", empty), str(empty), "not a run directory")
    one_message(hfcap("caption", empty, photo, "-o", tmp_path / "album"), "is a folder; give the name of a file")
    one_message(hfcap("search", "a red wall", tmp_path / "nowhere"), "nowhere: no such folder")
    assert contents(tmp_path) == before
