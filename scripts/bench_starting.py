"""How long many images take until training could begin, and how much memory they hold then.

    python -m scripts.bench_starting [--images 10000 --images 100000 ...] [--source coco_json ...] [--folder DIR]
    python -m scripts.bench_starting --simulate 10000000

Writes a data set of each size (hard links to small files, one caption an image), and loads it in new processes: the
first time, and again when everything that hfcap remembers is there. Each reports the processor seconds and the
anonymous memory (RssAnon of /proc/self/status: what is not a file's, so that the system cannot drop it) of loading and
checking a split, of the images' hashes, of what a run notes about its data (hashes included), and of the batches of an
epoch. Linux only.

`--simulate` measures what training does with that many records without any file: a table of records whose parts are
all the same one, a split of it that is drawn image by image, tokens of five captions an image, and the batches of an
epoch, grouped by length, for one process of eight, from the middle on as a resumed training reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from hfcap.files import write_bytes, write_json, write_json_lines
from hfcap.progress import console

_LINKS = 30_000
"""Hard links to one file: file systems have a limit of 65,000."""
_PER_FOLDER = 1_000
_CAPTIONS, _SHARE = 5, 0.9
_AGED = 20
"""Seconds until a file's times are trusted (`hfcap.file_stamps`), and a few more."""
SOURCES = ("coco_json", "folder", "hub")


def write_images(folder: Path, count: int) -> list[str]:
    """Write that many image files and return their names in the folder."""
    names = [f"{number // _PER_FOLDER:04d}/{number:08d}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        path = folder / name
        if number % _PER_FOLDER == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        if number % _LINKS == 0:
            original = path
            Image.new("RGB", (16, 16), (number // _LINKS, 0, 0)).save(path)
        else:
            path.hardlink_to(original)
    return names


def write_data(source: str, folder: Path, count: int) -> dict[str, Any]:
    """Write a data set and return the recipe's `data` block for it."""
    shares = {"validation_share": 0.001, "test_share": 0.001}
    if source == "hub":
        return {"source": "hub", "dataset": str(_write_hub(folder / "hub", count)), **shares}
    images = folder / "images"
    names = [f"{n // _PER_FOLDER:04d}/{n:08d}.jpg" for n in range(count)] if images.is_dir() else []
    names = names or write_images(images, count)
    captions = [f"a cat on mat {number}" for number in range(count)]
    if source == "folder":
        rows = ({"file_name": name, "caption": text} for name, text in zip(names, captions, strict=True))
        write_json_lines(images / "metadata.jsonl", rows)
        return {"source": "folder", "root": str(images), **shares}
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(captions)],
    }
    write_json(folder / "captions.json", content)
    return {"source": "coco_json", "captions": str(folder / "captions.json"), "images": str(images), **shares}


def _write_hub(folder: Path, count: int) -> Path:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = io.BytesIO()
    Image.new("RGB", (16, 16)).save(encoded, "JPEG")
    cell = {"bytes": encoded.getvalue(), "path": None}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("caption", pa.string())]
    )
    features = {"image": {"_type": "Image"}, "caption": {"dtype": "string", "_type": "Value"}}
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            columns = {"image": [cell] * len(numbers), "caption": [f"a cat on mat {number}" for number in numbers]}
            writer.write_table(pa.table(columns, schema=schema))
    return folder


def anonymous_memory() -> int:
    """Return the bytes of this process's memory that belong to no file."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))


class Steps:
    """Processor seconds and MiB after each step; what a step makes stays in memory.

    Attributes:
        found: name of a step -> its seconds, and the memory of the process after it.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._kept: list[Any] = []

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work of a step and return what it makes."""
        started = time.process_time()
        self._kept.append(work())
        seconds = time.process_time() - started
        self.found[name] = {"seconds": round(seconds, 2), "mib": round(anonymous_memory() / 2**20, 1)}
        return self._kept[-1]


def measure(data: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Load the training split and return processor seconds and MiB after each step."""
    import torch  # before anything is measured

    from hfcap.data.loading import epoch_batches
    from hfcap.data.source import load_split
    from hfcap.environment import describe_datasets
    from hfcap.recipe.blocks import DataOptions
    from hfcap.registry import load
    from hfcap.store.image_hashes import image_hashes

    torch.set_num_threads(1)
    options: DataOptions = load("sources", data["source"]).REGISTERED.options.model_validate(data)
    steps = Steps()
    steps.take("nothing", lambda: None)
    records = steps.take("load", lambda: load_split(options, "train"))
    steps.take("hashes", lambda: image_hashes(records))
    steps.take("description", lambda: describe_datasets(options, {"train": records}))
    steps.take("batches", lambda: epoch_batches(np.full(len(records), 5), 64, 0, 0))
    return steps.found


def simulate(count: int) -> dict[str, dict[str, float]]:
    """Return processor seconds and MiB of each step with that many records, of which nothing but arrays are made."""
    import pyarrow as pa
    import torch

    from hfcap.data.kept.table import ROWS_OF_PART, Places, RecordTable, schema, values_of_records
    from hfcap.data.loading import epoch_batches
    from hfcap.data.sampling.tokens import FlatTokens

    torch.set_num_threads(1)
    steps = Steps()

    def table() -> RecordTable:
        row = {"image_id": "7", "file_name": "a/7.jpg", "captions": ["a cat"], "kind": 0, "part": 0, "row": 0}
        row |= {"group": "", "prompts": [], "asked": [], "columns": "{}"}
        part = pa.RecordBatch.from_pylist([row] * ROWS_OF_PART, schema())
        whole, rest = divmod(count, ROWS_OF_PART)
        parts = (*(part for _ in range(whole)), *([part.slice(0, rest)] if rest else []))
        return RecordTable(Path("simulated.arrow"), parts, Places(Path("/images")), range(count), (0, 0, 0))

    def tokens() -> FlatTokens:
        lengths = np.random.default_rng(0).integers(8, 25, size=_CAPTIONS * count, dtype=np.int8)
        captions = np.zeros(_CAPTIONS * count + 1, np.int64)
        np.cumsum(lengths, out=captions[1:])
        ids = np.broadcast_to(np.int32(7), (int(captions[-1]),))  # in training a file that is mapped into memory
        return FlatTokens(ids, captions, np.arange(0, len(captions), _CAPTIONS))

    steps.take("nothing", lambda: None)
    records = steps.take("records", table)
    split = steps.take(
        "a split", lambda: records.chosen(np.flatnonzero(np.random.default_rng(0).random(count) < _SHARE))
    )
    steps.take("all ids of the split", lambda: sum(map(len, values_of_records(split, "image_id"))))
    captions = steps.take("tokens", tokens)
    lengths = steps.take("length of each image", lambda: captions.image_lengths()[: len(split)])
    epoch = steps.take("an epoch", lambda: epoch_batches(lengths, 8, 0, 0, rank=3, world_size=8))
    steps.take("its second half", lambda: sum(map(len, epoch[len(epoch) // 2 :])))
    return steps.found


def _in_new_process(data: dict[str, Any], cache: Path) -> dict[str, dict[str, float]]:
    environment = os.environ | {"HFCAP_CACHE": str(cache)}
    if data["source"] == "hub":  # the only one that keeps anything there
        environment |= {"HF_HOME": str(cache / "hf"), "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-m", "scripts.bench_starting", "--measure", json.dumps(data)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, action="append", help="size of the data set; default: 10000 and 100000")
    parser.add_argument("--source", action="append", choices=SOURCES, help="default: all")
    parser.add_argument("--folder", type=Path, help="where data sets are written and stay; default: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file with every number")
    parser.add_argument("--simulate", type=int, help="only simulate that many records, without files")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        sys.stdout.write(json.dumps(measure(json.loads(options.measure))) + "\n")
        return
    rows: list[dict[str, Any]] = []
    if options.simulate:
        rows.append(
            {"source": "simulated", "images": options.simulate, "start": "", "steps": simulate(options.simulate)}
        )
        console.print(_table(rows))
        if options.output is not None:
            write_bytes(options.output, json.dumps(rows, indent=2).encode())
        return
    with tempfile.TemporaryDirectory() as temporary:
        base = options.folder or Path(temporary)
        for count in options.images or (10_000, 100_000):
            for source in options.source or SOURCES:
                rows += _both(source, base / str(count), count)
    console.print(_table(rows))
    if options.output is not None:
        write_bytes(options.output, json.dumps(rows, indent=2).encode())


def _both(source: str, folder: Path, count: int) -> list[dict[str, Any]]:
    data = write_data(source, folder, count)
    time.sleep(_AGED)
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for start in ("first", "second"):
            found = _in_new_process(data, Path(cache))
            rows.append({"source": source, "images": count, "start": start, "steps": found})
            sys.stderr.write(json.dumps(rows[-1]) + "\n")
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    steps = list(rows[0]["steps"])
    table = Table("source", "images", "start", *steps, title="processor seconds, anonymous memory")
    for row in rows:
        cells = [f"{row['steps'][name]['seconds']:.1f} s, {row['steps'][name]['mib']:,.0f} MiB" for name in steps]
        table.add_row(row["source"], f"{row['images']:,}", row["start"], *cells)
    return table


if __name__ == "__main__":
    main()
