"""Kept records of source hub: images and columns are found again in the dataset's own rows."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hfcap.data.images import CheckableImage
from hfcap.data.kept import keeping, stamps
from hfcap.data.kept.table import RecordTable
from hfcap.data.source import load_split
from hfcap.data.sources import hub
from hfcap.data.sources.hub import HubOptions
from hfcap.data.web.hub_images import RowImage
from hfcap.store.image_hashes import image_hashes
from tests.data.sample_images import encoded, write_jpeg


@pytest.fixture(autouse=True)
def keeping_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setenv("HFCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeping, "FEWEST", 1)
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", -1.0)
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, tmp_path / "hf" / name)


def saved(folder: Path, words: str) -> HubOptions:
    cells = [{"bytes": encoded(Image.new("RGB", (8, 8), (n, 0, len(words)))), "path": None} for n in range(6)]
    columns = {"image": cells, "caption": [f"{words} {n}" for n in range(6)], "place": [f"at {n}" for n in range(6)]}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": made, "validation": made.select([4, 1])}).save_to_disk(str(folder))
    return HubOptions(dataset=str(folder))


def naming_files(folder: Path, images: Path) -> HubOptions:
    """Write a table whose cells name files; `datasets` itself would put their bytes in."""
    paths = [write_jpeg(images / f"{number}.jpg", size=(8, 9 + number)) for number in range(6)]
    cells = [{"bytes": None, "path": str(path)} for path in paths]
    made = datasets.Dataset.from_dict({"image": cells, "caption": [f"photo {n}" for n in range(6)]})
    made = made.cast_column("image", datasets.Image())
    folder.mkdir()
    pq.write_table(
        made.data.table.replace_schema_metadata(made.features.arrow_schema.metadata), folder / "train.parquet"
    )
    return HubOptions(dataset=str(folder), validation_share=0, test_share=0)


def facts(records: Any) -> list[Any]:
    return [(one, dict(one.columns), one.image.read(), one.image.check_key()) for one in records]


def test_rows_come_back_and_other_rows_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = saved(tmp_path / "data", "a cat")
    first = load_split(options, "validation")
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_entries", None)  # nothing is read again
        second = load_split(options, "validation")
    plain = hub.load(options, "validation")
    assert isinstance(second, RecordTable)
    assert [(one.image_id, one.captions, dict(one.columns)) for one in second] == [
        ("validation-0", ("a cat 4",), {"place": "at 4"}),
        ("validation-1", ("a cat 1",), {"place": "at 1"}),
    ]
    for table in (first, second, pickle.loads(pickle.dumps(second))):
        assert [one.image.describe() for one in table] == [one.image.describe() for one in plain]
        assert [row[1:] for row in facts(table)] == [row[1:] for row in facts(plain)]
    saved(tmp_path / "data", "a dog")
    assert [one.captions for one in load_split(options, "validation")] == [("a dog 4",), ("a dog 1",)]


@pytest.mark.parametrize("paths", [False, True])
def test_hashes_are_remembered_only_where_rows_hold_the_bytes(
    tmp_path: Path, paths: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "hf" / "HF_DATASETS_CACHE"
    options = naming_files(tmp_path / "data", images) if paths else saved(tmp_path / "data", "a cat")
    records = load_split(options, "train")
    assert isinstance(records, RecordTable)
    expected = [hashlib.sha256(one.image.read()).hexdigest() for one in records]
    assert list(image_hashes(records)) == expected
    reads: list[str] = []
    read = RowImage.read

    def counting(self: RowImage) -> bytes:
        reads.append(self.name)
        return read(self)

    monkeypatch.setattr(RowImage, "read", counting)
    assert isinstance(records[0].image, CheckableImage)
    assert list(image_hashes(records)) == expected
    assert len(reads) == (6 if paths else 0)
