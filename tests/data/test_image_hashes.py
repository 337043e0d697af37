"""Hashes of images: those of their bytes, read once, and never a stale one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hfcap.data.images import FileImage, UnreadableImageError
from hfcap.schema import CaptionedImage
from hfcap.sqlite_cache import SqliteCache
from hfcap.store import image_hashes as module
from hfcap.store.image_hashes import image_hashes


class Counting:
    """An image from memory, which has no file that could stay unchanged."""

    def __init__(self, content: bytes) -> None:
        self.content, self.reads = content, 0

    def read(self) -> bytes:
        self.reads += 1
        return self.content

    def describe(self) -> str:
        return "memory"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    read = FileImage.read

    def counting(self: FileImage) -> bytes:
        found.append(self.path)
        return read(self)

    monkeypatch.setattr(FileImage, "read", counting)
    return found


def record(path: Path) -> CaptionedImage:
    return CaptionedImage(path.name, path.name, ("x",), FileImage(path))


def written(path: Path, content: bytes) -> CaptionedImage:
    path.write_bytes(content)
    return record(path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_files_are_read_once_when_they_have_settled(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0.0)
    records = [written(tmp_path / f"{number}.jpg", bytes([number]) * 9) for number in range(5)]
    expected = [sha256(bytes([number]) * 9) for number in range(5)]
    assert image_hashes(records) == expected
    assert len(reads) == 5
    assert image_hashes([*records[::-1], records[2]]) == [*expected[::-1], expected[2]]
    assert len(reads) == 5


def test_a_file_that_may_still_change_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    young = written(tmp_path / "a.jpg", b"one")
    assert image_hashes([young]) == [sha256(b"one")]
    (tmp_path / "a.jpg").write_bytes(b"two")
    assert image_hashes([young]) == [sha256(b"two")]
    assert len(reads) == 2


@pytest.mark.parametrize("how", ["rewritten", "replaced by an older one", "same size and date"])
def test_changed_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "a.jpg"
    image_hashes([written(path, b"first")])
    before = path.stat()
    if how == "rewritten":
        path.write_bytes(b"other content")
    elif how == "replaced by an older one":
        other = tmp_path / "other.jpg"
        other.write_bytes(b"third")
        os.utime(other, (1, 1))
        other.replace(path)
    else:
        path.write_bytes(b"forth")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image_hashes([record(path)]) == [sha256(path.read_bytes())]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    read = FileImage.read

    def changed_behind(self: FileImage) -> bytes:
        content = read(self)
        path.write_bytes(b"second")
        return content

    with monkeypatch.context() as patch:
        patch.setattr(FileImage, "read", changed_behind)
        image_hashes([record(path)])
    assert image_hashes([record(path)]) == [sha256(b"second")]


def test_images_that_are_no_files_are_read_each_time() -> None:
    image = Counting(b"rendered")
    records = [CaptionedImage("1", "1", ("x",), image)]
    assert image_hashes(records) == image_hashes(records) == [sha256(b"rendered")]
    assert image.reads == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"gone\.jpg: no such file"):
        image_hashes([record(tmp_path / "gone.jpg")])


def test_without_a_database_everything_is_read(own_cache: Path, tmp_path: Path) -> None:
    own_cache.mkdir()
    (own_cache / "image_hashes.sqlite").write_bytes(b"no database" * 100)
    assert image_hashes([written(tmp_path / "a.jpg", b"x")]) == [sha256(b"x")]


def test_a_damaged_page_of_the_database_costs_time_only(
    own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {bytes([number // 256, number % 256]) * 16: b"x" * 100 for number in range(400)}
    with SqliteCache("facts", "it takes longer") as table:
        table.remember(facts)
        assert table.known(facts) == facts
    database = own_cache / "facts.sqlite"
    content = bytearray(database.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
    database.write_bytes(content)
    with SqliteCache("facts", "it takes longer") as table:
        found = table.known(facts)
        assert found.items() <= facts.items() and len(found) < len(facts)
        table.remember(facts)
        assert table.known(facts) == facts
    said = capsys.readouterr().err.replace("\n", "")  # lines end where the screen does
    assert "facts.sqlite" in said and "malformed" in said and "it takes longer" in said
