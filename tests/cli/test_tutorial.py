"""The tutorial (docs/tutorial.md), command by command, with a small captioner in the place of the published one."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build
from tests.cli.command_line import Hfcap
from tests.data.sample_images import write_jpeg

PAGE = Path(__file__).resolve().parents[2] / "docs/tutorial.md"
PUBLISHED = "Salesforce/blip-image-captioning-base"
SHORT = ["model.revision=null", "train.num_train_epochs=1", "generate.max_new_tokens=4", "score.n_resamples=20"]


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("deleted", [0, 2])
def test_every_command_of_the_tutorial_works(
    deleted: int, hfcap: Hfcap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the installation and the demo, which serves until it is stopped; also with rows deleted as it says."""
    model = tmp_path / "model"
    build("blip").save(model, GenerateOptions(max_new_tokens=4))
    photos = [f"photos/{number}.jpg" for number in range(12)]
    for number, name in enumerate([*photos, "photos/garden/roses.jpg", "holiday/1.jpg", "new.jpg"]):
        write_jpeg(tmp_path / name, f"hsl({20 * number}, 80%, 50%)")
    monkeypatch.chdir(tmp_path)
    done = []
    for line in commands():
        name, *arguments = shlex.split(line)
        if name == "cd":
            monkeypatch.chdir(arguments[0])
        if name != "hfcap" or arguments[0] == "demo":
            continue
        arguments = [str(model) if one == PUBLISHED else one for one in arguments]
        if "--revision" in arguments:  # of a repository, not of a folder
            place = arguments.index("--revision")
            del arguments[place : place + 2]
        if arguments[0] in ("run", "doctor"):
            arguments += [f"model.pretrained={model}", f"publish.base_model={PUBLISHED}", *SHORT]
            arguments += ["data.uncaptioned_images=ignore"] * (deleted > 0)
        found = hfcap(*arguments)
        assert found.code == 0, (line, found.err)
        done.append(arguments[0])
        if (tmp_path / "photos/metadata.csv").exists() and done == ["caption"]:
            correct(tmp_path / "photos/metadata.csv", deleted)
    assert done == ["caption", "doctor", "run", "caption", "explain", "caption", "compare"]
    assert "`data.uncaptioned_images=ignore`" in PAGE.read_text(encoding="utf-8")
    assert (tmp_path / "runs/my_photos.doctor/contact_sheet.png").is_file()
    assert (tmp_path / "runs/my_photos/README.md").is_file() and (tmp_path / "maps.png").is_file()
    rows = list(csv.DictReader((tmp_path / "captions.csv").open(encoding="utf-8")))
    assert [row["file_name"] for row in rows] == ["new.jpg", "holiday/1.jpg"]


def correct(table: Path, deleted: int) -> None:
    """Write captions as a person would, into the table that the captioner began, without its last rows."""
    rows = list(csv.DictReader(table.open(encoding="utf-8", newline="")))
    assert {"garden/roses.jpg", "0.jpg"} <= {row["file_name"] for row in rows}
    assert list(rows[0]) == ["file_name", "caption", "score"]
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {**row, "caption": f"Grandpa and rose number {number}"}
            for number, row in enumerate(rows[: len(rows) - deleted])
        )
