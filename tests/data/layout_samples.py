"""Small datasets of our own content in every layout that hfcap knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from tests.data.sample_images import write_jpeg

Captions = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Sample:
    """What a sample holds: split -> file name -> captions; `automatic`: recognised without being named."""

    captions: Captions
    automatic: bool = True


def _images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        write_jpeg(folder / name, ("red", "white", "blue", "green")[number % 4])


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


OWN: dict[str, tuple[str, ...]] = {"a.jpg": ("a red rose",), "b.jpg": ("a white tulip",), "c.jpg": ("blue sky",)}
DRAWN: Captions = {"drawn": OWN}


def _metadata(root: Path) -> Sample:
    _images(root, *OWN)
    _lines(root / "metadata.jsonl", [{"file_name": name, "caption": one} for name, (one,) in OWN.items()])
    return Sample(DRAWN)


def _sidecar(suffix: str) -> Callable[[Path], Sample]:
    def write(root: Path) -> Sample:
        _images(root, *OWN)
        for name, (caption,) in OWN.items():
            text = json.dumps({"caption": caption}) if suffix == ".json" else caption
            (root / name).with_suffix(suffix).write_text(text)
        return Sample(DRAWN)

    return write


def _table(root: Path) -> Sample:
    _images(root / "pics", *OWN)
    (root / "t.csv").write_text("photo;description\n" + "".join(f"{name};{one}\n" for name, (one,) in OWN.items()))
    return Sample({"drawn": {f"pics/{name}": captions for name, captions in OWN.items()}})


def _file_names(root: Path) -> Sample:
    names: dict[str, tuple[str, ...]] = {
        "1_a_red_rose.jpg": ("a red rose",),
        "2_a_tulip.jpg": ("a tulip",),
        "blue sky.jpg": ("blue sky",),
    }
    _images(root, *names)
    return Sample({"drawn": names}, automatic=False)


SAMPLES: dict[str, Callable[[Path], Sample]] = {
    "metadata": _metadata,
    "sidecar_txt": _sidecar(".txt"),
    "sidecar_caption": _sidecar(".caption"),
    "sidecar_json": _sidecar(".json"),
    "table": _table,
    "file_names": _file_names,
}


def write_sample(name: str, root: Path) -> Sample:
    """Write the sample of a layout into a folder and return what it holds."""
    return SAMPLES[name](root)
