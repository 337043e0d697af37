"""A day with one's own photos: from a folder to captions, the captions are corrected, the command is given again."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command_line import Hfcap
from tests.data.sample_images import write_jpeg
from tests.usage.album import contents, leftovers, read_rows, write_album, write_recipe, write_rows

MADE = ("README.md", "model/model.safetensors", "predictions/test.jsonl", "scores/test.json", "publish/README.md")


def test_from_a_folder_to_captions_and_back(hfcap: Hfcap, tmp_path: Path) -> None:
    album = write_album(tmp_path / "album")
    recipe, run = write_recipe(tmp_path, album), tmp_path / "runs" / "tiny"
    doctor = hfcap("doctor", recipe)
    assert doctor.code == 0 and "8 images, 16 captions" in doctor.out, doctor
    assert not run.exists(), "the doctor makes no run"

    first = hfcap("run", recipe)
    assert first.code == 0 and "Scores x 100 on 2 test images" in first.out, first
    assert "only 2 images" in first.err and "Traceback" not in first.err
    assert [name for name in MADE if not (run / name).is_file()] == []
    assert leftovers(tmp_path) == []
    made = contents(run)

    again = hfcap("run", recipe)
    assert again.code == 0 and "Nothing was done again" in again.err, again
    changed = {name for name, value in contents(run).items() if made.get(name) != value}
    assert changed == set(), "nothing was done, and nothing is another file"

    new = write_jpeg(tmp_path / "new" / "photo of mine.jpg", "cyan")
    captioned = hfcap("caption", run, new)
    assert captioned.code == 0 and "mine.jpg" in captioned.out
    captioned = hfcap("caption", run, new.parent, "-o", tmp_path / "captions.csv")
    assert captioned.code == 0 and "photo of mine.jpg" in (tmp_path / "captions.csv").read_text()
    assert leftovers(tmp_path) == []


def test_corrected_captions_are_noticed(hfcap: Hfcap, tmp_path: Path) -> None:
    """Once: the old scores, and not a word."""
    album = write_album(tmp_path / "album")
    recipe, run = write_recipe(tmp_path, album), tmp_path / "runs" / "tiny"
    assert hfcap("run", recipe).code == 0
    references = (run / "references/test.json").read_text()
    rows = read_rows(album)
    rows[0]["captions"][0] = "a crimson wall"
    write_rows(album, rows)
    told = hfcap("run", recipe)
    assert told.code == 0, told
    assert "split train: captions (8 images with 16 captions then, 8 images with 16 captions now)" in told.err
    assert f"hfcap train {run} --force" in told.err and "name=..." in told.err

    rows[0]["captions"][0] = "a red wall"
    rows[-1]["captions"] = ["teal, and nothing but teal"]
    write_rows(album, rows)
    refused = hfcap("run", recipe, "score.n_resamples=30")  # scores would be of other captions than were made
    assert refused.code == 2 and "split test: captions" in refused.err, refused
    assert (run / "references/test.json").read_text() == references
    captioned = hfcap("caption", run, "--force")
    assert captioned.code == 0, captioned
    assert "teal, and nothing but teal" in (run / "references/test.json").read_text()

    other = hfcap("run", recipe, "name=corrected")
    assert other.code == 0 and "has changed" not in other.err, other
    environment = json.loads((tmp_path / "runs/corrected/environment.json").read_text())
    assert environment["datasets"]["train"]["n_captions"] == 16 and leftovers(tmp_path) == []
