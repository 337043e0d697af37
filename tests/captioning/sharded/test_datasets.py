"""Datasets in shards: those of the Hub by their files and at one commit, saved ones by rows."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from hfcap.captioners.base import Captioner
from hfcap.captioning.inputs import DatasetChoice
from hfcap.captioning.sharded import Place, ShardedJob, caption_shards
from hfcap.captioning.sharded.work import begin
from hfcap.errors import UserError
from tests.captioning.sharded.conftest import contents, manifest, rows
from tests.hub_server import Hub, hub  # noqa: F401  # a fixture

Model = tuple[Captioner, str]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def job(model: Model, output: Path, source: str, size: int = 4, choice: DatasetChoice | None = None) -> ShardedJob:
    return ShardedJob(model[1], (source,), output, images_per_shard=size, choice=choice or DatasetChoice())


@pytest.fixture
def expected(model: Model, folder: Path, tmp_path: Path) -> list[str | None]:
    """The captions of the images, in order."""
    caption_shards(job(model, tmp_path / "files", str(folder)))
    return [row["caption"] for row in rows(tmp_path / "files")]


def upload(api: HfApi, tmp_path: Path, name: str, images: list[bytes]) -> None:
    pq.write_table(pa.table({"image": [{"bytes": image, "path": None} for image in images]}), tmp_path / name)
    api.upload_file(
        path_or_fileobj=tmp_path / name, path_in_repo=f"data/{name}", repo_id="alice/photos", repo_type="dataset"
    )


def test_a_dataset_of_the_hub_at_the_commit_it_was_begun_with(
    model: Model,
    folder: Path,
    expected: list[str | None],
    hub: Hub,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.chdir(tmp_path)
    api = HfApi(endpoint=hub.endpoint, token=hub.alice)
    api.create_repo("alice/photos", repo_type="dataset")
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    upload(api, tmp_path, "train-00000-of-00002.parquet", images[:4])
    upload(api, tmp_path, "train-00001-of-00002.parquet", images[4:7])
    upload(api, tmp_path, "test-00000-of-00001.parquet", images[7:])
    tally = caption_shards(job(model, tmp_path / "out", "alice/photos"))
    assert (tally.shards, tally.images, len(tally.failures)) == (3, 10, 1)
    found = rows(tmp_path / "out")
    assert [row["caption"] for row in found] == expected
    assert [row["image_id"] for row in found][2:6] == [f"train-00000-{n}" for n in (2, 3)] + [
        f"train-00001-{n}" for n in (0, 1)
    ]
    assert [row["source"] for row in manifest(tmp_path / "out")] == [
        "train, shard 0",
        "train, shard 1",
        "test, shard 0",
    ]
    # Another commit while it goes on: workers that join read the one it was begun with.
    begin(job(model, tmp_path / "later", "alice/photos"), launched=True, again=False)
    upload(api, tmp_path, "train-00000-of-00002.parquet", images[:1])
    caption_shards(job(model, tmp_path / "later", "alice/photos"), Place(launched=True))
    assert rows(tmp_path / "later") == found
    with pytest.raises(UserError, match="was begun with other images"):
        caption_shards(job(model, tmp_path / "later", "alice/photos"))
    one = job(model, tmp_path / "test", "alice/photos", choice=DatasetChoice(split="test"))
    assert caption_shards(one).images == 4


def test_a_saved_dataset_by_rows(model: Model, folder: Path, expected: list[str | None], tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.iterdir())]
    table = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    table.save_to_disk(tmp_path / "saved")
    caption_shards(job(model, tmp_path / "out", str(tmp_path / "saved"), size=5))
    found = rows(tmp_path / "out")
    assert [row["image_id"] for row in found] == [f"train-{number}" for number in range(11)]
    assert [row["caption"] for row in found if row["problem"] is None] == [one for one in expected if one is not None]
    assert [row["source"] for row in manifest(tmp_path / "out")] == [
        "train, rows 0 to 4",
        "train, rows 5 to 9",
        "train, rows 10 to 10",
    ]
    caption_shards(job(model, tmp_path / "again", str(tmp_path / "saved"), size=5), Place(1, 2, launched=True))
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
