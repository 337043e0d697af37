"""Feature store: what a frozen image encoder says about a picture is computed once and kept on disk.

One folder per encoder (key: its weights, its image processor, which output is taken); inside, safetensors shards in
half precision, each written atomically with the hashes of its pictures' bytes and checksums of their states. Recipes
that use the same frozen encoder share the folder, and a killed run continues with the shards that are complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hfcap.captioners.base import Captioner
from hfcap.data.loading import PixelInputs, image_loader
from hfcap.errors import WorkError
from hfcap.files import cache_folder, write_bytes, write_json
from hfcap.progress import error_console, progress_bar
from hfcap.schema import CaptionedImage

IMAGES_PER_SHARD = 512
_LARGEST_HALF = 60_000.0
_LAYOUT = 2
"""Part of the key, so that shards of an earlier layout are never read."""


def encoder_key(captioner: Captioner, mixed_precision: str) -> str:
    """Return 32 hexadecimal digits that change with the encoder's weights, output choice, precision or processor."""
    digest = hashlib.sha256(f"{_LAYOUT} {mixed_precision}".encode())
    for module in captioner.part_modules()["vision"]:
        digest.update(type(module).__name__.encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    config = captioner.model.config
    digest.update(str(getattr(config, "vision_feature", "")).encode())
    processor = captioner.image_processor.to_dict()
    digest.update(json.dumps(processor, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the states of one picture lie, and the CRC-32 of their bytes."""

    path: Path
    row: int
    checksum: int


class StoredStates:
    """Image states read from the store, memory-mapped; picklable for worker processes."""

    encoded = True

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return image states (S, D) in the half precision they were stored in.

        Raises:
            WorkError: the bytes on disk are not those that were written.
        """
        place = self.places[index]
        if place.path not in self._open:
            self._open[place.path] = safe_open(place.path, framework="pt").get_slice("states")
        states: torch.Tensor = self._open[place.path][place.row]
        if _checksum(states) != place.checksum:
            raise WorkError(f"{place.path}: damaged shard of the feature store (row {place.row}); delete the file")
        return states

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "_open": {}}


class FeatureStore:
    """The store of one encoder: `<folder>/<encoder key>/shard-*.safetensors`.

    The encoder runs in the precision that training uses (`accelerator.mixed_precision`).
    """

    def __init__(self, captioner: Captioner, folder: Path | None, accelerator: Any) -> None:
        self.captioner = captioner
        self.accelerator = accelerator
        self.folder = (folder or cache_folder() / "features") / encoder_key(captioner, accelerator.mixed_precision)

    def inputs(self, records: Sequence[CaptionedImage], batch_size: int, num_workers: int) -> StoredStates:
        """Return the states of all records, encoding those the store lacks (each process encodes its share).

        Raises:
            WorkError: the disk has too little room; the message says how much is needed.
        """
        hashes = image_hashes(records)
        places = self._places()
        # Shares of the work are cut from the list of what is missing: all must make it before one adds to the store.
        self.accelerator.wait_for_everyone()
        missing = _first_of_each([number for number, value in enumerate(hashes) if value not in places], hashes)
        if missing:
            was_training = self.captioner.model.training
            # Batch norm would otherwise learn from what is only looked at, and the encoder would no longer fit its key.
            self.captioner.model.eval()
            self._announce(len(missing), records[missing[0]])
            mine = missing[self.accelerator.process_index :: self.accelerator.num_processes]
            self._encode(records, hashes, mine, batch_size, num_workers)
            self.captioner.model.train(was_training)
            self.accelerator.wait_for_everyone()
            places = self._places()
        return StoredStates([places[value] for value in hashes])

    def _places(self) -> dict[str, Place]:
        places: dict[str, Place] = {}
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    rows = json.loads(shard.metadata()["rows"])
                places |= {value: Place(path, row, checksum) for row, (value, checksum) in enumerate(rows)}
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise WorkError(f"{path}: damaged shard of the feature store ({error}); delete the file") from error
        return places

    def _announce(self, n_missing: int, example: CaptionedImage) -> None:
        states = self._states_of([example])
        size = n_missing * states[0].numel() * 2
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        error_console.print(
            f"Feature store: encoding {n_missing:,} pictures once, {size / 1e6:,.0f} MB in {self.folder} "
            f"({free / 1e9:,.0f} GB free)"
        )
        if size * 1.05 > free:
            raise WorkError(
                f"{self.folder}: the feature store needs {size / 1e9:.1f} GB but only {free / 1e9:.1f} GB are free; "
                "set data.feature_store_folder to another disk or data.feature_store: off"
            )
        write_json(
            self.folder / "encoder.json", {"encoder": type(self.captioner.model).__name__, "shape": [*states[0].shape]}
        )

    def _states_of(self, records: Sequence[CaptionedImage]) -> torch.Tensor:
        pixels = PixelInputs(records, self.captioner.image_processor)
        return self._states(torch.stack([pixels[number] for number in range(len(records))]))

    def _states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), self.accelerator.autocast():
            return self.captioner.encode(pixel_values.to(self.captioner.device)).float().cpu()

    def _encode(
        self,
        records: Sequence[CaptionedImage],
        hashes: Sequence[str],
        chosen: Sequence[int],
        batch_size: int,
        num_workers: int,
    ) -> None:
        pixels = PixelInputs(records, self.captioner.image_processor)
        batches = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
        rows: list[torch.Tensor] = []
        pending: list[str] = []
        with progress_bar() as progress:
            task = progress.add_task("Encoding pictures", total=len(chosen), visible=self.accelerator.is_main_process)
            for batch, pixel_values in zip(batches, image_loader(pixels, batches, num_workers), strict=True):
                rows.append(self._states(pixel_values))
                pending += [hashes[number] for number in batch]
                progress.advance(task, len(batch))
                if len(pending) >= IMAGES_PER_SHARD or batch is batches[-1]:
                    self._write_shard(torch.cat(rows), pending)
                    rows, pending = [], []

    def _write_shard(self, states: torch.Tensor, image_hashes_of_rows: Sequence[str]) -> None:
        # bfloat16 only where float16 would overflow: float16 keeps three more bits.
        fits = bool(states.abs().max() < _LARGEST_HALF)
        half = states.to(torch.float16 if fits else torch.bfloat16).contiguous()
        rows = json.dumps([[value, _checksum(row)] for value, row in zip(image_hashes_of_rows, half, strict=True)])
        # Named by its pictures too: different files may look the same to the encoder.
        name = hashlib.sha256(rows.encode()).hexdigest()[:16]
        write_bytes(self.folder / f"shard-{name}.safetensors", save({"states": half}, metadata={"rows": rows}))


def _checksum(states: torch.Tensor) -> int:
    return zlib.crc32(states.contiguous().view(-1).view(torch.uint8).numpy().data)


def image_hashes(records: Sequence[CaptionedImage]) -> list[str]:
    """Return the SHA-256 of each picture's encoded bytes."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda record: hashlib.sha256(record.image.read()).hexdigest(), records))


def _first_of_each(numbers: Sequence[int], hashes: Sequence[str]) -> list[int]:
    seen: set[str] = set()
    return [number for number in numbers if not (hashes[number] in seen or seen.add(hashes[number]))]  # type: ignore[func-returns-value]
