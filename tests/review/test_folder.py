"""What a person makes of captions: sidecars, pairs of edits, marks; and what another program wrote meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfcap.data.marks import Mark, add_marks, marks_of
from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.review.folder import PAIRS_FILE, ChangedError, ReviewFolder
from tests.data.sample_images import write_jpeg


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "deeper/c.jpg"):
        write_jpeg(tmp_path / name, size=(32, 32))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa dog\r\na brown dog\r\n")
    (tmp_path / "deeper/c.txt").write_text("a cat")
    add_marks(tmp_path / "deeper", {"c.jpg": Mark("score -2.1 is below -1.5")})
    return tmp_path


def test_what_is_shown(folder: Path) -> None:
    items = ReviewFolder(folder).items()
    assert [item.name for item in items] == ["a.jpg", "b.jpg", "deeper/c.jpg"]
    assert [item.text for item in items] == ["a dog\na brown dog", "", "a cat"]
    assert [item.review for item in items] == ["", "", "score -2.1 is below -1.5"]
    assert [bool(item.version) for item in items] == [True, False, True]
    assert not any(item.accepted for item in items)


def test_accepting_changes_no_byte(folder: Path) -> None:
    page = ReviewFolder(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.txt")}
    for item in page.items():
        found = page.save(item.number, item.text + " \n\n", item.version)
        assert found.accepted == bool(item.text) and found.review == ""
    assert {path: path.read_bytes() for path in folder.rglob("*.txt")} == before
    assert not (folder / PAIRS_FILE).exists()
    assert marks_of(folder / "deeper") == {"c.jpg": Mark(accepted=True)}


def test_edits(folder: Path) -> None:
    page = ReviewFolder(folder)
    a, b, c = page.items()
    page.save(a.number, "a dog\n  two   dogs\u200d ", a.version)
    assert (folder / "a.txt").read_bytes() == "\ufeffa dog\r\ntwo dogs\u200d\r\n".encode()
    new = page.save(b.number, "new", b.version)
    assert (folder / "b.txt").read_text() == "new\n"
    page.save(b.number, "newer", new.version)
    assert page.save(c.number, "", c.version).accepted is False and (folder / "deeper/c.txt").read_text() == ""
    page.save(b.number, "first\nnewer", page.item(b.number).version)  # one more is no preference
    pairs = [row for _, row in read_json_lines(folder / PAIRS_FILE, "pairs")]
    assert pairs == [
        {"file_name": "a.jpg", "chosen": "two dogs\u200d", "rejected": "a brown dog"},
        {"file_name": "b.jpg", "chosen": "newer", "rejected": "new"},
    ]


def test_json_sidecars(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "a.json").write_text('{"caption": "a dog", "url": "u", "review": "x"}')
    page = ReviewFolder(folder)
    page.save(0, "two dogs", page.item(0).version)
    assert json.loads((folder / "a.json").read_text()) == {"caption": "two dogs", "url": "u"}
    (folder / "deeper/c.txt").unlink()
    page = ReviewFolder(folder)
    page.save(1, "x", page.item(1).version)
    assert json.loads((folder / "b.json").read_text()) == {"caption": "x"}, "as most sidecars of the folder are"
    page = ReviewFolder(folder, "txt")
    assert [item.text for item in page.items()] == ["", "", ""], "asked for"


def test_what_another_program_wrote_is_not_lost(folder: Path) -> None:
    page = ReviewFolder(folder)
    seen = page.item(0)
    (folder / "a.txt").write_text("meanwhile")
    with pytest.raises(ChangedError):
        page.save(0, "mine", seen.version)
    missing = page.item(1)
    (folder / "b.txt").write_text("meanwhile")
    with pytest.raises(ChangedError):
        page.save(1, "mine", missing.version)
    assert (folder / "a.txt").read_text() == (folder / "b.txt").read_text() == "meanwhile"


def test_what_cannot_be(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xff\xfe\xff")
    page = ReviewFolder(folder)
    assert "is not UTF-8 text" in page.item(0).problem and page.item(0).text == ""
    with pytest.raises(UserError, match="is not UTF-8 text"):
        page.save(0, "x", "")
    assert (folder / "a.txt").read_bytes() == b"\xff\xfe\xff"
    with pytest.raises(UserError, match="control characters"):
        page.save(1, "\x1b[31m", "")
    write_jpeg(folder / "a.jpeg", size=(32, 32))
    with pytest.raises(UserError, match=r"share the sidecar a\.txt"):
        ReviewFolder(folder)
    with pytest.raises(UserError, match="folder not found"):
        ReviewFolder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image there"):
        ReviewFolder(tmp_path / "empty")
