"""The page about sidecars (docs/sidecars.md), command by command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hfcap.captioning.with_images.embedded_output import description_of
from hfcap.recipe.blocks import GenerateOptions
from tests.captioners.helpers import build
from tests.cli.command_line import Hfcap, assert_refused
from tests.data.sample_images import write_jpeg

PAGE = Path(__file__).resolve().parents[2] / "docs/sidecars.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's captioner and three photos, as the working directory."""
    build("blip").save(tmp_path / "runs" / "mine", GenerateOptions(num_beams=2, max_new_tokens=4))
    for number, name in enumerate(["1.jpg", "2.JPG", "garden/roses.jpg"]):
        write_jpeg(tmp_path / "photos" / name, f"hsl({90 * number}, 80%, 50%)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_works(hfcap: Hfcap, workplace: Path) -> None:
    photos = workplace / "photos"
    (photos / "1.txt").write_text("my own words")
    said = []
    for _, *arguments in commands():
        if arguments[0] != "caption":
            continue
        outcome = hfcap(*arguments)
        assert outcome.code == 0, outcome.err
        said.append(outcome.out)
        texts = {path.name: path.read_text() for path in photos.rglob("*.txt")}
        assert texts.keys() == {"1.txt", "2.txt", "roses.txt"}
        assert (texts["1.txt"] == "my own words") == (len(said) == 1)
    assert "Captions: 2 sidecars" in said[0] and "2 of 2 captions are marked for review" in said[0]
    assert (photos / "review.jsonl").is_file() and "Captions: 3 sidecars" in said[1]
    assert len(said) == 3 and "Captions: 3 descriptions in images" in said[2]
    assert all(description_of(path) for path in photos.rglob("*.*") if path.suffix.lower() == ".jpg")
    assert all(text.startswith("sks dog ") and text.strip().endswith(", film still") for text in texts.values())
    again = hfcap("caption", "runs/mine", "photos", "--sidecar", "txt")
    assert again.code == 0 and "Nothing to do: every image has a sidecar" in again.out
    again = hfcap("caption", "runs/mine", "photos", "--embed")
    assert again.code == 0 and "Nothing to do: every image has a description" in again.out


def test_options_that_do_not_go_together(hfcap: Hfcap, workplace: Path) -> None:
    start = ("caption", "runs/mine", "photos")
    assert_refused(hfcap(*start, "--existing", "append"), "--existing", "only with --sidecar")
    assert_refused(hfcap(*start, "--embed", "-o", "x.csv"), "-o, --embed: give one of them")
    assert_refused(hfcap(*start, "--embed", "--existing", "append"), "--existing append", "one description")
    assert_refused(hfcap("caption", "runs/mine", "--embed"), "--embed", "give images or a dataset as INPUT")
    assert_refused(hfcap(*start, "--clip-model", "x"), "--clip-model", "only with --review-below-clip-score")
    assert_refused(hfcap(*start, "--sidecar", "txt", "-o", "x.csv"), "-o, --sidecar: give one of them")
    assert_refused(hfcap("caption", "runs/mine", "--sidecar", "txt"), "--sidecar", "give images or a dataset as INPUT")
    assert_refused(hfcap(*start, "--prefix", "a\nb"), "--prefix", "one line")
    assert not list(workplace.rglob("*.txt"))
