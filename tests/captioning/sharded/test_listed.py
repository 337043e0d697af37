"""Long lists of images: the plan is that of a list read as a whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hfcap.captioning.inputs import DatasetChoice, images_of
from hfcap.captioning.sharded import listed
from hfcap.captioning.sharded.listed import listed_in
from hfcap.captioning.sharded.plan import Asked, make_plan
from hfcap.data.web import web_images
from hfcap.data.web.web_images import _PLAIN_ADDRESS, web_image
from hfcap.errors import UserError
from tests.data.sample_images import write_jpeg

LINES = [
    "https://example.org/a.jpg",
    "https://example.org/b%20c.jpg?x=1",
    "",
    "there.jpg",
    "  https://example.org/a.jpg  ",
    "./there.jpg",
    "gone.jpg",
    "ftp://example.org/a.jpg",
    "ftp://example.org/a.jpg",
    "https://user:secret@example.org/a.jpg",
    "https://exämple.org/ü.jpg",
    "gone.jpg",
    "https://example.org:99999/a.jpg",
    "HTTPS://example.org/a.jpg",
]


def write(folder: Path, end: str, start: str = "") -> Path:
    path = folder / "images.txt"
    write_jpeg(folder / "there.jpg")
    path.write_bytes((start + end.join(LINES)).encode())
    return path


@pytest.mark.parametrize(("end", "start"), [("\n", ""), ("\r\n", "\ufeff")])
def test_a_long_list_is_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, start: str) -> None:
    path = write(tmp_path, end, start)
    asked = Asked((str(path),), DatasetChoice(), 4)
    expected = images_of([str(path)]).listed
    whole = make_plan(asked, tmp_path / "whole")
    assert isinstance(whole.images, list) and expected is not None and len(expected) == 10
    monkeypatch.setattr(listed, "_FEWEST", 3)
    found = make_plan(asked, tmp_path / "long")
    assert isinstance(found.images, listed.ListedImages)
    assert (found.identity, found.asked, found.shards) == (whole.identity, whole.asked, whole.shards)
    assert list(found.images) == expected and found.images[2:5] == expected[2:5] and found.images[-1] == expected[-1]
    found.write(), whole.write()
    for name in ("images.jsonl", "shards.jsonl", "plan.json"):
        assert (tmp_path / "long" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "long" / "images.jsonl").read_text().splitlines()]
    assert [list(row)[2] for row in rows] == ["url", "url", "file", "file", *["problem"] * 3, "url", "problem", "url"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfea\x00\n\x00", b"a.jpg\rb.jpg\rc.jpg", b"a\xff\nb\nc\nd\n", b"", b"\n\n\n\n"]
)
def test_other_files_are_read_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(listed, "_FEWEST", 1)
    (tmp_path / "images.txt").write_bytes(content)
    assert listed_in(tmp_path / "images.txt") is None


def test_some_other_text_is_refused_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "_FEWEST", 2)
    (tmp_path / "notes.txt").write_text("Dear all,\nthis is\nno list.\n")
    with pytest.raises(UserError, match=r"its first line names .*Dear all,, and there is no such file"):
        make_plan(Asked((str(tmp_path / "notes.txt"),), DatasetChoice(), 4), tmp_path / "plan")


def test_plain_addresses_are_those_that_nothing_is_wrong_with(monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["http://a/", "http:///a", "http://[::1]/a", "http://[::1/a", "http://a:1/x@y", "http://a:b/x", "http://-a/"]
    more += ["http://a@b", "http://a/ b", "https://a.b:65536/", "https://a..b/#?@[", "http://a?b@c", "http://a\\@b/"]
    plain = [url for url in (*LINES, *more) if _PLAIN_ADDRESS.fullmatch(url)]
    assert plain == [*LINES[:2], "http://a/", "http://a:1/x@y", "https://a..b/#?@["]
    monkeypatch.setattr(web_images, "_PLAIN_ADDRESS", re.compile("never"))
    assert [web_image(url).url for url in plain] == plain
