from __future__ import annotations

import hashlib
import io
import random
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from hfcap.data.web import download
from hfcap.data.web.download import Archive, coco_archives, download_coco
from hfcap.errors import UserError, WorkError
from tests.data.http_server import FileServer, serving

PHOTOS = {f"train2014/photo{i}.jpg": random.Random(i).randbytes(60_000) for i in range(5)}


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as content:
        for name, data in members.items():
            content.writestr(name, data)
    return buffer.getvalue()


def archive(server: FileServer, md5: str | None = None, n_files: int = len(PHOTOS)) -> Archive:
    return Archive(f"{server.url}/train2014.zip", "train2014/", n_files, md5=md5)


def fetch(root: Path, *archives: Archive, keep_archives: bool = False) -> None:
    download_coco(root, archives=archives, keep_archives=keep_archives, pause=0.0)


def assert_photos_are_there(root: Path) -> None:
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == PHOTOS


def test_fetches_verifies_extracts_and_cleans_up(tmp_path: Path) -> None:
    content = zip_of(PHOTOS | {"other/readme.txt": b"not wanted"})
    with serving(train2014_zip=content) as server:
        fetch(tmp_path, archive(server, hashlib.md5(content).hexdigest()))
    assert_photos_are_there(tmp_path)


def test_second_run_asks_the_server_for_nothing(tmp_path: Path) -> None:
    with serving(train2014_zip=zip_of(PHOTOS)) as server:
        fetch(tmp_path, archive(server))
        server.requests.clear()
        fetch(tmp_path, archive(server))
        assert server.requests == []
    assert_photos_are_there(tmp_path)


def test_dropped_connections_are_continued_by_range_without_fetching_bytes_twice(tmp_path: Path) -> None:
    content = zip_of(PHOTOS)
    with serving(train2014_zip=content) as server:
        server.cut_after["/train2014.zip"] = [100_000, 50_000]
        fetch(tmp_path, archive(server))
        assert server.gets("/train2014.zip") == [None, "bytes=100000-", "bytes=150000-"]
        assert server.bytes_sent == len(content)
    assert_photos_are_there(tmp_path)


def test_next_run_continues_a_stopped_download(tmp_path: Path) -> None:
    with serving(train2014_zip=zip_of(PHOTOS)) as server:
        server.cut_after["/train2014.zip"] = [100_000] + [0] * 10
        with pytest.raises(WorkError, match="run again to go on"):
            fetch(tmp_path, archive(server))
        server.cut_after.clear()
        server.requests.clear()
        fetch(tmp_path, archive(server))
        assert server.gets("/train2014.zip") == ["bytes=100000-"]
    assert_photos_are_there(tmp_path)


def test_file_that_changed_on_the_server_is_fetched_anew(tmp_path: Path) -> None:
    with serving(
        train2014_zip=zip_of({f"train2014/{i}.jpg": random.Random(i + 50).randbytes(60_000) for i in range(5)})
    ) as server:
        server.cut_after["/train2014.zip"] = [100_000] + [0] * 10
        with pytest.raises(WorkError):
            fetch(tmp_path, archive(server))
        server.cut_after.clear()
        server.files["/train2014.zip"] = zip_of(PHOTOS)
        fetch(tmp_path, archive(server))
    assert_photos_are_there(tmp_path)


@pytest.mark.parametrize("missing", ["supports_ranges", "etags"])
def test_server_without_ranges_or_validators_is_restarted_from_the_first_byte(tmp_path: Path, missing: str) -> None:
    with serving(train2014_zip=zip_of(PHOTOS)) as server:
        setattr(server, missing, False)
        server.cut_after["/train2014.zip"] = [100_000]
        fetch(tmp_path, archive(server))
    assert_photos_are_there(tmp_path)


def test_download_killed_between_last_byte_and_renaming_is_complete(tmp_path: Path) -> None:
    content = zip_of(PHOTOS)
    with serving(train2014_zip=content) as server:
        server.cut_after["/train2014.zip"] = [100_000] + [0] * 10
        with pytest.raises(WorkError):
            fetch(tmp_path, archive(server))
        server.cut_after.clear()
        (tmp_path / "downloads" / "train2014.zip.part").write_bytes(content)
        server.bytes_sent = 0
        fetch(tmp_path, archive(server))
        assert server.bytes_sent == 0
    assert_photos_are_there(tmp_path)


def test_overloaded_server_is_asked_again(tmp_path: Path) -> None:
    with serving(train2014_zip=zip_of(PHOTOS)) as server:
        server.failures["/train2014.zip"] = [503, 500, 429, 503]
        fetch(tmp_path, archive(server))
    assert_photos_are_there(tmp_path)


def test_missing_file_is_named_once_and_not_asked_again(tmp_path: Path) -> None:
    with serving() as server:
        with pytest.raises(WorkError, match=r"train2014\.zip: the server answers 404.*by hand"):
            fetch(tmp_path, archive(server))
        assert len(server.requests) == 1


def test_unreachable_server(tmp_path: Path) -> None:
    with serving() as server:
        pass
    with pytest.raises(WorkError, match=r"no answer after 6 attempts"):
        fetch(tmp_path, archive(server))


def test_archive_put_there_by_hand_is_used(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "train2014.zip").write_bytes(zip_of(PHOTOS))
    with serving() as server:
        fetch(tmp_path, archive(server))
        assert server.requests == []
    assert_photos_are_there(tmp_path)


def test_wrong_checksum_deletes_the_archive(tmp_path: Path) -> None:
    with serving(train2014_zip=zip_of(PHOTOS)) as server, pytest.raises(WorkError, match="checksum"):
        fetch(tmp_path, archive(server, md5="0" * 32))
    assert not (tmp_path / "downloads" / "train2014.zip").exists()
    assert not (tmp_path / "train2014").exists()


def test_flipped_bit_is_found_by_the_member_checksum(tmp_path: Path) -> None:
    content = bytearray(zip_of(PHOTOS))
    content[150_000] ^= 1
    with serving(train2014_zip=bytes(content)) as server, pytest.raises(WorkError, match="damaged archive"):
        fetch(tmp_path, archive(server))
    assert not (tmp_path / "downloads" / "train2014.zip").exists()
    for path in (tmp_path / "train2014").glob("*.jpg"):
        assert path.read_bytes() == PHOTOS[f"train2014/{path.name}"]


def test_archive_with_too_few_photos_is_refused(tmp_path: Path) -> None:
    with serving(train2014_zip=zip_of(PHOTOS)) as server, pytest.raises(WorkError, match=r"5 files under .* not 6"):
        fetch(tmp_path, archive(server, n_files=6))


def test_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014" / "photo0.jpg").write_bytes(PHOTOS["train2014/photo0.jpg"])
    (tmp_path / "train2014" / "photo1.jpg.part").write_bytes(b"half a photo")
    with serving(train2014_zip=zip_of(PHOTOS)) as server:
        fetch(tmp_path, archive(server))
    assert_photos_are_there(tmp_path)


@pytest.mark.parametrize("name", ["train2014/../../escaped.jpg", "train2014/..\\escaped.jpg"])
def test_zip_slip_is_refused_before_anything_is_extracted(tmp_path: Path, name: str) -> None:
    root = tmp_path / "a" / "root"
    with serving(train2014_zip=zip_of(PHOTOS | {name: b"x"})) as server, pytest.raises(WorkError, match="refused"):
        fetch(root, archive(server))
    assert not list(tmp_path.rglob("*escaped*"))
    assert not (root / "train2014").exists()


def test_symbolic_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("train2014/link.jpg")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(zip_of(PHOTOS))
    with zipfile.ZipFile(buffer, "a") as content:
        content.writestr(link, "/etc/passwd")
    with serving(train2014_zip=buffer.getvalue()) as server, pytest.raises(WorkError, match="symbolic link"):
        fetch(tmp_path, archive(server))


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("train2014/bomb.jpg", bytes(50_000_000))
    with serving(train2014_zip=buffer.getvalue()) as server, pytest.raises(WorkError, match="zip bomb"):
        fetch(tmp_path, archive(server, n_files=1))


def test_full_disk_is_noticed_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 10**5, 10**5))
    with serving(train2014_zip=zip_of(PHOTOS)) as server:
        with pytest.raises(UserError, match=r"needs 0\.0 GB of free disk .* only 0\.0 GB are free"):
            fetch(tmp_path, archive(server))
        assert server.gets("/train2014.zip") == []


def test_peak_of_disk_counts_one_archive_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    photos = coco_archives("2014")[1:]
    sizes = {photos[0]: 6_000_000_000, photos[1]: 13_000_000_000}
    remotes = {archive: download._Remote(size, None) for archive, size in sizes.items()}
    # 6 extracted, then 13 beside its own archive of 13, each extracted size 5 % above the archive's.
    needed = 6.3e9 + 13e9 + 13.65e9
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, int(needed + 1e6)))
    download._require_space(tmp_path, remotes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, int(needed - 1e6)))
    with pytest.raises(UserError, match=r"needs 33\.0 GB .*19\.9 GB stay.*only 32\.9 GB are free"):
        download._require_space(tmp_path, remotes)


def test_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="choose another --root"):
        fetch(tmp_path / "file" / "root")


def test_only_web_addresses(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only http and https"):
        fetch(tmp_path, Archive("file:///etc/passwd.zip", "train2014/", 1))


def test_fetched_coco_is_what_source_coco_reads(tmp_path: Path) -> None:
    import json

    from PIL import Image

    from hfcap.data.source import load_split
    from hfcap.data.sources.coco import CocoOptions

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "JPEG")
    name = "COCO_val2014_000000000042.jpg"
    entry = {
        "cocoid": 42,
        "split": "test",
        "filepath": "val2014",
        "filename": name,
        "sentences": [{"raw": "a red image"}],
    }
    split_zip = zip_of({"dataset_coco.json": json.dumps({"images": [entry]}).encode(), "dataset_flickr8k.json": b"{}"})
    photo_zip = zip_of({f"val2014/{name}": buffer.getvalue()})
    with serving(caption_datasets_zip=b"", val2014_zip=photo_zip) as server:
        server.files["/caption_datasets.zip"] = split_zip
        split, photos, _ = coco_archives("2014", images_url=server.url, split_url=server.url)
        fetch(tmp_path, split, Archive(photos.url, photos.member_prefix, n_files=1))
    assert not (tmp_path / "dataset_flickr8k.json").exists()
    (record,) = load_split(CocoOptions(root=str(tmp_path)), "test")
    assert (record.image_id, record.file_name, record.captions) == ("42", f"val2014/{name}", ("a red image",))
