"""Loading images: hfcap against the image processor called in a DataLoader, both in one run.

    python scripts/bench_images.py FOLDER [--processor vit --processor clip ...] [--workers 2] [--output FILE.json]

FOLDER holds photos (for example COCO's). Both sides decode, resize and normalise the same photos with the same number
of workers and hand the same float32 batches to the training process. Baseline: `Image.open(path).convert("RGB")` and
the processor in `Dataset.__getitem__`, as the usual scripts do. Sides take turns, and the best time of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from hfcap.captioners.shared.pretrained import load_image_processor
from hfcap.data.images import IMAGE_SUFFIXES, FileImage
from hfcap.data.loading import ImageInputs, PixelInputs, image_loader, prepared
from hfcap.environment import hardware
from hfcap.errors import UserError
from hfcap.files import write_json
from hfcap.progress import console
from hfcap.schema import CaptionedImage
from hfcap.store.image_cache import cached_pixels

PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
    "blip": {"image_processor_type": "BlipImageProcessor"},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
}
"""Their defaults: ViT bilinear 224, CLIP bicubic 224 with a crop, SigLIP bicubic 224, BLIP bicubic 384."""

CPU = torch.device("cpu")


class PlainDataset(Dataset[torch.Tensor]):
    """What the usual scripts write."""

    def __init__(self, paths: Sequence[Path], processor: Any) -> None:
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self.paths[index]).convert("RGB")
        values: torch.Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return values


class FloatInputs:
    """hfcap's pixels normalised in the workers: shows what travelling as bytes is worth."""

    encoded = False
    plan = None

    def __init__(self, inputs: PixelInputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.inputs.pixel_values([index])[0]


Side = Callable[[], Iterator[torch.Tensor]]


def sides(paths: Sequence[Path], processor: Any, batch_size: int, workers: int, cache: Path) -> dict[str, Side]:
    """Return what is compared: name -> a function that loads every photo once, in batches on the CPU."""
    records = [CaptionedImage(str(number), path.name, (), FileImage(path)) for number, path in enumerate(paths)]
    batches = [range(first, min(first + batch_size, len(paths))) for first in range(0, len(paths), batch_size)]
    pixels = PixelInputs(records, processor)

    def plain() -> Iterator[torch.Tensor]:
        yield from DataLoader(PlainDataset(paths, processor), batch_size=batch_size, num_workers=workers)

    def ours(inputs: ImageInputs) -> Side:
        def load() -> Iterator[torch.Tensor]:
            for images in image_loader(inputs, batches, workers):
                yield prepared(images, inputs.plan, CPU)

        return load

    found = {
        "processor in a DataLoader": plain,
        "hfcap": ours(pixels),
        "hfcap, floats from the workers": ours(FloatInputs(pixels)),
    }
    if pixels.plan is not None:
        found["hfcap, image cache filled"] = ours(cached_pixels(records, processor, cache, num_workers=workers))
    return found


def measure(found: dict[str, Side], repeats: int) -> dict[str, float]:
    """Return the best seconds of each side; they take turns, so that all meet the same machine."""
    best = dict.fromkeys(found, float("inf"))
    for _ in range(repeats):
        for name, side in found.items():
            started = time.perf_counter()
            for batch in side():
                assert batch.dtype == torch.float32
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def difference(paths: Sequence[Path], processor: Any) -> tuple[float, float]:
    """Return mean and largest difference from the processor's pixels over some photos, in levels of 255."""
    chosen = list(paths[:32])
    records = [CaptionedImage(str(path), path.name, (), FileImage(path)) for path in chosen]
    inputs = PixelInputs(records, processor)
    if inputs.plan is None:
        return 0.0, 0.0
    expected = processor([Image.open(path).convert("RGB") for path in chosen], return_tensors="pt")["pixel_values"]
    scale = torch.tensor(inputs.plan.scale).view(3, 1, 1)
    apart = (inputs.pixel_values(range(len(chosen))) - expected).abs() / scale
    return float(apart.mean()), float(apart.max())


def photos_in(folder: Path, count: int) -> list[Path]:
    """Return the first `count` photos of a folder, by name.

    Raises:
        UserError: there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)[:count]
    if not paths:
        raise UserError(f"{folder}: no photos there")
    return paths


def enlarged(paths: Sequence[Path], folder: Path, tiles: int = 3) -> list[Path]:
    """Write large JPEGs (mosaics of tiles x tiles photos), and return their paths."""
    written = []
    for number in range(0, len(paths) // (tiles * tiles)):
        group = paths[number * tiles * tiles :][: tiles * tiles]
        width, height = Image.open(group[0]).size
        mosaic = Image.new("RGB", (width * tiles, height * tiles))
        for place, path in enumerate(group):
            image = Image.open(path).convert("RGB").resize((width, height))
            mosaic.paste(image, (place % tiles * width, place // tiles * height))
        written.append(folder / f"{number:04d}.jpg")
        mosaic.save(written[-1], "JPEG", quality=90)
    return written


def benchmark(name: str, paths: Sequence[Path], options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Measure one processor on the photos and print its table."""
    processor = load_image_processor(str(_saved(name, cache)), "--processor", None, False)
    seconds = measure(sides(paths, processor, options.batch_size, options.workers, cache / name), options.repeats)
    baseline = seconds["processor in a DataLoader"]
    mean, most = difference(paths, processor)
    width, height = Image.open(paths[0]).size
    title = f"{name}: {len(paths)} photos (first {width} x {height}), {options.workers} workers"
    table = Table("", "photos/s", "ratio", title=title)
    for side, value in seconds.items():
        table.add_row(side, f"{len(paths) / value:,.0f}", f"{baseline / value:.2f}")
    console.print(table)
    console.print(f"difference from the processor: mean {mean:.4f}, at most {most:.0f} of 255 levels")
    return {
        "processor": name,
        "photos": len(paths),
        "first_size": [width, height],
        "photos_per_second": {side: len(paths) / value for side, value in seconds.items()},
        "ratios": {side: baseline / value for side, value in seconds.items()},
        "levels_apart": {"mean": mean, "largest": most},
    }


def _saved(name: str, folder: Path) -> Path:
    if name not in PROCESSORS:
        return Path(name)
    write_json(folder / f"{name}-processor" / "preprocessor_config.json", PROCESSORS[name])
    return folder / f"{name}-processor"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of photos, with subfolders")
    parser.add_argument(
        "--processor", action="append", help=f"{', '.join(PROCESSORS)}, or a model folder; default: the first four"
    )
    parser.add_argument("--photos", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="also mosaics of 3 x 3 photos")
    parser.add_argument("--output", type=Path, help="JSON file with every number")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        photos = photos_in(options.folder, options.photos)
        collections = [photos]
        if options.large:
            (Path(temporary) / "large").mkdir()
            collections.append(enlarged(photos, Path(temporary) / "large"))
        for name in options.processor or list(PROCESSORS)[:4]:
            rows += [benchmark(name, paths, options, Path(temporary)) for paths in collections]
    if options.output is not None:
        values = {"workers": options.workers, "batch_size": options.batch_size, "hardware": hardware(), "results": rows}
        write_json(options.output, values)


if __name__ == "__main__":
    main()
