"""`hfcap search` and `hfcap ensemble` as commands: results, exit codes, one message for wrong input."""

from __future__ import annotations

import json
from pathlib import Path

from tests.captioners.helpers import write_image
from tests.cli.command_line import Hfcap, assert_refused


def _images(folder: Path) -> Path:
    rows = [{"file_name": "1.png", "caption": "two dogs on a beach"}, {"file_name": "2.png", "caption": "a red bus"}]
    for row in rows:
        write_image(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_search(hfcap: Hfcap, tmp_path: Path) -> None:
    folder = _images(tmp_path / "images")
    done = hfcap("search", "a dog", str(folder))
    assert done.code == 0 and "1.png" in done.out and "two dogs on a beach" in done.out
    done = hfcap("search", "a dog", str(folder), "-k", "1", "-o", str(tmp_path / "hits.csv"))
    assert done.code == 0 and (tmp_path / "hits.csv").read_text().count("\n") == 2
    done = hfcap("search", "zebras", str(folder))
    assert done.code == 0 and "No caption among 2 images" in done.out


def test_search_wrong_input(hfcap: Hfcap, tmp_path: Path) -> None:
    folder = _images(tmp_path / "images")
    assert_refused(hfcap("search", "dog", str(tmp_path / "gone")), "gone")
    assert_refused(hfcap("search", "dog", str(folder), "-o", str(tmp_path / "hits.pdf")), "hits.pdf", ".html")
    assert_refused(hfcap("search", "dog", str(folder), "--by", "images"), "--by images", "--model")
    assert_refused(hfcap("search", "dog", str(folder), "--model", str(tmp_path)), "--model", "config.json")
    assert_refused(hfcap("search", "", str(folder)), "empty")


def test_ensemble(hfcap: Hfcap, tmp_path: Path) -> None:
    files = []
    for number, caption in enumerate(["two dogs run on grass", "two dogs run", "a red bus"]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"image_id": "1", "caption": caption}) + "\n")
        files.append(str(path))
    output = tmp_path / "best.jsonl"
    done = hfcap("ensemble", *files, "-o", str(output), "--weights", "1,1,9")
    assert done.code == 0
    assert f"Captions of 1 images (1 from {files[0]}, 0 from {files[1]}, 0 from {files[2]}): {output}" in done.out
    assert json.loads(output.read_text())["candidates"]
    assert_refused(hfcap("ensemble", *files, "-o", str(output), "--weights", "1,x"), "--weights", "1,1,0.5")
    assert_refused(hfcap("ensemble", files[0], str(tmp_path / "gone.jsonl"), "-o", str(output)), "gone.jsonl")
