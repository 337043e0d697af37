"""Feature store: what a frozen image encoder says about a picture is computed once and kept on disk.

One folder per encoder (key: its weights, its image processor, which output is taken, in which precision); inside, the
shards of `row_store.py`. Recipes, metrics and searches that use the same frozen encoder share the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.data.image_hashes import image_hashes
from hfcap.data.loading import PixelInputs, image_loader
from hfcap.data.row_store import RowStore, ShardWriter, StoredRows
from hfcap.files import cache_folder
from hfcap.progress import error_console, progress_bar
from hfcap.schema import CaptionedImage

_LARGEST_HALF = 60_000.0
_LAYOUT = 2
"""Part of the key, so that shards of an earlier layout are never read."""


def encoder_key(modules: Iterable[nn.Module], image_processor: Any, precision: str, output: str = "") -> str:
    """Return 32 hexadecimal digits that change with an encoder's weights, output choice, precision or processor."""
    digest = hashlib.sha256(f"{_LAYOUT} {precision}".encode())
    for module in modules:
        digest.update(type(module).__name__.encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(output.encode())
    digest.update(json.dumps(image_processor.to_dict(), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """A frozen image encoder as the store sees it.

    Attributes:
        name: for people.
        key: from `encoder_key`.
        image_processor: a transformers image processor.
        model: put into evaluation mode while it encodes; its first weight says on which device that is.
        encode: pixel values (B, 3, height, width) float32 -> what is kept, (B, ...).
        half: keep half precision; False keeps float32.
    """

    name: str
    key: str
    image_processor: Any
    model: nn.Module
    encode: Callable[[torch.Tensor], torch.Tensor]
    half: bool = True


def captioner_encoder(captioner: Captioner, precision: str) -> ImageEncoder:
    """Return a captioner's encoder as training uses it; `precision` is Accelerate's mixed_precision."""
    modules = captioner.part_modules()["vision"]
    config = captioner.model.config
    key = encoder_key(modules, captioner.image_processor, precision, str(getattr(config, "vision_feature", "")))
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
    name = f"{type(captioner.model).__name__}, {getattr(vision, 'model_type', type(modules[0]).__name__)}"
    return ImageEncoder(name, key, captioner.image_processor, captioner.model, captioner.encode)


def embedding_encoder(name: str, model: Any, image_processor: Any) -> ImageEncoder:
    """Return the image half of a dual encoder (CLIP, SigLIP): one float32 vector (D,) per picture, not normalised.

    Args:
        name: model id or folder, for people.
        model: a transformers model with `get_image_features`.
    """

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        output = model.get_image_features(pixel_values=pixel_values)
        # transformers 5 wraps the vectors in an output object.
        vectors: torch.Tensor = getattr(output, "pooler_output", output)
        return vectors

    # The text half beside it costs a moment of hashing, and no model type has to be known here.
    key = encoder_key([model], image_processor, "float32", "get_image_features")
    return ImageEncoder(name, key, image_processor, model, encode, half=False)


class OneProcess:
    """Stands for an Accelerator where there is none: one process, no autocast."""

    process_index = 0
    num_processes = 1
    is_main_process = True

    def wait_for_everyone(self) -> None:
        """Nobody else is there."""

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context that changes nothing."""
        return nullcontext()


class StoredStates(StoredRows):
    """Image states (S, D), or embeddings (D,), as inputs of a captioner."""

    encoded = True


class FeatureStore:
    """The store of one encoder: `<folder>/<encoder key>/`.

    Args:
        folder: None = `features` in the cache folder.
        accelerator: processes that share the work, and the precision the encoder runs in; None = this one, float32.
    """

    def __init__(self, encoder: ImageEncoder, folder: Path | None = None, accelerator: Any = None) -> None:
        self.encoder = encoder
        self.accelerator = OneProcess() if accelerator is None else accelerator
        self.folder = features_folder(folder) / encoder.key
        self.rows = RowStore(self.folder)

    def inputs(self, records: Sequence[CaptionedImage], batch_size: int = 32, num_workers: int = 0) -> StoredStates:
        """Return the states of all records, encoding those the store lacks (each process encodes its share).

        Raises:
            WorkError: the disk has too little room; the message says how much is needed. A shard is damaged.
            UnreadableImageError: a picture cannot be read.
        """
        hashes = image_hashes(records)
        places = self.rows.places()
        # Shares of the work are cut from the list of what is missing: all must make it before one adds to the store.
        self.accelerator.wait_for_everyone()
        missing = _first_of_each([number for number, value in enumerate(hashes) if value not in places], hashes)
        if missing:
            model = self.encoder.model
            was_training = model.training
            # Batch norm would otherwise learn from what is only looked at, and the encoder would no longer fit its key.
            model.eval()
            self._announce(len(missing), records[missing[0]])
            mine = missing[self.accelerator.process_index :: self.accelerator.num_processes]
            self._encode(records, hashes, mine, batch_size, num_workers)
            model.train(was_training)
            self.accelerator.wait_for_everyone()
            places = self.rows.places()
        if self.accelerator.is_main_process:
            self.rows.mark_used()
        return StoredStates([places[value] for value in hashes])

    def _announce(self, n_missing: int, example: CaptionedImage) -> None:
        inputs = PixelInputs([example], self.encoder.image_processor)
        [state] = self._states(inputs[0].unsqueeze(0))
        size = n_missing * state.numel() * state.element_size()
        remedy = "set data.feature_store_folder (or HFCAP_CACHE) to another disk, or data.feature_store: off"
        free = self.rows.require_room(size, "the feature store", remedy)
        if self.accelerator.is_main_process:
            error_console.print(
                f"Feature store: encoding {n_missing:,} pictures once, {size / 1e6:,.0f} MB in {self.folder} "
                f"({free / 1e9:,.0f} GB free)",
                markup=False,
            )
            self.rows.describe(self.encoder.name, state)

    def _states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        device = next(self.encoder.model.parameters()).device
        with torch.inference_mode(), self.accelerator.autocast():
            states = self.encoder.encode(pixel_values.to(device)).float().cpu()
        if not self.encoder.half:
            return states
        # bfloat16 only where float16 would overflow: float16 keeps three more bits.
        fits = bool(states.abs().max() < _LARGEST_HALF)
        return states.to(torch.float16 if fits else torch.bfloat16)

    def _encode(
        self,
        records: Sequence[CaptionedImage],
        hashes: Sequence[str],
        chosen: Sequence[int],
        batch_size: int,
        num_workers: int,
    ) -> None:
        pixels = PixelInputs(records, self.encoder.image_processor)
        batches = [chosen[first : first + batch_size] for first in range(0, len(chosen), batch_size)]
        writer = ShardWriter(self.rows)
        with progress_bar() as progress:
            task = progress.add_task("Encoding pictures", total=len(chosen), visible=self.accelerator.is_main_process)
            for batch, pixel_values in zip(batches, image_loader(pixels, batches, num_workers), strict=True):
                writer.add(self._states(pixel_values), [hashes[number] for number in batch])
                progress.advance(task, len(batch))
        writer.close()


def features_folder(folder: Path | None = None) -> Path:
    """Return where stores lie: the folder given, or `features` in the cache folder."""
    return cache_folder() / "features" if folder is None else folder


def _first_of_each(numbers: Sequence[int], hashes: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for number in numbers:
        first.setdefault(hashes[number], number)
    return list(first.values())
