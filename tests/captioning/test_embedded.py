"""Captions inside image files: what photo programs read, and that nothing else changes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from hfcap.captioners.base import Captioner
from hfcap.captioning import EmbeddedOutput, Finishing, QualityGate, Wording, caption_images
from hfcap.captioning.with_images.embedded_output import description_of, with_description
from hfcap.errors import MissingPackageError, UserError
from tests.captioners.helpers import write_image

pyexiv2 = pytest.importorskip("pyexiv2")

Model = tuple[Captioner, str]
HOSTILE = 'ein grüner <Ball> & "rdf" ]]> 犬'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {
        "quality": 80,
        "comment": b"by hand",
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    },
    "png": {"dpi": (300, 300)},
    "webp": {"lossless": True},
    "tif": {"compression": "tiff_lzw"},
}


def written(path: Path, seed: int = 0) -> bytes:
    """Write an image with metadata of a camera and keywords; returns its bytes."""
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "Camera <3000>", 6
    if path.suffix != ".tif":
        exif.get_ifd(0x8825)[1] = "N"
    noise = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, exif=exif, **FORMATS[path.suffix[1:]])
    with pyexiv2.ImageData(path.read_bytes()) as image:
        image.modify_xmp({"Xmp.dc.subject": ["garden", "ball"], "Xmp.dc.creator": ["Ada"]})
        path.write_bytes(image.get_bytes())
    return path.read_bytes()


def metadata(content: bytes) -> dict[str, Any]:
    """All metadata but where things stand in the file, and what a description is."""
    with pyexiv2.ImageData(content) as image:
        found = {**image.read_exif(), **image.read_xmp(), **image.read_iptc()}
        found |= {"comment": image.read_comment(), "icc": image.read_icc()}
    places = (
        "Exif.Image.StripOffsets",
        "Exif.Image.XMLPacket",
        "Exif.Image.IPTCNAA",
        "Exif.Image.ExifTag",
        "Exif.Image.GPSTag",
    )
    described = ("Xmp.dc.description", "Iptc.Application2.Caption", "Iptc.Envelope.CharacterSet")
    return {name: value for name, value in found.items() if name not in (*places, *described)}


@pytest.mark.parametrize("ending", FORMATS)
def test_pixels_and_all_other_metadata_stay(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{ending}"
    before = written(path)
    assert metadata(before)["Xmp.dc.subject"] == ["garden", "ball"]
    for text in (HOSTILE, "another"):
        path.write_bytes(with_description(path.read_bytes(), text, path))
        assert description_of(path) == text
        after = path.read_bytes()
        assert metadata(after) == metadata(before)
        with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
            assert old.getexif()[0x0112] == new.getexif()[0x0112] == 6
            assert np.array_equal(np.asarray(old), np.asarray(new))
            # Another reader of XMP than the writer.
            if ending in ("jpg", "webp", "tif"):
                raw = new.info["xmp"].decode() if isinstance(new.info["xmp"], bytes) else new.info["xmp"]
                assert text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in raw
    with pyexiv2.ImageData(after) as image:
        assert ending == "webp" or image.read_iptc()["Iptc.Application2.Caption"] == "another"


def test_a_long_caption_is_cut_in_iptc_alone(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    text = "ü" * 1999
    path.write_bytes(with_description(written(path), text, path))
    with pyexiv2.ImageData(path.read_bytes()) as image:
        assert image.read_iptc()["Iptc.Application2.Caption"] == "ü" * 1000
    assert description_of(path) == text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, of which one lies deeper and one has a description of a person, and a GIF."""
    (tmp_path / "images" / "deeper").mkdir(parents=True)
    for number, name in enumerate(["0.jpg", "1.png", "deeper/2.tif", "3.webp"]):
        written(tmp_path / "images" / name, seed=number)
    mine = tmp_path / "images" / "1.png"
    mine.write_bytes(with_description(mine.read_bytes(), "my own words", mine))
    write_image(tmp_path / "images" / "4.png", seed=9)
    (tmp_path / "images" / "4.png").rename(tmp_path / "images" / "4.gif")
    return tmp_path / "images"


def embed(model: Model, folder: Path, existing: Any = "skip", **more: Any) -> dict[str, str]:
    finishing = Finishing(more.pop("wording", Wording()), more.pop("gate", QualityGate()), EmbeddedOutput(existing))
    found = caption_images(model[1], [str(folder)], batch_size=2, finishing=finishing)
    return {Path(one.file_name).relative_to(folder).as_posix(): one.caption for one in found}


def test_descriptions_of_people_are_skipped_or_overwritten(
    model: Model, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = embed(model, folder, wording=Wording(prefix="sks"))
    assert list(found) == ["0.jpg", "3.webp", "deeper/2.tif"]
    # XML holds no control characters, which this model writes now and then.
    readable = {name: "".join(" " if ord(one) < 32 else one for one in text) for name, text in found.items()}
    assert {name: description_of(folder / name) for name in found} == readable
    assert all(text.startswith("sks ") for text in found.values())
    assert description_of(folder / "1.png") == "my own words"
    assert "1 image in formats that hold no description (4.gif)" in capsys.readouterr().err
    kept = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert embed(model, folder) == {}
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == kept
    again = embed(model, folder, "overwrite", wording=Wording(prefix="sks"))
    assert set(again) - set(found) == {"1.png"}
    assert description_of(folder / "1.png") == "".join(" " if ord(one) < 32 else one for one in again["1.png"])
    # An equal description leaves the file as it is.
    changed = {path.name for path in folder.rglob("*.*") if path.read_bytes() != kept[path]}
    assert changed == {"1.png"} | {Path(name).name for name in found if again[name] != found[name]}


def test_what_cannot_hold_a_description(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--embed: left out: 1 image in formats .*4\.gif.*--sidecar"):
        embed(model, folder / "4.gif")
    damaged = folder / "0.jpg"
    damaged.write_bytes(b"damaged")
    assert description_of(damaged) == ""
    with pytest.raises(UserError, match=r"0\.jpg: no description can be written"):
        with_description(damaged.read_bytes(), "a", damaged)
    monkeypatch.setattr("hfcap.captioning.with_images.embedded_output.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r"--embed needs the package 'pyexiv2': pip install 'pyexiv2"):
        embed(model, folder)
