from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hfcap.data import images
from hfcap.data.images import FileImage, UnreadableImageError, decode_image, resolve_inside
from hfcap.errors import UserError
from tests.data.sample_images import encoded, write_jpeg
from tests.shared_data import SHARED, requires_shared


@dataclass
class InMemory:
    content: bytes

    def read(self) -> bytes:
        return self.content

    def describe(self) -> str:
        return "test image"


def pixels(content: bytes, draft_size: int | None = None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = decode_image(InMemory(content), draft_size)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_allowed_formats(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = pixels(encoded(Image.new("RGB", (6, 4), (255, 0, 0)), image_format, **options))
    assert found.shape == (4, 6, 3)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("image_format", ["PPM", "ICO", "PCX", "TGA", "EPS"])
def test_other_formats_that_pillow_knows_are_refused(image_format: str) -> None:
    with pytest.raises(UnreadableImageError, match=r"test image: damaged, or not an image in one of the formats JPEG"):
        pixels(encoded(Image.new("RGB", (16, 16)), image_format))


def quadrants() -> Image.Image:
    """Red, green / blue, white: each EXIF orientation shows another arrangement."""
    image = Image.new("RGB", (32, 16))
    for colour, box in {"red": (0, 0), "lime": (16, 0), "blue": (0, 8), "white": (16, 8)}.items():
        image.paste(colour, (*box, box[0] + 16, box[1] + 8))
    return image


# Corner colours (top left, top right, bottom left, bottom right) that the EXIF standard demands for stored quadrants.
UPRIGHT = {1: "rgbw", 2: "grwb", 3: "wbgr", 4: "bwrg", 5: "rbgw", 6: "brwg", 7: "wgbr", 8: "gwrb"}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if image_format in ("JPEG", "WEBP") else {}
    found = pixels(encoded(quadrants(), image_format, exif=exif, **options))
    assert found.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True, True, True): "w"}
    corners = [found[2, 2], found[2, -3], found[-3, 2], found[-3, -3]]
    assert "".join(names[bool(c[0] > 128), bool(c[1] > 128), bool(c[2] > 128)] for c in corners) == UPRIGHT[orientation]


def test_damaged_exif_costs_nothing() -> None:
    good = encoded(quadrants(), "JPEG")
    damaged = good[:2] + b"\xff\xe1" + struct.pack(">H", 2 + 14) + b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + good[2:]
    assert np.array_equal(pixels(damaged), pixels(good))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 2))
    content = encoded(image if mode == "RGBA" else image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    if mode == "P":
        palette = Image.new("P", (4, 2), 1)
        palette.putpalette([0, 0, 0, 9, 9, 9])
        palette.paste(0, (0, 0, 2, 2))
        content = encoded(palette, "PNG", transparency=1)
    if mode == "PA":
        pytest.importorskip("PIL.TiffImagePlugin")
    found = pixels(content)
    assert found[:, :2].max() == 0
    assert found[:, 2:].min() == 255


def test_half_transparent_black_becomes_grey() -> None:
    assert abs(int(pixels(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(image_format: str) -> None:
    ramp = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(ramp), image_format))[0, :, 0].tolist() == [0, 0x40, 0x80, 0xFF]


def test_16_bit_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x80\x00\xff\xff")
    assert pixels(encoded(image, "TIFF"))[0, :, 0].tolist() == [0x80, 0xFF]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(UnreadableImageError, match="save the image with 8 bits per channel"):
        pixels(encoded(Image.new(mode, (2, 2), 1), "TIFF"))


def test_cmyk_jpeg_has_the_right_colours() -> None:
    # Pure cyan ink absorbs red.
    found = pixels(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95))[4, 4]
    assert found[0] < 10 and found[1] > 245 and found[2] > 245


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for image_format in ("GIF", "WEBP"):
        found = pixels(encoded(frames[0], image_format, save_all=True, append_images=frames[1:]))
        assert found[0, 0, 0] > 200 and found[0, 0, 2] < 50


@pytest.mark.parametrize(
    ("size", "draft_size", "expected"),
    [
        ((640, 480), 224, (320, 240)),
        ((480, 640), 60, (60, 80)),
        ((641, 481), 240, (321, 241)),
        ((64, 48), 224, (64, 48)),
    ],
)
def test_draft_is_the_smallest_scale_that_is_large_enough(
    size: tuple[int, int], draft_size: int, expected: tuple[int, int]
) -> None:
    height, width, _ = pixels(encoded(Image.new("RGB", size), "JPEG"), draft_size).shape
    assert (width, height) == expected
    assert min(width, height) >= min(draft_size, *size)


def test_draft_size_does_not_change_other_formats() -> None:
    assert pixels(encoded(Image.new("RGB", (64, 64))), 8).shape == (64, 64, 3)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_images_are_errors(image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, image_format)
    with pytest.raises(UnreadableImageError, match="test image"):
        pixels(content[: len(content) * 2 // 3])
    with pytest.raises(UnreadableImageError, match="test image"):
        pixels(content[: len(content) * 2 // 3], draft_size=16)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [9_000, 40_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_an_error_before_memory_is_used(side: int) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    with pytest.raises(UnreadableImageError, match=r"more than 80,000,000 pixels \(decompression bomb\?\)"):
        pixels(bomb)


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]), st.integers(0, 400))
def test_damaged_bytes_raise_nothing_else(noise: bytes, image_format: str, position: int) -> None:
    content = encoded(quadrants(), image_format)
    position %= len(content)
    try:
        pixels(content[:position] + noise + content[position + len(noise) :])
    except UnreadableImageError as error:
        assert str(error).startswith("test image: ")


def test_file_image_reads_the_file_and_survives_pickling(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg")
    image = pickle.loads(pickle.dumps(FileImage(path)))
    assert image.read() == path.read_bytes()
    assert image.describe() == str(path)


def test_file_image_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 10)
    reasons = {"absent.jpg": "no such file", "empty.jpg": "empty", "large.jpg": "limit 10", "pipe.jpg": "not a file"}
    for name, reason in (reasons | {".": "cannot be read|not a file"}).items():
        for action in (FileImage(tmp_path / name).read, FileImage(tmp_path / name).check_key):
            with pytest.raises(UnreadableImageError, match=reason) as raised:
                action()
            assert str(tmp_path / name) in str(raised.value)


def test_check_key_changes_with_the_file(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg")
    before = FileImage(path).check_key()
    assert FileImage(path).check_key() == before
    os.utime(path, ns=(1, 1))
    assert FileImage(path).check_key() != before


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        ".",
        "/etc/passwd",
        "../a.jpg",
        "a/../../b.jpg",
        "a/..",
        "..\\a.jpg",
        "C:/a.jpg",
        "c:a.jpg",
        "a\0.jpg",
        "\ud800.jpg",
    ],
)
def test_names_that_could_leave_the_folder(tmp_path: Path, file_name: str) -> None:
    with pytest.raises(UserError, match="file name"):
        resolve_inside(tmp_path, file_name)


def test_links_may_not_leave_the_folder(tmp_path: Path) -> None:
    outside = write_jpeg(tmp_path / "failures" / "a.jpg")
    root = tmp_path / "root"
    inside = write_jpeg(root / "real" / "a.jpg")
    (root / "file.jpg").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "own").symlink_to(root / "real")
    (tmp_path / "linked_root").symlink_to(root)
    for name in ("file.jpg", "folder/a.jpg"):
        with pytest.raises(UserError, match="leads out of the folder"):
            resolve_inside(root, name)
    assert resolve_inside(root, "own/a.jpg") == inside.resolve()
    assert resolve_inside(tmp_path / "linked_root", "real/a.jpg") == inside.resolve()


def test_sibling_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "root2" / "a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root2")
    with pytest.raises(UserError, match="leads out"):
        resolve_inside(tmp_path / "root", "link/a.jpg")


PARTS = st.one_of(st.sampled_from(["..", ".", "", "a", "C:", "~", "\\", "\0"]), st.text(max_size=6))


@given(st.lists(PARTS, max_size=5).map("/".join))
def test_resolved_names_are_inside_and_plain_names_are_kept(file_name: str) -> None:
    root = Path("/nonexistent/root")
    try:
        resolved = resolve_inside(root, file_name)
    except UserError:
        parts = PurePosixPath(file_name).parts
        suspicious = ".." in parts or any(character in file_name for character in "\\\0:") or file_name[:1] == "/"
        assert suspicious or not parts or any("\ud800" <= character <= "\udfff" for character in file_name)
    else:
        assert resolved.is_relative_to(root) and resolved != root
        assert resolved == root / file_name


@requires_shared
@pytest.mark.shared
def test_real_photos_decode_and_drafts_look_the_same() -> None:
    for path in sorted((SHARED / "data" / "coco" / "images").glob("*.jpg"))[:20]:
        whole = decode_image(FileImage(path))
        draft = decode_image(FileImage(path), draft_size=100)
        assert min(draft.size) >= 100 and min(draft.size) < min(whole.size)
        shrunk = whole.resize(draft.size, Image.Resampling.BOX)
        difference = np.abs(np.asarray(shrunk, dtype=float) - np.asarray(draft, dtype=float)).mean()
        flipped = np.abs(np.asarray(shrunk, dtype=float) - np.asarray(draft, dtype=float)[:, ::-1]).mean()
        assert difference < 8 and difference < flipped / 3  # the scaled transform is a little sharper than averaging


@requires_shared
@pytest.mark.shared
def test_real_photo_cut_off_is_unreadable() -> None:
    path = next((SHARED / "data" / "flickr8k" / "images").glob("*.jpg"))
    content = path.read_bytes()
    assert Image.open(io.BytesIO(content)).size == (224, 224)
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode_image(InMemory(content[:-2000]))
