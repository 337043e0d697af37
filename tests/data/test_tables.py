"""Tables and sidecar files in the forms in which people keep captions: CSV, JSON, parquet, text next to images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from hfcap.data.inspection import inspect_data
from hfcap.data.source import load_split
from hfcap.data.sources.folder import FolderOptions
from hfcap.data.sources.table import TableSourceOptions
from hfcap.data.tables.cell_paths import template_text, values_at
from hfcap.data.tables.sidecars import caption_in_name
from hfcap.errors import UserError
from hfcap.recipe.blocks import DataOptions
from hfcap.schema import CaptionedImage
from tests.data.http_server import serving
from tests.data.sample_images import write_jpeg

ALL = {"validation_share": 0, "test_share": 0}
TWO = {"a.jpg": ("a red rose",), "b.jpg": ("a white tulip",)}


def found(options: DataOptions, split: Any = "train") -> dict[str, tuple[str, ...]]:
    return {record.file_name: record.captions for record in load_split(options, split)}


def in_folder(root: Path, **changes: Any) -> FolderOptions:
    return FolderOptions.model_validate({"root": str(root), **ALL, **changes})


def in_table(path: Path, **changes: Any) -> TableSourceOptions:
    return TableSourceOptions.model_validate({"table": str(path), **ALL, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in {"a": "red", "b": "white"}.items():
        write_jpeg(tmp_path / f"{name}.jpg", colour)
    return tmp_path


CSV_FORMS = {
    "photos.csv": "photo;description\na.jpg;a red rose\nb.jpg;a white tulip\n",
    "tabs.tsv": "image\tcaption\na.jpg\ta red rose\nb.jpg\ta white tulip\n",
    "bars.csv": "image_name| number| caption\na.jpg| 0| a red rose\nb.jpg| 0| a white tulip\n",
    "upper.csv": "Image,Caption\na.jpg,a red rose\nb.jpg,a white tulip\n",
    "ids.csv": "ID,Caption\na,a red rose\nb,a white tulip\n",
    "list.json": '[{"image": "a.jpg", "text": "a red rose"}, {"image": "b.jpg", "text": "a white tulip"}]',
    "names.json": '{"a.jpg": "a red rose", "b.jpg": ["a white tulip"]}',
    "objects.json": '{"a.jpg": {"caption": "a red rose"}, "b.jpg": {"caption": "a white tulip"}}',
    "under_a_key.json": '{"version": 1, "data": [{"img": "a.jpg", "caption": "a red rose"}, '
    '{"img": "b.jpg", "caption": "a white tulip"}]}',
    "lines.jsonl": '{"filename": "a.jpg", "sentences": [{"raw": "a red rose"}]}\n'
    '{"filename": "b.jpg", "sentences": [{"raw": "a white tulip"}]}\n',
}


@pytest.mark.parametrize("name", CSV_FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_in_a_folder_and_by_its_name(name: str, encoding: str, folder: Path) -> None:
    if name.endswith(".jsonl") and encoding == "utf-16":
        pytest.skip("lines are UTF-8")
    (folder / name).write_bytes(CSV_FORMS[name].encode(encoding))
    assert found(in_folder(folder)) == TWO
    elsewhere = folder / "tables" / name
    elsewhere.parent.mkdir()
    (folder / name).rename(elsewhere)
    assert found(in_table(elsewhere, images=str(folder))) == TWO


def test_named_columns_reach_into_cells(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"meta": {"pic": "a.jpg"}, "texts": [{"lang": "en", "t": "a red rose"}, {"lang": "de", "t": "eine Rose"}]},
        {"meta": {"pic": "b.jpg"}, "texts": [{"lang": "en", "t": "a white tulip"}]},
        {"meta": {"pic": "absent.jpg"}, "texts": [{"lang": "en", "t": "spam"}], "bad": True},
    ]
    path = folder / "rows.json"
    path.write_text(json.dumps([{"bad": False, **row} for row in rows]))
    columns: dict[str, Any] = {
        "image_column": "meta.pic",
        "caption_columns": ["texts[lang=en].t"],
        "filter": {"bad": False},
    }
    assert found(in_table(path, **columns)) == TWO
    with pytest.raises(UserError, match=r"row 0 has no text under 'meta\.pik'"):
        found(in_table(path, **{**columns, "image_column": "meta.pik"}))
    with pytest.raises(UserError, match=r"there are no rows with captions \(left out: 3 rows by filter \(bad\)\)"):
        found(in_table(path, **{**columns, "filter": {"bad": "perhaps"}}))


def test_objects_that_a_program_wrote_as_text(folder: Path) -> None:
    (folder / "t.csv").write_text('image;sentences\na.jpg;[{"raw": "a red rose"}]\nb.jpg;{"raw": "a white tulip"}\n')
    assert found(in_table(folder / "t.csv", caption_columns=["sentences[].raw"])) == TWO


def test_splits_ids_and_rows_of_one_image(folder: Path) -> None:
    write_jpeg(folder / "c.jpg", "blue")
    (folder / "t.csv").write_text(
        "file,caption,part,nr\na.jpg,one,tr,1\na.jpg,two,tr,1\nb.jpg,three,va,2\nc.jpg,four,ts,3\n"
    )
    names = {"train_split": "tr", "validation_split": "va", "test_split": "ts"}
    options = in_table(folder / "t.csv", split_column="part", image_id_column="nr", **names)
    (train,) = load_split(options, "train")
    assert (train.image_id, train.file_name, train.captions) == ("1", "a.jpg", ("one", "two"))
    assert found(options, "test") == {"c.jpg": ("four",)}
    with pytest.raises(
        UserError, match=r"line 2 \(a\.jpg\) has no 'parts' \(data\.split_column\); did you mean 'part'"
    ):
        found(in_table(folder / "t.csv", split_column="parts"))


def test_splits_by_the_names_of_tables(folder: Path) -> None:
    (folder / "captions_train2017.csv").write_text("image,caption\na.jpg,a red rose\n")
    (folder / "captions_val2017.csv").write_text("image,caption\nb.jpg,a white tulip\n")
    assert found(in_folder(folder)) == {"a.jpg": ("a red rose",)}
    assert found(in_folder(folder), "validation") == {"b.jpg": ("a white tulip",)}
    tables = {"train": str(folder / "captions_train2017.csv"), "validation": str(folder / "captions_val2017.csv")}
    both = TableSourceOptions(table=dict(tables))
    assert (found(both), found(both, "validation")) == (
        found(in_folder(folder)),
        found(in_folder(folder), "validation"),
    )
    with pytest.raises(UserError, match=r"data\.table: no images in split 'test'"):
        found(both, "test")


def test_a_single_table_is_shared_out(folder: Path) -> None:
    names = [f"{number}.jpg" for number in range(10)]
    for name in names:
        write_jpeg(folder / name)
    (folder / "train.csv").write_text("image,caption\n" + "".join(f"{name},caption\n" for name in names))
    parts = [found(TableSourceOptions(table=str(folder / "train.csv")), s) for s in ("train", "validation", "test")]
    assert all(parts) and sorted(name for part in parts for name in part) == sorted(names)


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_with_names_or_with_the_images_themselves(folder: Path) -> None:
    captions = ["a red rose", "a white tulip"]
    parquet(folder / "metadata.parquet", {"file_name": ["a.jpg", "b.jpg"], "caption": captions})
    assert found(in_folder(folder)) == TWO
    cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name in TWO]
    path = parquet(folder / "own.parquet", {"image": cells, "texts": [[one, one.upper()] for one in captions]})
    records = load_split(in_table(path, caption_columns=["texts"]), "train")
    assert [record.captions for record in records] == [(one, one.upper()) for one in captions]
    assert [record.image.read() for record in records] == [(folder / name).read_bytes() for name in TWO]
    with pytest.raises(UserError, match=r"broken\.parquet: table is not valid parquet"):
        (folder / "broken.parquet").write_bytes(b"PAR1 no PAR1")
        found(in_table(folder / "broken.parquet"))


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".json"])
def test_sidecar_files(suffix: str, folder: Path) -> None:
    for name, (caption,) in TWO.items():
        text = json.dumps({"caption": caption}) if suffix == ".json" else f"{caption}\n"
        (folder / name).with_suffix(suffix).write_text(text)
    assert found(in_folder(folder)) == TWO
    write_jpeg(folder / "c.jpg")
    with pytest.raises(UserError, match=r"1 image without captions.*c\.jpg.*uncaptioned_images: ignore"):
        found(in_folder(folder))
    assert found(in_folder(folder, uncaptioned_images="ignore")) == TWO


def test_sidecar_files_of_whole_names_and_in_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "val/b.jpg"):
        write_jpeg(tmp_path / name)
        (tmp_path / f"{name}.txt").write_text("a red rose")
    assert found(in_folder(tmp_path)) == {"train/a.jpg": ("a red rose",)}
    assert found(in_folder(tmp_path), "validation") == {"val/b.jpg": ("a red rose",)}


def test_lines_of_a_sidecar_file_are_captions_only_where_that_is_said(folder: Path) -> None:
    for name in TWO:
        (folder / name).with_suffix(".txt").write_text("a rose\na flower\n")
    with pytest.raises(UserError, match=r"2 of 2 captions have several lines.*data\.caption_separator"):
        found(in_folder(folder))
    assert found(in_folder(folder, caption_separator="\n"))["a.jpg"] == ("a rose", "a flower")
    assert found(in_folder(folder, caption_separator=""))["a.jpg"] == ("a rose a flower",)


def test_captions_in_file_names_are_taken_only_where_that_is_said(tmp_path: Path) -> None:
    for name in ("012_a_red_rose.jpg", "a white tulip (2).jpg"):
        write_jpeg(tmp_path / name)
    with pytest.raises(UserError, match="no captions in a layout"):
        found(in_folder(tmp_path))
    expected = {"012_a_red_rose.jpg": ("a red rose",), "a white tulip (2).jpg": ("a white tulip",)}
    assert found(in_folder(tmp_path, layout="file_names")) == expected
    assert [caption_in_name(stem) for stem in ("IMG-2024-01", "0001", "a-dog_12")] == ["IMG 2024", "", "a dog"]


def test_addresses_are_fetched_once(tmp_path: Path) -> None:
    content = write_jpeg(tmp_path / "a.jpg").read_bytes()
    with serving(a_jpg=content) as server:
        (tmp_path / "t.tsv").write_text(f"url\tcaption\n{server.url}/a.jpg\tone\n{server.url}/a.jpg\ttwo\n")
        with pytest.raises(UserError, match=r"in the local network, where a table may not lead"):
            found(in_table(tmp_path / "t.tsv"))
        assert server.requests == []
        options = in_table(tmp_path / "t.tsv", allow_local_addresses=True)
        for _ in range(2):
            (record,) = load_split(options, "train")
            assert record.captions == ("one", "two") and record.image.read() == content
        assert len(server.gets("/a.jpg")) == 1
        (tmp_path / "t.tsv").write_text(f"url\tcaption\n{server.url}/gone.jpg\tone\n")
        for _ in range(2):
            with pytest.raises(UserError, match=r"gone\.jpg: the server answers 404"):
                found(options)
        assert len(server.gets("/gone.jpg")) == 1


def test_rows_with_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "copy.jpg").write_bytes((folder / "a.jpg").read_bytes())
    (folder / "t.csv").write_text("image,caption\na.jpg,one\ncopy.jpg,two\nb.jpg,three\n")
    assert found(in_table(folder / "t.csv", group_by="content")) == {"a.jpg": ("one", "two"), "b.jpg": ("three",)}
    assert len(found(in_table(folder / "t.csv"))) == 3
    assert "different images" not in capsys.readouterr().err  # a single copy may be meant
    with pytest.raises(ValidationError, match=r"'auto' or 'content'"):
        in_table(folder / "t.csv", group_by="row")


def test_copies_under_other_names_are_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("copy1", "copy2"):
        (folder / f"{name}.jpg").write_bytes((folder / "a.jpg").read_bytes())
    # The same path, written twice, is one image; the copies are not, and are named with the remedy.
    (folder / "t.csv").write_text("image,caption\na.jpg,one\n./a.jpg,more\ncopy1.jpg,two\ncopy2.jpg,three\n")
    assert len(found(in_table(folder / "t.csv"))) == 3
    (folder / "t.csv").write_text("image,caption\na.jpg,one\ncopy1.jpg,two\ncopy2.jpg,three\n")
    assert len(found(in_table(folder / "t.csv"))) == 3
    said = capsys.readouterr().err
    assert "the first 3 rows hold 1 different images" in said and "data.group_by: content" in said


def test_names_in_tables_stay_in_the_folder(folder: Path) -> None:
    for name in ("../a.jpg", "/etc/hostname", "ftp://x.test/a.jpg", "http://user:secret@x.test/a.jpg"):
        (folder / "t.csv").write_text(f"image,caption\n{name},one\n")
        with pytest.raises(UserError, match=r"t\.csv: line 2: .*(contains|absolute|http and https|password)") as error:
            found(in_table(folder / "t.csv"))
        assert "secret" not in str(error.value)


def test_absolute_names_and_backslashes_mean_files_of_the_folder(folder: Path, tmp_path_factory: Any) -> None:
    write_jpeg(folder / "below" / "c.jpg")
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(folder)
    of_windows = str(folder / "below" / "c.jpg").replace("/", "\\")
    names = (f"{folder}/a.jpg", "below\\c.jpg", f"{folder}/below/../b.jpg", of_windows)
    rows = [{"image": name, "caption": f"caption {number}"} for number, name in enumerate(names)]
    (folder / "t.json").write_text(json.dumps(rows))
    wanted = {"a.jpg": ("caption 0",), "below/c.jpg": ("caption 1", "caption 3"), "b.jpg": ("caption 2",)}
    assert found(in_table(folder / "t.json")) == found(in_folder(link)) == wanted
    (folder / "t.json").write_text(json.dumps([{"image": f"{link}/a.jpg", "caption": "by the link"}]))
    assert found(in_table(folder / "t.json", images=str(link))) == {"a.jpg": ("by the link",)}


def test_absolute_names_in_a_folder_of_a_split(folder: Path) -> None:
    path = write_jpeg(folder / "train" / "c.jpg")
    (folder / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": str(path), "caption": "a rose"}))
    assert found(in_folder(folder, uncaptioned_images="ignore")) == {"train/c.jpg": ("a rose",)}


@pytest.mark.parametrize(
    "name", ["{folder}2/a.jpg", "{folder}/../a.jpg", "C:\\photos\\a.jpg", "\\\\server\\share\\a.jpg"]
)
def test_absolute_names_outside_are_refused_with_what_to_do(name: str, folder: Path) -> None:
    (folder / "t.json").write_text(json.dumps([{"image": name.format(folder=folder), "caption": "one"}]))
    with pytest.raises(UserError, match=r"t\.json: row 0: .*outside of the folder .*; copy .* with data\.images"):
        found(in_table(folder / "t.json"))
    with pytest.raises(UserError, match=r"; copy .* with data\.root"):
        found(in_folder(folder))


def test_links_of_the_folder_are_not_followed_out_of_it(folder: Path, tmp_path_factory: Any) -> None:
    secret = write_jpeg(tmp_path_factory.mktemp("elsewhere") / "a.jpg")
    (folder / "link").symlink_to(secret.parent)
    (folder / "t.json").write_text(json.dumps([{"image": f"{folder}/link/a.jpg", "caption": "one"}]))
    with pytest.raises(UserError, match="leads out of the folder"):
        found(in_table(folder / "t.json"))
    (folder / "t.json").write_text(json.dumps([{"image": "link\\..\\..\\a.jpg", "caption": "one"}]))
    with pytest.raises(UserError, match=r"contains '\.\.'"):
        found(in_table(folder / "t.json"))


def test_a_prompt_before_its_caption_is_taken_off(folder: Path) -> None:
    (folder / "t.csv").write_text(
        "image,caption,q\na.jpg,Describe: a red rose,Describe:\nb.jpg,a white tulip,Describe:\n"
    )
    assert found(in_table(folder / "t.csv", prompt_column="q")) == TWO


def test_what_is_no_layout_is_said_with_the_remedy(folder: Path) -> None:
    (folder / "t.csv").write_text("image,alt,description\na.jpg,one,two\n")
    with pytest.raises(
        UserError, match=r"cannot tell which columns hold captions \(alt, description\).*caption_columns"
    ):
        found(in_table(folder / "t.csv"))
    with pytest.raises(UserError, match=r"unknown layout 'sidecar'.*'sidecar_txt'"):
        found(in_folder(folder, layout="sidecar"))
    with pytest.raises(UserError, match=r"no files of the layout sidecar_txt.*hfcap data inspect"):
        found(in_folder(folder, layout="sidecar_txt"))


ROW = {
    "a": {"b": [{"k": "x", "v": 1}, {"k": "y", "v": 2, "no": True}]},
    "a.b": 7,
    "t": '[{"v": 5}]',
    "id": 42,
    "n": None,
}


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("a.b", [7]),
        ("a.b[].v", [1, 2]),
        ("a.b[1].v", [2]),
        ("a.b[k=x].v", [1]),
        ("a.b[!no].v", [1]),
        ("a.b[5].v", []),
        ("t[].v", [5]),
        ("n", [None]),
        ("absent.b", []),
    ],
)
def test_places_in_a_row(place: str, values: list[Any]) -> None:
    row = {**ROW, "a": ROW["a"]} if place == "a.b" else {key: value for key, value in ROW.items() if key != "a.b"}
    assert values_at(row, place) == values


def test_templates() -> None:
    assert template_text(ROW, "COCO_{id:0>12}.jpg") == "COCO_000000000042.jpg"
    assert template_text(ROW, "{absent}.jpg") is None and template_text(ROW, "{a}.jpg") is None
    with pytest.raises(UserError, match=r"'a\.\.b' is no place in a row"):
        values_at(ROW, "a..b")


def test_records_say_nothing_of_groups_without_a_column(folder: Path) -> None:
    (folder / "t.csv").write_text(CSV_FORMS["upper.csv"])
    records: Sequence[CaptionedImage] = load_split(in_table(folder / "t.csv"), "train")
    assert [record.group for record in records] == ["", ""]


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("image,caption\na.jpg,one\n", {"image_column": "imag"}, "no text under 'imag'; did you mean 'image'"),
        ("image,caption\na.jpg,one\n", {"caption_columns": ["title"]}, "has no captions .columns title"),
        ("image,caption\na.jpg,one\n", {"split_column": "part"}, "has no 'part'"),
        (
            "image,caption\na.jpg,one\n",
            {"filter": {"lang": "en"}},
            "no rows with captions .left out: 1 row",
        ),
        ("image,alt,raw\na.jpg,one,two\n", {}, "cannot tell which columns hold captions"),
    ],
)
def test_unknown_columns_point_to_inspect(text: str, keys: dict[str, Any], message: str, folder: Path) -> None:
    path = folder / "my table.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{message}.*; look at it with: hfcap data inspect '.*my table\.csv'$"):
        found(in_table(path, **keys))
    if "filter" not in keys:  # source folder says the same of its own tables
        with pytest.raises(UserError, match=rf"{message}.*; look at it with: hfcap data inspect {folder}$"):
            found(in_folder(folder, layout="table", **keys))


def test_inspect_does_not_point_to_itself(folder: Path) -> None:
    (folder / "t.csv").write_text("image,alt,raw\na.jpg,7,8\n")
    with pytest.raises(UserError, match="no column holds captions") as refused:
        inspect_data(str(folder / "t.csv"))
    assert "data inspect" not in str(refused.value)
