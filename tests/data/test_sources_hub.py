from __future__ import annotations

import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import fsspec  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageColor
from pydantic import ValidationError

from hfcap.data.images import UnreadableImageError, decode_image
from hfcap.data.source import dataset_revision, load_split
from hfcap.data.sources import hub as sources_hub
from hfcap.data.sources.hub import HubOptions, load
from hfcap.data.web import hub_images
from hfcap.data.web.network_errors import transport_errors
from hfcap.errors import UserError, WorkError
from hfcap.schema import CaptionedImage
from tests.data.sample_images import encoded, write_jpeg

ALL = {"validation_share": 0, "test_share": 0}
COLOURS = ["red", "green", "blue", "white", "black"]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def table(n: int = 5, image: str = "image", **columns: Any) -> datasets.Dataset:
    """n one-colour images and, by default, two captions each."""
    images = [{"bytes": encoded(Image.new("RGB", (8, 8), colour)), "path": None} for colour in COLOURS[:n]]
    columns = columns or {"captions": [[f"{colour} image", f"all {colour}"] for colour in COLOURS[:n]]}
    made = datasets.Dataset.from_dict({image: images, **columns})
    return made.cast_column(image, datasets.Image())


def parquet(tmp_path: Path, made: datasets.Dataset, name: str = "data.parquet", **changes: Any) -> HubOptions:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made.to_parquet(str(path))
    return HubOptions.model_validate({"dataset": str(path), **ALL, **changes})


@pytest.mark.parametrize("name", ["data.parquet", "DATA.PARQUET"])
def test_parquet_file(name: str, tmp_path: Path) -> None:
    records = load_split(parquet(tmp_path, table(), name), "train")
    assert [record.captions[0] for record in records] == [f"{colour} image" for colour in COLOURS]
    assert [record.image_id for record in records] == [f"train-{i}" for i in range(5)]
    assert decode_image(records[2].image).getpixel((0, 0)) == (0, 0, 255)


def test_a_parquet_file_whose_description_is_damaged(tmp_path: Path) -> None:
    options = parquet(tmp_path, table())
    path = tmp_path / "data.parquet"
    found = pq.read_table(path)
    path.unlink()
    metadata = {b"huggingface": json.dumps({"info": {"features": {"caption": True}}}).encode()}
    pq.write_table(found.replace_schema_metadata(metadata), path)
    with pytest.raises(UserError, match=r"data\.parquet cannot be opened \(.*\); check data\.dataset"):
        load(options, "train")


def test_images_are_read_when_asked_for_and_travel_to_workers(tmp_path: Path) -> None:
    record = load(parquet(tmp_path, table()), "train")[1]
    copy = pickle.loads(pickle.dumps(record))
    assert copy.image.read() == encoded(Image.new("RGB", (8, 8), "green"))
    assert copy.image.describe() == f"{tmp_path}/data.parquet, train, row 1"


@pytest.mark.parametrize("with_splits", [True, False])
def test_save_to_disk(tmp_path: Path, with_splits: bool) -> None:
    parts = {"train": table(3), "validation": table(2)}
    (datasets.DatasetDict(parts) if with_splits else parts["train"]).save_to_disk(str(tmp_path / "saved"))
    options = HubOptions(dataset=str(tmp_path / "saved"), validation_share=0, test_share=0)
    assert len(load_split(options, "train")) == 3
    if with_splits:
        assert len(load_split(options, "validation")) == 2
    with pytest.raises(UserError, match=r"split 'test' \(splits that exist: 'train'.*data\.test_split"):
        load_split(options, "test")
    with pytest.raises(UserError, match=r"set data\.streaming: false"):
        load(HubOptions(dataset=str(tmp_path / "saved"), streaming=True, max_train_images=1), "train")


def test_folder_of_parquet_files_with_splits(tmp_path: Path) -> None:
    parquet(tmp_path, table(3), "repo/data/train-00000-of-00001.parquet")
    parquet(tmp_path, table(2), "repo/data/test-00000-of-00001.parquet")
    options = HubOptions(dataset=str(tmp_path / "repo"))
    assert [len(load_split(options, split)) for split in ("train", "test")] == [3, 2]


def test_slices_are_disjoint_and_keep_row_numbers(tmp_path: Path) -> None:
    options = parquet(tmp_path, table(), train_split="train[:60%]", validation_split="train[60%:]")
    assert [record.image_id for record in load_split(options, "train")] == ["train-0", "train-1", "train-2"]
    assert [record.image_id for record in load_split(options, "validation")] == ["train-3", "train-4"]


@pytest.mark.parametrize(
    "columns",
    [
        {"caption": ["one", "two"]},
        {"anything": ["one", "two"]},
        {"text": ["one", "two"], "url": ["x", "y"]},
        {"caption_0": ["one", "two"], "number": [1, 2]},
        {"sentences": [[{"raw": "one", "tokens": ["one"]}], [{"raw": "two", "tokens": ["two"]}]], "url": ["x", "y"]},
        {"sentences": [{"raw": "one", "sentid": 3}, {"raw": "two", "sentid": 4}], "filename": ["x", "y"]},
    ],
)
def test_caption_columns_that_can_only_be_meant(tmp_path: Path, columns: dict[str, Any]) -> None:
    records = load(parquet(tmp_path, table(2, "image", **columns)), "train")
    assert [record.captions for record in records] == [("one",), ("two",)]


def test_numbered_caption_columns(tmp_path: Path) -> None:
    columns = {f"caption_{i}": [f"{i}a", f"{i}b"] for i in (10, 2, 0)}
    assert load(parquet(tmp_path, table(2, "image", **columns)), "train")[1].captions == ("0b", "2b", "10b")


def test_ambiguous_columns_ask_for_the_key(tmp_path: Path) -> None:
    two = table(2, caption=["a", "b"], description=["c", "d"])
    with pytest.raises(UserError, match=r"candidates: caption, description; .*data\.caption_columns"):
        load(parquet(tmp_path, two), "train")
    assert load(parquet(tmp_path, two, caption_columns=["description", "caption"]), "train")[0].captions == ("c", "a")
    with pytest.raises(UserError, match=r"candidates: none; all columns: image, number"):
        load(parquet(tmp_path, table(2, number=[1, 2]), "b.parquet"), "train")


def test_wrong_column_names_offer_the_nearest(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "image_column": "imagee",
        "caption_columns": ["caption"],
        "image_id_column": "captionss",
    }
    for key, value in wrong.items():
        with pytest.raises(UserError, match=rf"no column .*\(data\.{key}\); did you mean"):
            load(parquet(tmp_path, table(2), **{key: value}), "train")


def test_several_or_no_image_columns(tmp_path: Path) -> None:
    two = datasets.concatenate_datasets([table(2), table(2, image="thumbnail", number=[1, 2])], axis=1)
    with pytest.raises(UserError, match=r"several columns of images \(image, thumbnail\).*data\.image_column"):
        load(parquet(tmp_path, two), "train")
    assert len(load(parquet(tmp_path, two, image_column="thumbnail"), "train")) == 2
    none = datasets.Dataset.from_dict({"caption": ["a"]})
    with pytest.raises(UserError, match=r"no column of images among caption"):
        load(parquet(tmp_path, none, "none.parquet"), "train")


def test_plain_parquet_with_bytes_and_path(tmp_path: Path) -> None:
    cells = [{"bytes": encoded(Image.new("RGB", (4, 4), "blue")), "path": "a.png"}]
    options = parquet(tmp_path, datasets.Dataset.from_dict({"image": cells, "caption": ["blue"]}))
    (record,) = load_split(options, "train")
    assert decode_image(record.image).getpixel((0, 0)) == (0, 0, 255)


def test_rows_with_the_same_id_are_captions_of_one_image(tmp_path: Path) -> None:
    made = table(4, caption=["a", "b", "c", "d"], cocoid=[7, 9, 7, 9])
    records = load_split(parquet(tmp_path, made, image_id_column="cocoid"), "train")
    assert [(record.image_id, record.captions) for record in records] == [("7", ("a", "c")), ("9", ("b", "d"))]


@pytest.mark.parametrize(
    ("cell", "message"),
    [(["x", " "], "row 1: an empty caption"), ([], "row 1: no captions")],
)
def test_empty_captions_and_lists(tmp_path: Path, cell: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"{message} in captions \(data\.caption_columns\)"):
        load(parquet(tmp_path, table(2, captions=[["x"], cell])), "train")


def test_corrupt_and_missing_images_are_named_by_row(tmp_path: Path) -> None:
    cells = [{"bytes": content, "path": None} for content in (encoded(Image.new("RGB", (4, 4))), b"broken", None)]
    made = datasets.Dataset.from_dict({"image": cells, "caption": ["a", "b", "c"]})
    with pytest.raises(UserError, match=r"2 of 3 images.*row 2: the row holds no image|row 1: damaged") as raised:
        load_split(parquet(tmp_path, made), "train")
    assert "row 1: damaged" in str(raised.value) and "row 2: the row holds no image" in str(raised.value)
    assert len(load_split(parquet(tmp_path, made, max_unreadable_images=2), "train")) == 1


def test_tables_cannot_make_us_read_files_of_this_machine(tmp_path: Path) -> None:
    secret = write_jpeg(tmp_path / "private" / "photo.jpg")
    in_front = [
        f"{start}::hf://datasets/a/b" for start in (f"local://{secret}", f"filecache::local://{secret}", "http://")
    ]
    for path in (
        str(secret),
        f"file://{secret}",
        f"zip://a::file://{secret}",
        "http://127.0.0.1:1/a.jpg",
        *in_front,
    ):
        cells = [{"bytes": None, "path": path}]
        made = datasets.Dataset.from_dict({"image": cells, "caption": ["a"]})
        (record,) = load(parquet(tmp_path / "table", made), "train")
        refused = r"outside of the dataset|only images on the Hub|in the local network"
        with pytest.raises(UnreadableImageError, match=refused):
            record.image.read()


def test_a_column_that_holds_no_images_cannot_be_named(tmp_path: Path) -> None:
    made = table(2, number=[1, 2], captions=[["a"], ["b"]])
    with pytest.raises(UserError, match=r"'number' \(data\.image_column\) holds no images"):
        load(parquet(tmp_path, made, image_column="number"), "train")


def test_a_image_on_the_hub_that_cannot_be_fetched_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise transport_errors()[1]("no route")

    monkeypatch.setattr(fsspec, "open", unreachable)
    with pytest.raises(UnreadableImageError, match=r"row 1: hf://datasets/a/b/x\.jpg cannot be fetched \(no route\)"):
        hub_images.encoded_bytes({"bytes": None, "path": "hf://datasets/a/b/x.jpg"}, "row 1")


def test_local_imagefolder_may_name_its_own_files(tmp_path: Path) -> None:
    write_jpeg(tmp_path / "pets" / "train" / "cat.jpg", "blue")
    (tmp_path / "pets" / "train" / "metadata.csv").write_text("file_name,caption\ncat.jpg,a cat\n")
    (record,) = load_split(HubOptions(dataset=str(tmp_path / "pets")), "train")
    assert record.captions == ("a cat",)
    assert decode_image(record.image).size == (12, 8)


@pytest.mark.parametrize("name", ["./absent", "absent.parquet"])
def test_absent_local_dataset(name: str) -> None:
    with pytest.raises(UserError, match=r"not found; name it with the recipe's key data\.dataset"):
        load(HubOptions(dataset=name), "train")


def test_what_datasets_refuses_becomes_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        UserError, match=r"dataset no/such cannot be opened \(Dataset .* on the Hub\); check data\.dataset"
    ):
        load(HubOptions(dataset="no/such"), "train")


def streaming(tmp_path: Path, n: int = 3, made: datasets.Dataset | None = None, **changes: Any) -> HubOptions:
    return parquet(tmp_path, made or table(), streaming=True, max_train_images=n, **changes)


def test_streaming_takes_the_first_rows_and_keeps_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = streaming(tmp_path)
    first = load_split(options, "train")
    assert [record.captions[0] for record in first] == ["red image", "green image", "blue image"]
    assert decode_image(first[1].image).getpixel((0, 0)) == (0, 128, 0)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("everything is in the cache")

    monkeypatch.setattr(datasets, "load_dataset", forbidden)
    assert load_split(options, "train") == first


def test_streaming_goes_on_where_it_was_stopped(
    tmp_path: Path, _own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    whole = hub_images.encoded_bytes

    def breaks_at_third(cell: Any, name: str, folder: Path | None = None) -> bytes:
        asked.append(int(name.rsplit(" ", 1)[1]))
        if len(asked) == 3:
            raise ConnectionError("connection lost")
        return whole(cell, name, folder)

    monkeypatch.setattr(hub_images, "encoded_bytes", breaks_at_third)
    options = streaming(tmp_path, n=4)
    with pytest.raises(WorkError, match=r"streaming stopped after 2 rows \(connection lost\); run again"):
        load(options, "train")
    rows = next((_own_cache / "streamed").rglob("rows.jsonl"))
    with rows.open("ab") as handle:
        handle.write(b'{"image_id": "trai')  # killed within a line
    assert [record.captions[0] for record in load(options, "train")] == [f"{colour} image" for colour in COLOURS[:4]]
    assert asked == [0, 1, 2, 2, 3]
    load(options.model_copy(update={"max_train_images": 5}), "train")
    assert asked == [0, 1, 2, 2, 3, 4]


def test_processes_that_stream_the_same_rows_do_not_mix_them(
    tmp_path: Path, _own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hub_images.encoded_bytes

    def slowly(cell: Any, name: str, folder: Path | None = None) -> bytes:
        time.sleep(0.02)
        return whole(cell, name, folder)

    monkeypatch.setattr(hub_images, "encoded_bytes", slowly)
    options = streaming(tmp_path, n=5)
    together = threading.Barrier(3)

    def one(_: int) -> list[CaptionedImage]:
        together.wait()
        return load(options, "train")

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(one, range(3)))
    assert found[0] == found[1] == found[2] == load(options, "train")
    assert len(next((_own_cache / "streamed").rglob("rows.jsonl")).read_text().splitlines()) == 5
    for record, colour in zip(found[0], COLOURS, strict=True):
        assert record.captions[0] == f"{colour} image"
        assert decode_image(record.image).getpixel((0, 0)) == ImageColor.getrgb(colour)


def test_streaming_goes_on_with_the_commit_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str | None] = []
    whole = sources_hub.open_splits

    def open_splits(options: HubOptions, **arguments: Any) -> Any:
        opened.append(options.revision)
        return whole(options.model_copy(update={"revision": None}), **arguments)

    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr(sources_hub, "open_splits", open_splits)
    monkeypatch.setattr(sources_hub, "_commit_of", lambda _: next(commits))
    options = streaming(tmp_path, n=2)
    load(options, "train")
    load(options.model_copy(update={"max_train_images": 4}), "train")
    assert opened == ["a" * 40] * 2
    # The other split was not streamed: nothing is known of it.
    assert dataset_revision(options, "train") == "a" * 40 and dataset_revision(options, "validation") is None


def test_a_branch_is_resolved_to_the_commit_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Api:
        def dataset_info(self, dataset: str, revision: str | None) -> Any:
            asked.append((dataset, revision))
            return SimpleNamespace(sha="c" * 40)

    def load_dataset(dataset: str, **arguments: Any) -> datasets.DatasetDict:
        asked.append((dataset, arguments["revision"]))
        return datasets.DatasetDict({"train": table()})

    sources_hub._commit_now.cache_clear()
    monkeypatch.setattr(sources_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = HubOptions(dataset="somebody/images", revision="main", validation_share=0, test_share=0)
    assert len(load(options, "train")) == 5
    assert dataset_revision(options, "train") == "c" * 40
    assert asked == [("somebody/images", "main"), ("somebody/images", "c" * 40)]
    sources_hub._commit_now.cache_clear()


def test_what_is_on_this_disk_has_no_commit(tmp_path: Path) -> None:
    assert dataset_revision(parquet(tmp_path, table()), "train") is None


@pytest.mark.parametrize("failure", transport_errors()[1:])
def test_a_broken_connection_ends_in_a_message(
    failure: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(cell: Any, name: str, folder: Path | None = None) -> bytes:
        raise failure("gone")

    monkeypatch.setattr(hub_images, "encoded_bytes", breaks)
    with pytest.raises(WorkError, match=r"streaming stopped after 0 rows \(gone"):
        load(streaming(tmp_path), "train")


def test_streaming_shorter_split_than_asked_for(tmp_path: Path) -> None:
    options = streaming(tmp_path, n=50)
    assert len(load(options, "train")) == 5
    assert len(load(options, "train")) == 5


def test_streaming_counts_unreadable_rows(tmp_path: Path) -> None:
    cells = [{"bytes": content, "path": None} for content in (encoded(Image.new("RGB", (4, 4))), None)]
    made = datasets.Dataset.from_dict({"image": cells, "caption": ["a", "b"]})
    with pytest.raises(UserError, match=r"1 of 2 images are unreadable.*data\.max_unreadable_images"):
        load_split(streaming(tmp_path, 2, made), "train")
    assert len(load_split(streaming(tmp_path, 2, made, max_unreadable_images=1), "train")) == 1


def test_streaming_needs_limits(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="streaming: true needs max_train_images"):
        HubOptions(dataset="a/b", streaming=True)
    with pytest.raises(UserError, match=r"needs data\.max_validation_images"):
        load_split(streaming(tmp_path), "validation")
    with pytest.raises(UserError, match=r"split 'train\[:50%\]'.*streaming knows no slices"):
        load_split(streaming(tmp_path, train_split="train[:50%]"), "train")
