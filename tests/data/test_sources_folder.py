from __future__ import annotations

import csv
import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcap.cells import stands_for_nothing
from hfcap.data.source import load_split
from hfcap.data.sources.folder import FolderOptions, load
from hfcap.errors import UserError
from tests.data.sample_images import metadata_entries, write_jpeg


def write_jsonl(folder: Path, rows: list[Any], images: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for row in rows if images else []:
        write_jpeg(folder / row["file_name"])
    return path


def write_csv(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metadata.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def options(root: Path, **changes: Any) -> FolderOptions:
    return FolderOptions.model_validate({"root": str(root), **changes})


def numbered(n: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"file_name": f"photo{i}.jpg", "caption": f"caption {i}", **fields} for i in range(n)]


def names(records: Sequence[Any]) -> set[str]:
    return {record.file_name for record in records}


def test_split_column(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.jpg", "captions": ["one", " two\n"], "split": "train"},
        {"file_name": "sub/b.jpg", "captions": ["three"], "split": "val"},
    ]
    write_jsonl(tmp_path, rows)
    (train,) = load_split(options(tmp_path), "train")
    assert (train.image_id, train.file_name, train.captions) == ("a.jpg", "a.jpg", ("one", "two"))
    (validation,) = load_split(options(tmp_path), "validation")
    assert validation.file_name == "sub/b.jpg"
    assert names(load(options(tmp_path), "val")) == {"sub/b.jpg"}
    with pytest.raises(UserError, match=r"split 'test' \(splits that exist: 'train', 'val'\).*data\.test_split"):
        load_split(options(tmp_path), "test")


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("file_name,caption\na.jpg,one\n", ("one",)),
        ("file_name,text\r\na.jpg,one\r\n", ("one",)),
        ('file_name,caption\na.jpg,"one, ""two""\nthree"\na.jpg,b\na.jpg,c\n', ('one, "two" three', "b", "c")),
        ("file_name,caption_0,caption_1,caption_10\na.jpg,one,,ten\n", ("one", "ten")),
        ("file_name,caption\na.jpg,one\na.jpg,two\n./a.jpg,three\n", ("one", "two", "three")),
        ('file_name,captions\na.jpg,"[""one"", ""two""]"\n', ("one", "two")),
        ("\ufefffile_name,caption\na.jpg,with byte order mark\n", ("with byte order mark",)),
        ("caption,other,file_name\ncafé 日本,x,a.jpg\n", ("café 日本",)),
    ],
)
def test_csv_forms(tmp_path: Path, text: str, captions: tuple[str, ...]) -> None:
    write_csv(tmp_path, text)
    write_jpeg(tmp_path / "a.jpg")
    (record,) = load(options(tmp_path, validation_share=0, test_share=0), "train")
    assert record.captions == captions


def test_numbered_columns_are_in_numeric_order_and_named_columns_win(tmp_path: Path) -> None:
    row = {"file_name": "a.jpg", "caption_10": "eleventh", "caption_2": "third", "alt": "other"}
    path = write_jsonl(tmp_path, [row])
    assert metadata_entries(path)[0].captions == ("third", "eleventh")
    assert metadata_entries(path, ["alt"])[0].captions == ("other",)


def test_split_subfolders_with_own_metadata(tmp_path: Path) -> None:
    for folder, count in {"train": 3, "val": 2, "test": 1}.items():
        write_jsonl(tmp_path / folder, numbered(count))
    assert names(load_split(options(tmp_path), "train")) == {f"train/photo{i}.jpg" for i in range(3)}
    assert names(load_split(options(tmp_path), "validation")) == {"val/photo0.jpg", "val/photo1.jpg"}
    assert names(load_split(options(tmp_path), "test")) == {"test/photo0.jpg"}


def test_split_subfolders_with_one_metadata_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"file_name": f"{folder}/a.jpg", "caption": "x"} for folder in ("train", "validation")])
    assert names(load_split(options(tmp_path), "validation")) == {"validation/a.jpg"}


def test_drawn_splits_are_disjoint_complete_and_of_the_wanted_size(tmp_path: Path) -> None:
    write_jsonl(tmp_path, numbered(600), images=False)
    parts = [names(load(options(tmp_path, validation_share=0.2), name)) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 600
    # Four standard deviations of a binomial draw.
    assert abs(len(parts[1]) - 120) < 40 and abs(len(parts[2]) - 60) < 30


def test_adding_and_reordering_images_moves_no_image(tmp_path: Path) -> None:
    write_jsonl(tmp_path, numbered(100), images=False)
    before = {name: names(load(options(tmp_path), name)) for name in ("train", "validation", "test")}
    more = [{"file_name": f"new{i}.jpg", "caption": "x"} for i in range(50)]
    write_jsonl(tmp_path, more + numbered(100)[::-1], images=False)
    for name, found in before.items():
        assert found < names(load(options(tmp_path), name))
    assert (
        names(load(options(tmp_path, split_seed=1), "test")) & {f"photo{i}.jpg" for i in range(100)} != before["test"]
    )


def test_too_few_images_for_a_drawn_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path, numbered(2))
    with pytest.raises(
        UserError, match=r"raise data\.validation_share or data\.test_share; choose one with the recipe's key"
    ):
        load_split(options(tmp_path, test_share=0.0), "test")


SPLITS = ("train", "validation", "test")


def place(file_name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"0\0{file_name}".encode()).digest()[:8], "big") / 2**64


@given(st.sets(st.from_regex(r"[a-z0-9]{1,12}\.jpg", fullmatch=True), min_size=3, max_size=40))
def test_no_drawn_split_is_empty_and_only_images_that_fill_one_move(file_names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_jsonl(root, [{"file_name": name, "caption": "x"} for name in sorted(file_names)], images=False)
        found = {split: names(load(options(root), split)) for split in SPLITS}
    assert all(found.values()) and set.union(*found.values()) == file_names
    assert sum(map(len, found.values())) == len(file_names)
    thresholds = {"test": (0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1)}
    drawn = {
        split: {name for name in file_names if begin <= place(name) < end} for split, (begin, end) in thresholds.items()
    }
    for split in SPLITS:
        if drawn[split]:
            # One image for each split that was empty may leave, and none may come.
            assert found[split] <= drawn[split]
        else:
            assert len(found[split]) == 1
    moved = sum(not drawn[split] for split in SPLITS)
    assert sum(len(drawn[split] - found[split]) for split in SPLITS) == moved


def test_an_empty_split_takes_the_nearest_training_image(tmp_path: Path) -> None:
    chosen = [row for row in numbered(60) if place(row["file_name"]) > 0.3][:20]
    write_jsonl(tmp_path, chosen, images=False)
    by_place = sorted((row["file_name"] for row in chosen), key=place)
    assert names(load(options(tmp_path), "test")) == {by_place[0]}
    assert names(load(options(tmp_path), "validation")) == {by_place[1]}
    assert names(load(options(tmp_path), "train")) == set(by_place[2:])
    # A share of 0 means that there is no such split.
    assert names(load(options(tmp_path, test_share=0.0), "validation")) == {by_place[0]}
    with pytest.raises(UserError):
        load(options(tmp_path, test_share=0.0), "test")


def test_shares_that_leave_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path, numbered(2))
    with pytest.raises(UserError, match=r"data\.validation_share and data\.test_share leave no images"):
        load(options(tmp_path, validation_share=0.5, test_share=0.5), "train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"fle_name": "a.jpg", "caption": "x"}, "has no text under 'file_name'; did you mean 'fle_name'"),
        ({"file_name": "a.jpg", "title": "x"}, r"\(a\.jpg\) has no captions .*data\.caption_columns"),
        ({"file_name": "a.jpg", "captions": []}, "the list of captions is empty"),
        ({"file_name": "a.jpg", "captions": ["x", " "]}, "empty caption in captions"),
        ({"file_name": "a.jpg", "caption": ""}, "empty caption in caption"),
        ({"file_name": "a.jpg", "caption": None}, "the list of captions is empty"),
        ({"file_name": "a.jpg", "captions": [3]}, "captions holds int, not a caption"),
        ({"file_name": "a.jpg", "caption": "x", "split": 3}, "split must be text, not int"),
        ({"file_name": "../a.jpg", "caption": "x"}, r"file name '\.\./a\.jpg' contains '\.\.'"),
        ({"file_name": "/etc/hostname", "caption": "x"}, "is absolute and outside of the folder .*with data.root"),
        ("just text", "must be a JSON object"),
    ],
)
def test_wrong_rows_name_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    write_jsonl(tmp_path, [*numbered(1), row], images=False)
    with pytest.raises(UserError, match=rf"metadata\.jsonl: line 2.*{message}"):
        load(options(tmp_path), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,caption\na.jpg,one, two\n", "line 2 has more fields than the header"),
        ("file_name,caption\na.jpg\n", r"line 2 \(a\.jpg\) has no captions"),
        ("file_name,caption\na.jpg,   \n", r"line 2 \(a\.jpg\) has no captions"),
        ('file_name,caption\na.jpg,"one\n', "line 2: a quotation mark .* is opened and never closed"),
        ('file_name,captions\na.jpg,"[""one"", "\n', r"line 2 \(a\.jpg\): captions: .* looks like a list"),
        ("name;caption\na.jpg;one\n", "line 2 has no text under 'file_name'"),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"metadata\.csv: {message}"):
        metadata_entries(write_csv(tmp_path, text))


def test_one_image_in_two_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [*numbered(1, split="train"), *numbered(1, split="test")])
    with pytest.raises(UserError, match=r"line 2 puts photo0\.jpg into split 'test', line 1 into 'train'"):
        load(options(tmp_path), "train")


def test_rows_with_and_without_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{**numbered(1)[0], "split": "train"}, {"file_name": "b.jpg", "caption": "x"}])
    with pytest.raises(UserError, match=r"1 image without a split, while others have one: b\.jpg"):
        load(options(tmp_path), "train")


def test_images_without_captions(tmp_path: Path) -> None:
    write_jsonl(tmp_path, numbered(3))
    write_jpeg(tmp_path / "more" / "forgotten.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"1 image without captions.*more/forgotten\.JPG.*uncaptioned_images: ignore"):
        load(options(tmp_path), "train")
    assert load(options(tmp_path, uncaptioned_images="ignore", validation_share=0, test_share=0), "train")


def test_captions_without_image_are_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path, numbered(3, split="train"))
    (tmp_path / "photo1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images.*photo1\.jpg: no such file.*data\.max_unreadable_images"):
        load_split(options(tmp_path), "train")


def test_folders_without_metadata_or_with_two(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder not found.*data\.root"):
        load(options(tmp_path / "absent"), "train")
    with pytest.raises(UserError, match=r"no captions in a layout that hfcap knows; .*hfcap data inspect"):
        load(options(tmp_path), "train")
    write_jsonl(tmp_path, [])
    with pytest.raises(UserError, match="there are no rows with captions"):
        load(options(tmp_path), "train")
    write_csv(tmp_path, "file_name,caption\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl and metadata\.csv; keep one"):
        load(options(tmp_path), "train")


# One line of any text that UTF-8 can hold, more than white space; no empty cell's word, no list written as text.
CAPTIONS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1).filter(
    lambda text: text.strip() and not stands_for_nothing(text) and text.strip()[0] not in "[("
)
FILE_NAMES = st.from_regex(r"[a-z0-9_]{1,8}(/[a-z0-9]{1,4})?\.jpg", fullmatch=True)
ROWS = st.lists(st.tuples(FILE_NAMES, st.lists(CAPTIONS, min_size=1, max_size=3)), min_size=1, max_size=5)


@given(ROWS)
def test_metadata_comes_back_as_written(rows: list[tuple[str, list[str]]]) -> None:
    expected = [(name, tuple(re.sub(r"\s+", " ", caption).strip() for caption in captions)) for name, captions in rows]
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "metadata.jsonl"
        lines.write_text(
            "".join(json.dumps({"file_name": n, "captions": c}, ensure_ascii=False) + "\n" for n, c in rows),
            encoding="utf-8",
        )
        assert [(row.image, row.captions) for row in metadata_entries(lines)] == expected
        table = Path(folder) / "metadata.csv"
        with table.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["file_name", "caption_0", "caption_1", "caption_2"])
            writer.writerows([name, *captions, *[""] * (3 - len(captions))] for name, captions in rows)
        assert [(row.image, row.captions) for row in metadata_entries(table)] == expected


@given(st.text(st.characters(codec="utf-8"), max_size=120), st.sampled_from(["metadata.jsonl", "metadata.csv"]))
def test_any_text_is_parsed_or_refused_politely(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8", newline="")
        try:
            rows = metadata_entries(path)
        except UserError as error:
            assert name in str(error)
        else:
            assert all(row.image and row.captions and all(row.captions) for row in rows)


def test_lists_written_as_text(tmp_path: Path) -> None:
    write_csv(tmp_path, "file_name,caption\na.jpg,\"['a dog', 'b dog']\"\n")
    assert [row.captions for row in metadata_entries(tmp_path / "metadata.csv")] == [("a dog", "b dog")]
    with pytest.raises(UserError, match=r"metadata\.csv: line 2 \(a\.jpg\): caption: the caption is 'nan'"):
        metadata_entries(write_csv(tmp_path, "file_name,caption\na.jpg,nan\n"))
    with pytest.raises(UserError, match=r"metadata\.csv: 1 of 1 captions have several lines"):
        metadata_entries(write_csv(tmp_path, 'file_name,caption\na.jpg,"a dog\nb dog"\n'))


def test_one_row_per_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"file_name": f"{n}.jpg", "caption": f"caption {n}", "split": "train"} for n in range(4)]
    write_jsonl(tmp_path, rows)
    for name in ("1.jpg", "3.jpg"):
        (tmp_path / name).write_bytes((tmp_path / f"{int(name[0]) - 1}.jpg").read_bytes())
    load_split(options(tmp_path), "train")
    assert "the first 4 rows hold" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file_name;caption\na.jpg;a dog, red\n", "utf-8"),
        ("file_name\tcaption\na.jpg\ta dog, red\n", "utf-8"),
        ('sep=,\nfile_name,caption\na.jpg,"a dog, red"\n', "utf-8"),
        ("sep=;\nfile_name;caption\na.jpg;a dog, red\n", "utf-8"),
        ('file_name,caption\na.jpg,"a dog, red"\n', "utf-16"),
    ],
)
def test_csv_as_spreadsheets_write_it(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(text.encode(encoding))
    (row,) = metadata_entries(tmp_path / "metadata.csv")
    assert (row.image, row.captions) == ("a.jpg", ("a dog, red",))
