"""Records that are kept in a memory-mapped file: the same as those that were read, and never those of other files."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfcap import environment
from hfcap.data import checks
from hfcap.data.images import FileImage, decode_image
from hfcap.data.kept import keeping, stamps, table
from hfcap.data.kept.table import DamagedTableError, Places, RecordTable, open_table, write_table
from hfcap.data.source import load_split
from hfcap.data.sources import coco_json, folder
from hfcap.data.sources.coco_json import CocoJsonOptions
from hfcap.data.sources.folder import FolderOptions
from hfcap.data.web.kept_images import KeptWebImage
from hfcap.errors import UserError
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage, ImageBytes
from hfcap.store.image_hashes import image_hashes
from tests.data.sample_images import write_coco_json, write_jpeg


@pytest.fixture(autouse=True)
def keeping_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep small splits of young files as well."""
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "FEWEST", 1)
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "records"


@pytest.fixture
def data(tmp_path: Path) -> CocoJsonOptions:
    path = write_coco_json(tmp_path / "data", n_images=12)
    return CocoJsonOptions.model_validate({"captions": str(path), "validation_split": "val"})


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Splits that are really read; sources are called through their modules' `REGISTERED`."""
    found: list[str] = []
    for module in (coco_json, folder):
        registered = module.REGISTERED

        def counting(options: Any, split: str, load: Callable[[Any, str], Any] = registered.load) -> Any:
            found.append(split)
            return load(options, split)

        monkeypatch.setattr(module, "REGISTERED", _replaced(registered, counting))
    return found


def _replaced(source: Any, load: Callable[[Any, str], Any]) -> Any:
    from dataclasses import replace

    return replace(source, load=load)


def read(options: DataOptions) -> list[CaptionedImage]:
    return list(coco_json.load(options, "train"))  # type: ignore[arg-type]


def facts(records: Sequence[CaptionedImage]) -> list[tuple[object, ...]]:
    """All that records say, the columns too, which do not count when they are compared."""
    return [(record, dict(record.columns)) for record in records]


def some_records(root: Path, count: int) -> list[CaptionedImage]:
    return [
        CaptionedImage(
            f"id {number} é",
            f"a/{number}.jpg",
            tuple(f"caption {number}.{part}" for part in range(number % 4)),
            FileImage(root / f"a/{number}.jpg"),
            group="x" * (number % 3),
            prompts=("p",) * (number % 2),
            columns={"name": f"n{number}", "ß": "ü\n"},
            asked=("q",) * (number % 4),
        )
        for number in range(count)
    ]


def test_the_second_time_records_are_the_same_and_the_source_is_not_read(
    data: CocoJsonOptions, loads: list[str]
) -> None:
    first, second = load_split(data, "train"), load_split(data, "train")
    assert isinstance(first, RecordTable) and isinstance(second, RecordTable)
    assert loads == ["train"]
    assert facts(second) == facts(first) == facts(read(data))
    assert list(load_split(data, "validation")) == list(coco_json.load(data, "val"))
    assert loads == ["train", "val"]
    assert len(load_split(data.model_copy(update={"max_train_images": 2}), "train")) == 2


@pytest.mark.parametrize("change", ["captions", "new image", "image gone", "link", "option"])
def test_what_changes_is_read_again(data: CocoJsonOptions, loads: list[str], change: str) -> None:
    load_split(data, "train")
    path = Path(data.captions)  # type: ignore[arg-type]
    images = path.parent / "images"
    if change == "captions":
        content = json.loads(path.read_text())
        content["annotations"][0]["caption"] = "another caption"
        path.write_text(json.dumps(content))
    elif change == "new image":
        write_jpeg(images / "new.jpg")
    elif change == "image gone":
        (images / "1.jpg").unlink()  # of the validation split
    elif change == "link":
        (images / "0.jpg").rename(path.parent / "0.jpg")
        (images / "0.jpg").symlink_to(path.parent / "0.jpg")
        with pytest.raises(UserError, match="leads out of the folder"):
            load_split(data, "train")
        return
    else:
        data = data.model_copy(update={"uncaptioned_images": "ignore"})
    assert facts(load_split(data, "train")) == facts(read(data))
    assert loads == ["train", "train"]


def test_a_folders_captions_in_files_count(tmp_path: Path, loads: list[str]) -> None:
    root = tmp_path / "photos"
    for number in range(6):
        write_jpeg(root / f"{number}.jpg")
        (root / f"{number}.txt").write_text(f"photo {number}")
    options = FolderOptions(root=str(root), validation_share=0.3, test_share=0.0)
    first = load_split(options, "train")
    assert facts(load_split(options, "train")) == facts(first) and loads == ["train"]
    name = first[0].file_name
    (root / name).with_suffix(".txt").write_text("something else")
    assert load_split(options, "train")[0].captions == ("something else",)


def test_groups_of_like_images_are_found_again(tmp_path: Path, loads: list[str]) -> None:
    """The images' bytes decide which of them are one, and only their names are looked at."""
    for number, colour in enumerate(("red", "green", "blue", "white", "black", "gray")):
        write_jpeg(tmp_path / "photos" / f"{number}.jpg", colour)
        (tmp_path / "photos" / f"{number}.txt").write_text(f"photo {number}")
    options = FolderOptions(root=str(tmp_path / "photos"), validation_share=0.3, test_share=0.0, group_by="content")
    load_split(options, "train"), load_split(options, "train")
    assert loads == ["train", "train"]


def test_tables_in_a_linked_folder_are_not_trusted(tmp_path: Path) -> None:
    """The folder's own time does not change when a file in it is written in place."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/annotations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(stamps.UnsettledError, match="annotations: a linked folder"):
        stamps.listing_of(tmp_path / "photos", without_stamp=frozenset({".jpg"}))
    assert stamps.listing_of(tmp_path / "photos", None), "where no table can be in it"


def test_a_table_that_was_replaced_does_not_travel(tmp_path: Path, data: CocoJsonOptions) -> None:
    records = load_split(data, "train")
    assert isinstance(records, RecordTable)
    assert list(pickle.loads(pickle.dumps(records))) == list(records)
    path, before, packed = Path(data.captions), list(records), pickle.dumps(records)  # type: ignore[arg-type]
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = "another caption"
    path.write_text(json.dumps(content))
    load_split(data, "train")
    assert records.is_replaced and list(records) == before, "what is mapped stays"
    with pytest.raises(DamagedTableError, match="was replaced while it was in use"):
        pickle.loads(packed)


def test_files_that_changed_just_now_are_not_trusted(
    data: CocoJsonOptions, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 10.0)
    load_split(data, "train"), load_split(data, "train")
    assert loads == ["train", "train"]


def test_no_folder_is_looked_through_for_a_few_captions(
    data: CocoJsonOptions, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "FEWEST", 1_000)
    monkeypatch.setattr(keeping, "listing_of", None)
    assert facts(load_split(data, "train")) == facts(read(data)) and loads == ["train"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "about", "gone"])
def test_a_damaged_file_is_made_again(data: CocoJsonOptions, keeping_all: Path, loads: list[str], damage: str) -> None:
    expected = facts(load_split(data, "train"))
    [path] = keeping_all.glob("*.arrow")
    about = path.with_suffix(".json")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":  # as if somebody had written both
        path.write_bytes(b"ARROW1 no more than that")
        about.write_text(
            json.dumps(json.loads(about.read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        )
    elif damage == "about":
        about.write_text("[1, 2")
    else:
        path.unlink()
    assert facts(load_split(data, "train")) == expected
    assert loads == ["train", "train"]
    assert facts(load_split(data, "train")) == expected and loads == ["train", "train"]


def test_any_record_comes_back_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROWS_OF_PART", 16)
    monkeypatch.setattr(table, "_AT_A_TIME", 10)
    root, records = tmp_path / "root", some_records(tmp_path / "root", 71)
    assert write_table(tmp_path / "records.arrow", records, Places(root))
    kept = open_table(tmp_path / "records.arrow", Places(root))
    assert facts(kept) == facts(records)
    assert [kept[number] for number in (70, 0, 15, 16, -1)] == [records[number] for number in (70, 0, 15, 16, -1)]
    for part in (slice(3, 40), slice(None, None, 7), slice(60, 5, -3), slice(80, 90)):
        assert facts(kept[part]) == facts(records[part])
    numbers = [5, 3, 3, 60, 17]
    assert list(kept.chosen(numbers)) == [records[number] for number in numbers]
    assert list(kept[10:].chosen(numbers)[1:]) == [records[10 + number] for number in numbers[1:]]
    assert list(kept[10:50].column("captions")) == [record.captions for record in records[10:50]]
    assert list(kept.chosen(numbers).column("image_id")) == [records[number].image_id for number in numbers]
    assert kept.n_asked == sum(len(record.asked) for record in records)
    assert len(pickle.dumps(kept)) < 2000
    assert list(pickle.loads(pickle.dumps(kept[4:9]))) == records[4:9]
    with pytest.raises(IndexError):
        kept[71]


def test_addresses_are_kept_and_images_elsewhere_are_not(tmp_path: Path) -> None:
    url = "https://example.org/a.jpg"
    address = CaptionedImage(url, url, ("x",), KeptWebImage(url, local=True))
    elsewhere = CaptionedImage("1", "1.jpg", ("x",), FileImage(tmp_path / "other" / "1.jpg"))
    path = tmp_path / "records.arrow"
    assert write_table(path, [address], Places(local=True))
    assert list(open_table(path, Places(local=True))) == [address]
    assert not write_table(path, [address, elsewhere], Places(tmp_path, local=True))
    assert not write_table(path, [address], Places(tmp_path))
    assert not write_table(
        path, [CaptionedImage("1", "\udcff", ("x",), FileImage(tmp_path / "\udcff"))], Places(tmp_path)
    )


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/../../b.jpg", "a\\b", "a/.."])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    record = CaptionedImage("1", name, ("x",), FileImage(Path(f"{tmp_path}/{name}")))
    path = tmp_path / "records.arrow"
    # Places that take any file for one of the folder's, as a file that somebody else wrote may.
    assert write_table(path, [record], _Anywhere(tmp_path))
    with pytest.raises(DamagedTableError, match="lead out"):
        open_table(path, Places(tmp_path))


class _Anywhere(Places):
    def kind(self, record: CaptionedImage) -> tuple[int, int, int] | None:
        return 0, 0, 0


def test_images_are_checked_once_and_again_when_they_change(
    data: CocoJsonOptions, monkeypatch: pytest.MonkeyPatch, keeping_all: Path
) -> None:
    decoded: list[str] = []

    def spy(image: ImageBytes, draft_size: int | None = None) -> object:
        decoded.append(Path(image.describe()).name)
        return decode_image(image, draft_size)

    monkeypatch.setattr(checks, "decode_image", spy)
    names = [record.file_name for record in load_split(data, "train")]
    assert sorted(decoded) == sorted(names)
    (keeping_all.parent / "checked_images.sqlite").unlink()
    decoded.clear()
    assert len(load_split(data, "train")) == len(names) and decoded == []
    root = Path(data.captions).parent / "images"  # type: ignore[arg-type]
    (root / names[2]).write_bytes(b"no image")
    with pytest.raises(UserError, match=f"1 of {len(names)} images are unreadable.*{names[2]}"):
        load_split(data, "train")
    assert decoded == [names[2]]
    allowed = data.model_copy(update={"max_unreadable_images": 1})
    [*left] = load_split(allowed, "train")
    assert [record.file_name for record in left] == [name for name in names if name != names[2]]
    decoded.clear()
    assert len(load_split(allowed, "train")) == len(names) - 1
    assert decoded == [names[2]]


def test_hashes_are_those_of_the_bytes_as_they_are(data: CocoJsonOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    records = load_split(data, "train")
    expected = [hashlib.sha256(record.image.read()).hexdigest() for record in records]
    assert list(image_hashes(records)) == expected
    reads: list[Path] = []
    read = FileImage.read

    def counting(self: FileImage) -> bytes:
        reads.append(self.path)
        return read(self)

    monkeypatch.setattr(FileImage, "read", counting)
    assert list(image_hashes(records[1:4])) == expected[1:4]
    assert image_hashes(records)[2] == expected[2] and reads == []
    changed = write_jpeg(records[1].image.path, colour="blue")  # type: ignore[attr-defined]
    expected[1] = hashlib.sha256(changed.read_bytes()).hexdigest()
    assert list(image_hashes(records)) == expected and reads == [changed]
    changed.unlink()
    with pytest.raises(UserError, match="no such file"):
        image_hashes(records)


def test_digests_of_records_are_made_once_and_again_when_captions_change(
    data: CocoJsonOptions, keeping_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counting(records: Sequence[CaptionedImage], make: Callable[[Any], Any] = environment._new_digests) -> Any:
        made.append(len(records))
        return make(records)

    monkeypatch.setattr(environment, "_new_digests", counting)

    def described(some: slice = slice(None)) -> dict[str, Any]:
        records = load_split(data, "train")[some]
        kept, plain = (environment.describe_datasets(data, {"train": one}) for one in (records, list(records)))
        assert kept == plain
        return kept["train"]

    first = described()
    assert described() == first and len(made) == 3, "of the plain records both times, of the kept ones once"
    assert described(slice(3))["ids"] != first["ids"]
    for path in keeping_all.glob("*.json"):
        if "texts" in (about := json.loads(path.read_text())):
            about["texts"]["ids"] = "0" * 64
            path.write_text(json.dumps(about))
    assert described() == first
    captions = Path(str(data.captions))
    captions.write_text(captions.read_text().replace('"caption": "', '"caption": "new '))
    changed = described()
    assert changed["captions"] != first["captions"] and changed["ids"] == first["ids"]


def test_damaged_facts_about_images_are_found_out_again(data: CocoJsonOptions, keeping_all: Path) -> None:
    records = load_split(data, "train")
    expected = list(image_hashes(records))
    [path] = [path for path in keeping_all.glob("*.npy") if np.load(path).dtype["fact"].itemsize]
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    assert list(image_hashes(records)) == expected


def test_warnings_of_the_first_time_are_said_again(
    tmp_path: Path, loads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    for number in range(4):
        write_jpeg(root / f"{number}.jpg")
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is it?"}]
    rows = [
        {"file_name": f"{number}.jpg", "messages": [*talk, {"role": "assistant", "content": f"photo {number}"}]}
        for number in range(4)
    ]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = FolderOptions(root=str(root), validation_share=0.3, test_share=0.0, own_prompts=True)
    first = load_split(options, "train")
    said = capsys.readouterr().err
    assert "system" in said
    assert facts(load_split(options, "train")) == facts(first) and loads == ["train"]
    assert capsys.readouterr().err == said
