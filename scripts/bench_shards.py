"""Images out of shards: hfcap against webdataset's loader and torchvision's decoder, all in one run.

    python -m scripts.bench_shards FOLDER [--photos 400] [--size 224 --size 384 --size 768] [--output FILE.json]

FOLDER holds photos (for example COCO's), which are written once as a tar and once as a parquet file. Each side reads
a shard from the beginning, decodes its photos and resizes them to squares of 8-bit levels, in one process with one
thread, so that processor time is per core. Sides take turns, and the best time of each counts. The other sides need
pip install webdataset torchvision (the release that fits torch); a side whose packages are missing is left out.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from hfcap.captioning.inputs import DatasetChoice
from hfcap.captioning.sharded.plan import Asked, make_plan
from hfcap.captioning.sharded.reading import images_in
from hfcap.data.images import decode_image
from hfcap.data.pixels import plan_of
from hfcap.environment import hardware
from hfcap.errors import UserError
from hfcap.files import write_json
from hfcap.progress import console
from scripts.bench_images import photos_in

Side = Callable[[], Iterator[torch.Tensor]]


def needed(name: str) -> Any:
    """Return a package that only this benchmark needs.

    Raises:
        UserError: it is not installed, or does not fit torch.
    """
    try:
        return import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision raises the latter next to another release of torch
        raise UserError(f"{name}: cannot be used ({error}); pip install webdataset torchvision") from None


def write_shards(paths: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """Write the photos as a tar and as a parquet file, and return both."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tar, parquet = folder / "photos.tar", folder / "photos.parquet"
    contents = [path.read_bytes() for path in paths]
    with tarfile.open(tar, "w") as archive:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    cells = pa.array([{"bytes": content, "path": None} for content in contents])
    pq.write_table(pa.table({"image": cells}), parquet, row_group_size=256)
    return tar, parquet


def hfcap_side(shard: Path, size: int) -> Side:
    """Read a shard as `hfcap caption --to-shards` does."""
    from transformers import ViTImageProcessor

    plan = plan_of(ViTImageProcessor(size={"height": size, "width": size}))
    assert plan is not None

    def load() -> Iterator[torch.Tensor]:
        asked = Asked((str(shard),), DatasetChoice(), 1_000_000)
        made = make_plan(asked, shard.parent / "plan")
        for part in made.shards:
            for record in images_in(made, part):
                yield plan.levels(decode_image(record.image))

    return load


def webdataset_side(shard: Path, size: int) -> Side:
    """Read a tar by webdataset, which decodes with Pillow, and resize with Pillow."""
    webdataset = needed("webdataset")

    def load() -> Iterator[torch.Tensor]:
        for (image,) in webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil").to_tuple("jpg"):
            resized = image.resize((size, size), Image.Resampling.BILINEAR)
            yield torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    return load


def torchvision_side(shard: Path, size: int) -> Side:
    """Read a tar by webdataset, and decode and resize with torchvision, whose kernel is antialiased like Pillow's."""
    webdataset, decoders = needed("webdataset"), needed("torchvision.io")
    resize = needed("torchvision.transforms.v2").Resize((size, size), antialias=True)

    def load() -> Iterator[torch.Tensor]:
        for (content,) in webdataset.WebDataset(str(shard), shardshuffle=False).to_tuple("jpg"):
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            yield resize(decoders.decode_jpeg(encoded, decoders.ImageReadMode.RGB))

    return load


def sides_of(tar: Path, parquet: Path, size: int) -> dict[str, Side]:
    """Return the sides whose packages are there."""
    sides: dict[str, Side] = {"hfcap, tar": hfcap_side(tar, size), "hfcap, parquet": hfcap_side(parquet, size)}
    for name, make in {"webdataset": webdataset_side, "webdataset, torchvision": torchvision_side}.items():
        try:
            sides[name] = make(tar, size)
        except UserError as error:
            sys.stderr.write(f"{name}: left out: {error}\n")
    return sides


def measure(sides: dict[str, Side], count: int, repeats: int) -> dict[str, float]:
    """Return images per processor second of each side.

    Raises:
        UserError: a side gives another number of images.
    """
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(repeats):
        for name, side in sides.items():
            started = time.process_time()
            found = sum(1 for image in side() if image.dtype == torch.uint8)
            best[name] = min(best[name], time.process_time() - started)
            if found != count:
                raise UserError(f"{name}: {found} of {count} images; give JPEG photos only")
    return {name: count / seconds for name, seconds in best.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of JPEG photos, with subfolders")
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--size", type=int, action="append", help="pixels of a side; default: 224, 384 and 768")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file with every number")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    photos = [path for path in photos_in(options.folder, options.photos) if path.suffix.lower() in (".jpg", ".jpeg")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        tar, parquet = write_shards(photos, Path(temporary))
        for size in options.size or (224, 384, 768):
            sides = sides_of(tar, parquet, size)
            rows.append({"size": size, "images_per_second": measure(sides, len(photos), options.repeats)})
            sys.stderr.write(f"{rows[-1]}\n")
    table = Table("", *(f"{row['size']} pixels" for row in rows), title=f"{len(photos)} photos, images/s per core")
    for side in rows[0]["images_per_second"]:
        table.add_row(side, *(f"{row['images_per_second'][side]:,.0f}" for row in rows))
    console.print(table)
    if options.output is not None:
        width, height = Image.open(photos[0]).size
        facts = {"photos": len(photos), "first_size": [width, height], "hardware": hardware(), "results": rows}
        write_json(options.output, facts)


if __name__ == "__main__":
    main()
