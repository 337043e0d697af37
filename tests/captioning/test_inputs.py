"""Web addresses and datasets as inputs: the same captions as of the files, one pass, nothing read twice."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from hfcap.captioners.base import Captioner
from hfcap.captioning import DatasetChoice, caption_images, images_of, one_image
from hfcap.captioning.sharded import ShardedJob, caption_shards
from hfcap.data.web import web_images
from hfcap.errors import UserError, WorkError
from hfcap.explain import explain_image
from hfcap.schema import Prediction
from tests.captioners.helpers import write_image
from tests.data.http_server import FileServer, serving
from tests.hub_server import Hub, hub  # noqa: F401  # a fixture

Model = tuple[Captioner, str]
Screen = tuple[io.StringIO, io.StringIO]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five different images."""
    return [write_image(tmp_path / "images" / f"{number}.png", seed=number) for number in range(5)]


@pytest.fixture
def server(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(web_images, "PAUSE_SECONDS", 0.0)
    with serving() as running:
        running.files |= {f"/{path.name}": path.read_bytes() for path in files}
        yield running


def rows(predictions: list[Prediction]) -> list[tuple[str, float | None]]:
    return [(prediction.caption, prediction.score) for prediction in predictions]


def of_files(model: Model, files: list[Path]) -> list[tuple[str, float | None]]:
    return rows(caption_images(model[1], [str(path) for path in files], batch_size=2))


def test_web_addresses_beside_files(
    model: Model, files: list[Path], server: FileServer, tmp_path: Path, screen: Screen
) -> None:
    expected = of_files(model, files)
    (tmp_path / "page.html").write_text("<html>")
    server.files["/page.html"] = b"<html>"
    urls = [f"{server.url}/{path.name}" for path in files]
    given = [urls[0], f"{server.url}/gone.png", str(files[1]), f"{server.url}/page.html", *urls[2:], urls[0]]
    found = caption_images(model[1], given, tmp_path / "x.jsonl", batch_size=2)
    assert rows(found) == expected
    assert [prediction.file_name for prediction in found] == [urls[0], str(files[1]), *urls[2:]]
    said = screen[1].getvalue()
    assert "/gone.png: the server answers 404" in said and "/page.html: damaged, or not an image" in said
    assert [len(server.gets(path)) for path in ("/0.png", "/2.png", "/gone.png")] == [1, 1, 1]


def test_web_addresses_that_give_nothing_are_known_before_the_model_is_loaded(server: FileServer) -> None:
    with pytest.raises(UserError, match=r"gone\.png: the server answers 404 Not Found"):
        caption_images("no/model", [f"{server.url}/gone.png"])


def test_explaining_a_image_of_the_web(model: Model, server: FileServer, tmp_path: Path) -> None:
    found = explain_image(model[1], f"{server.url}/1.png", tmp_path / "maps.png")
    assert found.caption and (tmp_path / "maps.png").is_file()
    assert len(server.gets("/1.png")) == 1


def parquet(path: Path, contents: list[bytes | None], column: str = "image", **more: Any) -> Path:
    cells = [{"bytes": content, "path": None} for content in contents]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({column: cells, **more}).cast_column(column, datasets.Image())
    table.to_parquet(str(path))
    return path


@pytest.mark.parametrize("form", ["file", "folder", "saved"])
def test_tables_need_no_captions(form: str, model: Model, files: list[Path], tmp_path: Path, screen: Screen) -> None:
    contents: list[bytes | None] = [path.read_bytes() for path in files]
    # save_to_disk cannot write a row without image.
    contents[1:1] = [b"" if form == "saved" else None, b"damaged"]
    path = parquet(tmp_path / "set" / "data" / "test.parquet", contents, number=list(range(7)))
    if form == "saved":
        datasets.DatasetDict({"test": datasets.Dataset.from_parquet(str(path))}).save_to_disk(str(tmp_path / "saved"))
    split, target = {
        "file": ("train", path),  # what `datasets` calls the only split of a file
        "folder": ("test", tmp_path / "set"),
        "saved": ("test", tmp_path / "saved"),
    }[form]
    found = caption_images(model[1], [str(target)], tmp_path / "x.jsonl", batch_size=2)
    assert rows(found) == of_files(model, files)
    assert [prediction.image_id for prediction in found] == [f"{split}-{number}" for number in (0, 3, 4, 5, 6)]
    said = screen[1].getvalue()
    assert (
        f"{split}, row 1: {'damaged' if form == 'saved' else 'the row holds no image'}" in said
        and f"{split}, row 2: damaged" in said
    )
    choice = DatasetChoice(split="dev")
    with pytest.raises(UserError, match=rf"no images in split 'dev' \(splits that exist: '{split}'\)"):
        caption_images("no/model", [str(target)], dataset=choice)


def test_several_columns_of_images_ask_for_the_option(model: Model, files: list[Path], tmp_path: Path) -> None:
    small = [{"bytes": b"broken", "path": None}] * 2
    path = parquet(tmp_path / "two.parquet", [path.read_bytes() for path in files[:2]], thumbnail=small)
    with pytest.raises(UserError, match=r"several columns of images \(image, thumbnail\).*--image-column"):
        caption_images("no/model", [str(path)])
    found = caption_images(model[1], [str(path)], dataset=DatasetChoice(image_column="image"))
    assert rows(found) == of_files(model, files[:2])
    with pytest.raises(UserError, match=r"no image can be read:\n.*row 0.*\n.*row 1"):
        caption_images(model[1], [str(path)], dataset=DatasetChoice(image_column="thumbnail"))


def test_a_coco_file_needs_no_annotations(model: Model, files: list[Path], tmp_path: Path) -> None:
    images = [
        {"id": 10 * number, "file_name": path.name, "split": "val" if number < 2 else "test"}
        for number, path in enumerate(files)
    ]
    path = tmp_path / "elsewhere" / "info.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images}))
    choice = DatasetChoice(images=str(files[0].parent))
    found = caption_images(model[1], [str(path)], batch_size=2, dataset=choice)
    assert rows(found) == of_files(model, files)
    assert [(one.image_id, one.file_name) for one in found[:2]] == [("0", "0.png"), ("10", "1.png")]
    choice = DatasetChoice(images=str(files[0].parent), split="val")
    assert len(caption_images(model[1], [str(path)], dataset=choice)) == 2
    with pytest.raises(UserError, match=r"image folder not found.*--images"):
        caption_images("no/model", [str(path)])
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "../secret.png"}]}))
    with pytest.raises(UserError, match=r"'\.\./secret\.png' contains '\.\.'"):
        caption_images("no/model", [str(path)], dataset=DatasetChoice(images=str(files[0].parent)))


def test_the_split_of_a_folder_with_metadata(model: Model, files: list[Path]) -> None:
    lines = [
        {"file_name": path.name, "caption": "x", "split": "train" if path is files[0] else "test"} for path in files
    ]
    (files[0].parent / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = caption_images(model[1], [str(files[0].parent)], dataset=DatasetChoice(split="test"))
    assert [one.file_name for one in found] == [path.name for path in files[1:]]


@pytest.fixture
def hub_dataset(hub: Hub, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """A dataset of two splits on the loopback Hub."""
    from huggingface_hub import HfApi

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    api = HfApi(endpoint=hub.endpoint, token=hub.alice)
    api.create_repo("alice/photos", repo_type="dataset")
    contents = [path.read_bytes() for path in files]
    for name, part in (("train", contents[:3]), ("test", contents[3:])):
        path = parquet(tmp_path / "up" / f"{name}-00000-of-00001.parquet", list(part))
        api.upload_file(
            path_or_fileobj=path, path_in_repo=f"data/{path.name}", repo_id="alice/photos", repo_type="dataset"
        )
    return "alice/photos"


def test_a_dataset_of_the_hub_is_streamed(
    model: Model, files: list[Path], hub_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = caption_images(model[1], [hub_dataset], batch_size=2)
    assert rows(found) == of_files(model, files)
    assert [one.image_id for one in found] == ["train-0", "train-1", "train-2", "test-0", "test-1"]
    [*named] = caption_images(model[1], [f"hf://datasets/{hub_dataset}"], dataset=DatasetChoice(split="test"))
    assert [one.image_id for one in named] == ["test-0", "test-1"]
    with pytest.raises(UserError, match=r"alice/nothing: no such file or folder here, and the Hub gives out no"):
        caption_images("no/model", ["alice/nothing"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorkError, match=r"alice/photos: no such file or folder here, and as a dataset of the Hub"):
        caption_images("no/model", ["alice/photos"])


@pytest.mark.parametrize(
    ("inputs", "choice", "message"),
    [
        (["set.parquet", "a.png"], {}, "set.parquet: a dataset is captioned alone"),
        (["a.png"], {"split": "test"}, "a.png: --split does not apply to it"),
        (["a.png"], {"image_column": "x"}, "a.png: --image-column does not apply to it"),
        (["SET.PARQUET"], {"images": "x"}, "SET.PARQUET: --images does not apply to it"),
        (["here/photos"], {}, "here/photos: no such file"),  # a mistyped folder is not looked for on the Hub
        (["gone.parquet"], {}, "gone.parquet: no such file"),
        (["gone.json"], {}, "gone.json: no such file"),
        (["here"], {}, "here: no image there"),
    ],
)
def test_what_cannot_be_meant(
    inputs: list[str], choice: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = write_image(tmp_path / "a.png")
    for name in ("set.parquet", "SET.PARQUET"):
        parquet(tmp_path / name, [image.read_bytes()])
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=message):
        caption_images("no/model", inputs, dataset=DatasetChoice(**choice))


def test_one_image_of_several(files: list[Path]) -> None:
    with pytest.raises(UserError, match="matches 5 images; give one"):
        one_image(str(files[0].parent))


def test_a_list_of_files_and_addresses(
    model: Model, files: list[Path], server: FileServer, tmp_path: Path, screen: Screen
) -> None:
    address = f"{server.url}/0.png"
    lines = ["images/1.png", address, "", f"  {files[2]}\r", "images/gone.png", "ftp://host/a.png", address]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    found = caption_images(model[1], [str(tmp_path / "list.txt"), str(files[1])])
    assert [one.image_id for one in found] == [str(files[1]), address, str(files[2])]  # each once
    of_all = dict(zip(range(5), of_files(model, files), strict=True))
    assert rows(found) == [of_all[1], of_all[0], of_all[2]]
    said = screen[1].getvalue()
    assert "gone.png: no such file" in said
    assert "list.txt: line 6: ftp://host/a.png: images are fetched by http and https only" in said
    tally = caption_shards(ShardedJob(model[1], (str(tmp_path / "list.txt"),), tmp_path / "out", images_per_shard=2))
    assert (tally.shards, tally.images, len(tally.failures)) == (3, 3, 2)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"empty\.txt: names no image; write a file or a web address on each line"):
        images_of([str(tmp_path / "empty.txt")])
    (tmp_path / "notes.txt").write_text("what we saw\nin May\n")
    with pytest.raises(UserError, match=r"notes\.txt: its first line names .*what we saw, and there is no such file"):
        images_of([str(tmp_path / "notes.txt")])
    with pytest.raises(UserError, match=r"mistyped: no such file or folder"):
        caption_shards(ShardedJob(model[1], (str(tmp_path / "mistyped"),), tmp_path / "other"))
    assert list((tmp_path / "other").glob("[!.]*")) == []
