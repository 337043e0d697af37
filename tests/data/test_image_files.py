"""Which files of a folder are its images, and which one a name means."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from hfcap.captioning import find_images
from hfcap.data.image_files import folder_images, meant_files
from hfcap.data.images import FileImage, UnreadableImageError, decode_image
from hfcap.data.sources.folder import FolderOptions, load
from hfcap.errors import UserError
from tests.data.sample_images import write_jpeg


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pillow-heif were not installed."""
    for module in ("heic", "images", "image_files"):
        monkeypatch.setattr(f"hfcap.data.{module}.heic_formats", lambda: ())


@pytest.mark.usefixtures("without_heic")
def test_what_a_folder_leaves_out_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.JPG", "b.jfif", "._a.jpg", ".hid/h.jpg", "__MACOSX/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jpeg(tmp_path / name)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "c.avif")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    records = find_images([str(tmp_path)])
    assert [Path(record.file_name).name for record in records] == ["a.JPG", "b.jfif", "c.avif"]
    assert all(decode_image(record.image).mode == "RGB" for record in records)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 file of formats that are not read (IMG_1.HEIC): convert them to JPEG (HEIC is read with" in said
    assert "3 hidden files (._a.jpg, .hid/h.jpg, __MACOSX/c.jpg)" in said


@pytest.mark.usefixtures("without_heic")
def test_a_folder_of_heic_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no image there \(left out: 1 file of formats .* IMG_1\.HEIC|IMG_1"):
        find_images([str(tmp_path)])
    assert folder_images(tmp_path).found == []


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    """Red on the left, blue on the right."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:, 2] = 255
    path = tmp_path / "IMG_1.HEIC"
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95)
    return path


def test_heic_is_read(heic: Path) -> None:
    (record,) = find_images([str(heic.parent)])
    image = decode_image(record.image)
    assert (image.size, image.mode) == ((64, 48), "RGB")
    # Compression moves colours by a few levels.
    assert np.abs(np.asarray(image)[24, [8, 56]].astype(int) - [[255, 0, 0], [0, 0, 255]]).max() <= 8


@pytest.mark.usefixtures("without_heic")
def test_heic_without_its_package_says_what_to_install(heic: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"IMG_1\.HEIC: a HEIC image; pip install pillow-heif"):
        decode_image(FileImage(heic))


@pytest.mark.parametrize(("brightest", "level"), [(4095, 255), (65535, 255), (255, 255), (2048, 128)])
def test_grey_of_fewer_bits_in_16_is_not_nearly_black(brightest: int, level: int, tmp_path: Path) -> None:
    pixels = np.zeros((4, 4), dtype=np.uint16)
    pixels[2:] = brightest
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    seen = np.asarray(decode_image(FileImage(tmp_path / "grey.png")))
    assert (seen[0, 0, 0], seen[3, 3, 0]) == (0, level)


def test_names_of_metadata_that_are_nearly_a_file(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café.jpg")
    for name in (decomposed, "Sea View.JPG", "dog.png", "cat.jpg", "cat.png"):
        write_jpeg(tmp_path / name)
    meant = meant_files(tmp_path, ["café.jpg", "sea%20view.jpg", "dog.jpg", "cat.gif", "cat.jpg", "bird.jpg"])
    # Two files could be meant by cat.gif.
    assert meant == {"café.jpg": decomposed, "sea%20view.jpg": "Sea View.JPG", "dog.jpg": "dog.png"}
    (tmp_path / "metadata.csv").write_text("file_name,caption\nsea%20view.jpg,the sea\nSea View.JPG,a beach\n")
    options = FolderOptions(root=str(tmp_path), validation_share=0, test_share=0, uncaptioned_images="ignore")
    (record,) = load(options, "train")
    assert (record.file_name, record.captions) == ("Sea View.JPG", ("the sea", "a beach"))
