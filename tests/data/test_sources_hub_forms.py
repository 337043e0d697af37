"""Datasets of the Hub in the forms that people find there: addresses, lists, split columns, shards."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi
from PIL import Image
from pydantic import ValidationError

from hfcap.data import inspection as inspection_module
from hfcap.data.images import UnreadableImageError, decode_image
from hfcap.data.inspection import inspect_data
from hfcap.data.inspection_report import report
from hfcap.data.source import load_split
from hfcap.data.sources.hub import HubOptions, load
from hfcap.errors import UserError
from tests.data.http_server import serving
from tests.data.sample_images import encoded
from tests.data.test_sources_hub import COLOURS, parquet, table
from tests.data.test_sources_hub import _own_datasets_cache as _own_datasets_cache
from tests.hub_server import Hub, hub  # noqa: F401  # a fixture


def test_splits_of_a_dataset_without_them_are_drawn(tmp_path: Path) -> None:
    options = parquet(tmp_path, table(), validation_share=0.2, test_share=0.2)
    parts = [[record.image_id for record in load_split(options, split)] for split in ("train", "validation", "test")]
    assert all(parts) and sorted(one for part in parts for one in part) == [f"train-{n}" for n in range(5)]
    # Whoever names slices, or one split twice, means them.
    assert len(load_split(options.model_copy(update={"validation_split": "train[:2]"}), "train")) == 5
    assert len(load_split(options.model_copy(update={"validation_split": "train"}), "train")) == 5


def test_a_column_of_splits_and_a_filter(tmp_path: Path) -> None:
    made = table(
        split=["train", "train", "val", "test", "restval"], caption=COLOURS, lang=["en", "de", "en", "en", "en"]
    )
    options = parquet(tmp_path, made, filter={"lang": "en"})
    assert [record.captions for record in load_split(options, "train")] == [("red",), ("black",)]
    assert [record.captions for record in load_split(options, "validation")] == [("blue",)]
    named = parquet(tmp_path, made.rename_column("split", "part"), split_column="part")
    assert [record.captions for record in load_split(named, "test")] == [("white",)]


def test_lists_of_images(tmp_path: Path) -> None:
    cell = [{"bytes": encoded(Image.new("RGB", (8, 8), colour)), "path": None} for colour in COLOURS]
    rows = {"images": [[cell[0]], [cell[1], cell[2]]], "caption": ["one", "two"]}
    made = datasets.Dataset.from_dict(rows).cast_column("images", datasets.List(datasets.Image()))
    first, second = load(parquet(tmp_path, made), "train")
    assert decode_image(first.image).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(UnreadableImageError, match=r"row 1: the row holds 2 images.*image_column, such as images\[0\]"):
        second.image.read()
    chosen = load(parquet(tmp_path, made, image_column="images[1]"), "train")[1]
    assert decode_image(pickle.loads(pickle.dumps(chosen)).image).getpixel((0, 0)) == (0, 0, 255)


def test_a_column_of_addresses_is_fetched_once(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (8, 8), "red"))
    with serving(a_png=content) as server:
        made = datasets.Dataset.from_dict({"image_url": [f"{server.url}/a.png"], "caption": ["a red square"], "n": [1]})
        with pytest.raises(UserError, match="in the local network, where a table may not lead"):
            load_split(parquet(tmp_path, made), "train")
        for _ in range(2):
            (record,) = load_split(parquet(tmp_path, made, allow_local_addresses=True), "train")
            assert (record.image.read(), record.captions) == (content, ("a red square",))
        assert len(server.gets("/a.png")) == 1


def test_places_in_cells_of_a_dataset(tmp_path: Path) -> None:
    sentences = [[{"raw": f"{colour} one", "n": 0}, {"raw": f"{colour} two", "n": 1}] for colour in COLOURS]
    options = parquet(tmp_path, table(sentences=sentences), caption_columns=["sentences[n=1].raw"])
    assert load(options, "train")[0].captions == ("red two",)


def test_copies_of_an_image_are_joined_where_that_is_said(tmp_path: Path) -> None:
    twice = datasets.concatenate_datasets([table(2, caption=["one", "two"]), table(2, caption=["three", "four"])])
    options = parquet(tmp_path, twice, group_by="content")
    assert [record.captions for record in load(options, "train")] == [("one", "three"), ("two", "four")]


def test_shards_of_webdataset(tmp_path: Path) -> None:
    """What img2dataset writes of Conceptual Captions and the like."""
    with tarfile.open(tmp_path / "00000.tar", "w") as shard:
        for number, colour in enumerate(COLOURS):
            members = {"jpg": encoded(Image.new("RGB", (8, 8), colour), "JPEG"), "txt": f"a {colour} square".encode()}
            members["json"] = json.dumps({"caption": "x", "url": "http://x.test", "key": f"{number}"}).encode()
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:09}.{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    records = load(HubOptions(dataset=str(tmp_path), validation_share=0, test_share=0), "train")
    assert [record.captions for record in records] == [(f"a {colour} square",) for colour in COLOURS]
    assert decode_image(records[3].image).size == (8, 8)
    inspection = inspect_data(str(tmp_path))
    assert inspection.block == {"source": "hub", "dataset": str(tmp_path)} and inspection.examples


def test_rows_without_a_caption_are_left_out_where_asked_for_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One null stopped the source, with no way round it."""
    made = table(caption=["a red image", None, "", "a white image", "a black image"])
    with pytest.raises(UserError, match=r"row 1: no captions in caption .* data\.uncaptioned_images: ignore"):
        load_split(parquet(tmp_path, made), "train")
    records = load_split(parquet(tmp_path, made, uncaptioned_images="ignore"), "train")
    assert [record.image_id for record in records] == ["train-0", "train-3", "train-4"]
    assert decode_image(records[1].image).getpixel((0, 0)) == (255, 255, 255)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 2 rows without a caption are left out, the first: " in said and "row 1" in said
    some = table(captions=[["a", None], ["", "b"], ["c"], ["d"], ["e"]])
    records = load_split(parquet(tmp_path, some, "some.parquet", uncaptioned_images="ignore"), "train")
    assert [record.captions for record in records] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    with pytest.raises(ValidationError, match="does not go with streaming"):
        HubOptions(dataset="x", streaming=True, max_train_images=5, uncaptioned_images="ignore")


def test_unknown_columns_point_to_inspect(tmp_path: Path) -> None:
    options = parquet(tmp_path, table(), caption_columns=["caption"])
    with pytest.raises(UserError, match=r"no column 'caption' .*'captions'.*look at it with: hfcap data inspect /\S+$"):
        load(options, "train")
    options = parquet(tmp_path, table(one=["x"] * 5, two=["y"] * 5), "two.parquet")
    with pytest.raises(UserError, match=r"cannot tell which columns .*look at it with: hfcap data inspect"):
        load(options, "train")


@pytest.fixture
def hub_dataset(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """Splits of four rows (one without a caption) and one, on the loopback Hub, with a card that says no sizes."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    api = HfApi(endpoint=hub.endpoint, token=hub.alice)
    api.create_repo("alice/photos", repo_type="dataset")
    for split, captions in {"train": [["a", "b"], ["c"], [], ["d"]], "validation": [["e"]]}.items():
        path = tmp_path / f"{split}.parquet"
        table(len(captions), captions=captions).to_parquet(str(path))
        named = f"data/{split}-00000-of-00001.parquet"
        api.upload_file(path_or_fileobj=path, path_in_repo=named, repo_id="alice/photos", repo_type="dataset")
    return "alice/photos"


def test_inspect_counts_a_dataset_of_the_hub(hub_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inspection = inspect_data(hub_dataset)
    wanted = {"source": "hub", "dataset": hub_dataset, "uncaptioned_images": "ignore"}
    assert inspection.what == "a dataset of the Hub" and inspection.block == wanted
    said = report(inspection)
    assert "split train: 4 images, 4 captions\nsplit validation: 1 image, 1 caption\n" in said
    assert "left out: 1 row of split train without a caption" in said and "unknown" not in said
    assert inspection.examples == [("train-0", ("a", "b")), ("train-1", ("c",)), ("train-3", ("d",))]
    options = HubOptions.model_validate(inspection.block)
    assert [record.captions for record in load(options, "train")] == [("a", "b"), ("c",), ("d",)]


def test_inspect_says_where_it_stopped_counting(hub_dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection_module, "MAX_ROWS_OF_HUB", 2)
    said = report(inspect_data(hub_dataset))
    assert "split train: number of images unknown" in said and "split validation: number of images unknown" in said
    assert "split train: not all captions are counted, because of its size: 3 in the first 2 rows" in said
    assert "split validation: not all captions are counted, because of its size: none" in said


def test_inspect_counts_a_dataset_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(3).save_to_disk(str(tmp_path / "saved"))
    assert inspect_data(str(tmp_path / "saved")).splits == {"train": (3, 6)}
    monkeypatch.setattr(inspection_module, "MAX_ROWS_ON_DISK", 2)
    inspection = inspect_data(str(tmp_path / "saved"))
    assert inspection.splits == {"train": (3, 0)} and "4 in the first 2 rows" in inspection.notes[-1]
