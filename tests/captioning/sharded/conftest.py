"""Images, and what a sharded captioning leaves in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.captioners.helpers import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images, of which one can't be read."""
    for number in range(11):
        write_image(tmp_path / "images" / f"{number:02d}.png", seed=number)
    (tmp_path / "images" / "03.png").write_bytes(b"damaged")
    return tmp_path / "images"


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of everything in a folder, hidden files, too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parquet files, in order."""
    return [row for path in sorted(folder.glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()]
