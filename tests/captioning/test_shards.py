"""WebDataset shards: what a reader of tar files finds, and that they are whole or not there."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from hfcap.captioners.base import Captioner
from hfcap.captioning import caption_images, shards
from hfcap.errors import UserError, WorkError
from tests.captioners.helpers import write_image


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """Return key -> ending -> content, as WebDataset groups the members: at the first point of the name."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            key, _, ending = member.name.partition(".")
            stream = archive.extractfile(member)
            assert stream is not None and ending not in found.setdefault(key, {})
            found[key][ending] = stream.read()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["a.b.png", "c/a.b.png", "d.jpg", "e.png", "f.png"]):
        write_image(tmp_path / "images" / name, seed=number)
    write_image(tmp_path / "images" / "e.png", seed=3).rename(tmp_path / "images" / "really_png.jpg")
    (tmp_path / "images" / "damaged.png").write_bytes(b"damaged")
    return tmp_path / "images"


def test_one_file(model: tuple[Captioner, str], folder: Path, tmp_path: Path) -> None:
    found = caption_images(model[1], [str(folder)], tmp_path / "out/photos.tar", batch_size=2)
    read = samples(tmp_path / "out/photos.tar")
    assert list(read) == [f"{number:09d}" for number in range(5)]
    for sample, prediction in zip(read.values(), found, strict=True):
        [ending] = sample.keys() - {"txt", "json"}
        assert sample["txt"].decode() == prediction.caption
        assert json.loads(sample["json"]) == prediction.as_row()
        assert sample[ending] == Path(prediction.file_name).read_bytes()
        with Image.open(io.BytesIO(sample[ending])) as image:
            assert image.format == {"png": "PNG", "jpg": "JPEG"}[ending]
    before = (tmp_path / "out/photos.tar").read_bytes()
    caption_images(model[1], [str(folder)], tmp_path / "out/photos.tar", batch_size=2)
    assert (tmp_path / "out/photos.tar").read_bytes() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photos.tar"]


def test_shards(model: tuple[Captioner, str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_IMAGES", 2)
    found = caption_images(model[1], [str(folder)], tmp_path / "photos-%05d.tar")
    paths = sorted(tmp_path.glob("photos-*.tar"))
    assert [path.name for path in paths] == [f"photos-{number:05d}.tar" for number in range(3)]
    read = [samples(path) for path in paths]
    assert [len(shard) for shard in read] == [2, 2, 1]
    assert [sample["txt"].decode() for shard in read for sample in shard.values()] == [one.caption for one in found]
    monkeypatch.setattr(shards, "_MAX_BYTES", 1)
    caption_images(model[1], [str(folder)], tmp_path / "small-%d3.tar".replace("%d3", "%3d"))
    assert len(list(tmp_path.glob("small-*.tar"))) == 5


def test_what_cannot_be(
    model: tuple[Captioner, str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("%05d-%05d.tar", "100%.tar", "%s.tar"):
        with pytest.raises(UserError, match=r"give one file \(photos\.tar\), or a number"):
            caption_images("no/model", [str(folder)], tmp_path / name)

    def deleting(name: str, content: bytes) -> str:
        (folder / "d.jpg").unlink(missing_ok=True)
        return "png"

    monkeypatch.setattr(shards, "image_ending", deleting)
    (tmp_path / "x.tar").write_bytes(b"old")
    with pytest.raises(WorkError, match=r"cannot be read any more: .*d\.jpg: no such file"):
        caption_images(model[1], [str(folder)], tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == b"old"
