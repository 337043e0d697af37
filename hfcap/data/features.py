"""Feature store: what a frozen image encoder says about a picture is computed once and kept on disk.

One folder per encoder (key: its weights, its image processor, which output is taken); inside, safetensors shards in
half precision, each written atomically with the hashes of its pictures' bytes and its own content. Recipes that use the
same frozen encoder share the folder, and a killed run continues with the shards that are complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


def encoder_key(captioner: Captioner, mixed_precision: str) -> str:
    """Return 32 hexadecimal digits that change with the encoder's weights, output choice, precision or processor."""
    digest = hashlib.sha256(mixed_precision.encode())
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


class StoredStates:
    """Image states read from the store, memory-mapped; picklable for worker processes."""

    encoded = True

    def __init__(self, places: Sequence[tuple[Path, int]]) -> None:
        self.places = places
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return image states (S, D) in the half precision they were stored in."""
        path, row = self.places[index]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt").get_slice("states")
        return self._open[path][row]

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
            self._announce(len(missing), records[missing[0]])
            mine = missing[self.accelerator.process_index :: self.accelerator.num_processes]
            self._encode(records, hashes, mine, batch_size, num_workers)
            self.accelerator.wait_for_everyone()
            places = self._places()
        return StoredStates([places[value] for value in hashes])

    def _places(self) -> dict[str, tuple[Path, int]]:
        places: dict[str, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                with safe_open(path, framework="pt") as shard:
                    metadata = shard.metadata() or {}
            except (SafetensorError, OSError) as error:
                raise WorkError(f"{path}: damaged shard of the feature store ({error}); delete the file") from error
            for row, value in enumerate(json.loads(metadata["image_hashes"])):
                places[value] = (path, row)
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
        batch = torch.stack([pixels[number] for number in range(len(records))])
        return self._states(batch)

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
        was_training = self.captioner.model.training
        self.captioner.model.eval()
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
        self.captioner.model.train(was_training)

    def _write_shard(self, states: torch.Tensor, image_hashes_of_rows: Sequence[str]) -> None:
        # bfloat16 only where float16 would overflow: float16 keeps three more bits.
        fits = bool(states.abs().max() < _LARGEST_HALF)
        half = states.to(torch.float16 if fits else torch.bfloat16).contiguous()
        content = hashlib.sha256(half.view(-1).view(torch.uint8).numpy().data).hexdigest()
        metadata = {"image_hashes": json.dumps(list(image_hashes_of_rows)), "sha256": content}
        write_bytes(self.folder / f"shard-{content[:16]}.safetensors", save({"states": half}, metadata=metadata))


def image_hashes(records: Sequence[CaptionedImage]) -> list[str]:
    """Return the SHA-256 of each picture's encoded bytes."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda record: hashlib.sha256(record.image.read()).hexdigest(), records))


def _first_of_each(numbers: Sequence[int], hashes: Sequence[str]) -> list[int]:
    seen: set[str] = set()
    return [number for number in numbers if not (hashes[number] in seen or seen.add(hashes[number]))]  # type: ignore[func-returns-value]
