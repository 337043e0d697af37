"""Readers of what is kept between runs, and of tables: feature stores, remembered facts, parquet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pytest
import torch

from hfcap.data.sources import hub
from hfcap.sqlite_cache import SqliteCache
from hfcap.store.prune import kept_stores
from hfcap.store.row_store import RowStore, StoredRows
from tests.data.sample_images import write_jpeg
from tests.fuzz.target import Target

_KEYS = [bytes([number]) * 32 for number in range(40)]


def _make_store(place: Path) -> None:
    store = RowStore(place / "store")
    rows = torch.arange(24, dtype=torch.float32).reshape(4, 2, 3)
    store.describe("an encoder", rows[0])
    store.write_shard(rows, ["a" * 64, "b" * 64, "c" * 64, "d" * 64])
    store.mark_used()


def _use_store(place: Path, _names: Sequence[str]) -> None:
    for kept in kept_stores(place):
        repr(kept)
    rows = StoredRows(list(RowStore(place / "store").places().values()))
    for number in range(len(rows)):
        rows[number]


@contextlib.contextmanager
def _cache(place: Path) -> Iterator[SqliteCache]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFCAP_CACHE", str(place))
        with SqliteCache("facts", "it takes longer") as cache:
            yield cache


def _make_facts(place: Path) -> None:
    with _cache(place) as cache:
        cache.remember({key: key[:4] for key in _KEYS})


def _use_facts(place: Path, _names: Sequence[str]) -> None:
    with _cache(place) as cache:
        cache.known(_KEYS)
        cache.remember({b"x": b"y"})


def _make_parquet(place: Path) -> None:
    rows: dict[str, list[object]] = {"image": [], "caption": []}
    for letter in "abc":
        image = write_jpeg(place / f"{letter}.jpg")
        rows["image"].append({"bytes": image.read_bytes(), "path": image.name})
        rows["caption"].append(f"a photo {letter}")
        image.unlink()
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False)).to_parquet(
        place / "rows.parquet"
    )


def _use_parquet(place: Path, _names: Sequence[str]) -> None:
    datasets.disable_progress_bars()
    options = hub.HubOptions(dataset=str(place / "rows.parquet"), train_split="train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(place / "cache"))
        for record in hub.load(options, "train"):
            record.image.read()


TARGETS = (
    Target("feature store", _make_store, _use_store, writes=True, share=0.5),
    Target("remembered facts", _make_facts, _use_facts, ("facts.sqlite",), writes=True, share=0.5),
    Target("parquet", _make_parquet, _use_parquet, ("rows.parquet",), writes=True, share=0.05),
)
