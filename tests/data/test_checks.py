from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hfcap.data import checks
from hfcap.data.checks import check_images_decode, check_records, clean_caption
from hfcap.data.images import FileImage, decode_image
from hfcap.errors import UserError
from hfcap.schema import CaptionedImage, ImageBytes
from tests.data.sample_images import write_jpeg


def record(image_id: str, *captions: str, image: ImageBytes | None = None) -> CaptionedImage:
    return CaptionedImage(image_id, f"{image_id}.jpg", captions, image or FileImage(Path(f"{image_id}.jpg")))


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    return [record(str(i), "a", image=FileImage(write_jpeg(tmp_path / f"{i}.jpg"))) for i in range(15)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that the checks really decode."""
    names: list[str] = []

    def spy(image: ImageBytes, draft_size: int | None = None) -> object:
        names.append(Path(image.describe()).name)
        return decode_image(image, draft_size)

    monkeypatch.setattr(checks, "decode_image", spy)
    return names


def test_clean_caption() -> None:
    assert clean_caption("  A cat\n on\ta  mat. ") == "A cat on a mat."


def test_all_kinds_of_wrong_records_are_reported_at_once() -> None:
    wrong = [
        record("a", "x"),
        record("a", "y"),
        record("b"),
        record("c", "x", " \n"),
        record("", "x"),
        record("d", "x"),
        record("e", "\ud800"),
        record("1", "x"),
        record("1 ", "x"),
        record(" ", "x"),
        record("f\ud800", "x"),
    ]
    with pytest.raises(UserError) as raised:
        check_records(wrong, "some dataset")
    message = str(raised.value)
    assert message.startswith("some dataset: 2 image ids that occur more than once: 'a', '1'; ")
    assert "2 images without an id: '.jpg', ' .jpg'; " in message
    assert "1 image ids that are not valid text: 'f\\ud800'; " in message
    assert "1 images without captions: 'b'" in message
    assert "2 images with a caption that is empty or not valid text: 'c', 'e'" in message
    assert "'d'" not in message


def test_long_lists_are_cut_with_the_count() -> None:
    with pytest.raises(UserError, match=r"1,500 images without captions: '0', .* '9', and 1,490 more"):
        check_records([record(str(i)) for i in range(1500)], "d")


def test_good_records_pass() -> None:
    check_records([record("a", "x", "x"), record("b", "y")], "d")


def test_unreadable_images_are_named_with_reason_key_and_count(records: list[CaptionedImage], tmp_path: Path) -> None:
    (tmp_path / "3.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:-20])
    (tmp_path / "5.jpg").unlink()
    with pytest.raises(UserError) as raised:
        check_images_decode(records, 1, "d")
    message = str(raised.value)
    assert message.startswith("d: 2 of 15 images are unreadable: ")
    assert f"{tmp_path / '3.jpg'}: cannot be decoded" in message
    assert f"{tmp_path / '5.jpg'}: no such file" in message
    assert "data.max_unreadable_images (now 1)" in message


def test_ten_of_many_unreadable_images_are_listed(records: list[CaptionedImage]) -> None:
    for one in records:
        Path(one.image.describe()).unlink()
    with pytest.raises(UserError, match=r"15 of 15 images.* and 5 more\.") as raised:
        check_images_decode(records, 3, "d")
    assert str(raised.value).count("no such file") == 10


def test_allowed_number_is_skipped_with_a_warning(
    records: list[CaptionedImage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "3.jpg").write_bytes(b"no image")
    kept = check_images_decode(records, 1, "d")
    assert [one.image_id for one in kept] == [str(i) for i in range(15) if i != 3]
    warning = " ".join(capsys.readouterr().err.split())
    assert "warning: d: 1 of 15 images are unreadable" in warning
    assert "3.jpg" in warning.replace(" ", "")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No readable image is left"):
        check_images_decode([record("a", "x", image=FileImage(tmp_path / "absent.jpg"))], 5, "d")


def test_second_check_decodes_only_what_changed(
    records: list[CaptionedImage], tmp_path: Path, decoded: list[str]
) -> None:
    assert check_images_decode(records, 0, "d") == records
    assert sorted(decoded) == sorted(f"{i}.jpg" for i in range(15))
    decoded.clear()
    write_jpeg(tmp_path / "7.jpg", "blue", size=(30, 30))
    assert check_images_decode(records, 0, "d") == records
    assert decoded == ["7.jpg"]


def test_unreadable_images_are_not_remembered_as_readable(
    records: list[CaptionedImage], tmp_path: Path, decoded: list[str]
) -> None:
    (tmp_path / "7.jpg").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(UserError, match=r"7\.jpg"):
            check_images_decode(records, 0, "d")
    assert decoded.count("7.jpg") == 2
    assert decoded.count("6.jpg") == 1


def test_unusable_cache_costs_only_time(
    records: list[CaptionedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "file"))
    assert check_images_decode(records, 0, "d") == records
    assert "images are checked each time" in " ".join(capsys.readouterr().err.split())


def test_damaged_cache_file_costs_only_time(records: list[CaptionedImage], _own_cache: Path) -> None:
    (_own_cache / "checked_images.sqlite").write_bytes(b"this is no database" * 100)
    assert check_images_decode(records, 0, "d") == records


@dataclass
class Rendered:
    def read(self) -> bytes:
        raise AssertionError("rendered images need no check")

    def describe(self) -> str:
        return "rendered"


def test_rendered_images_are_not_decoded() -> None:
    rendered = [record("a", "x", image=Rendered())]
    assert check_images_decode(rendered, 0, "d") == rendered
