"""Feature store: what a frozen image encoder says about an image is computed once and kept on disk.

One folder per encoder (key: its weights, its image processor, which output is taken); inside, the
shards of `row_store.py`. Recipes, metrics and searches that use the same frozen encoder share the folder.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.data.loading import PixelInputs, prepared
from hfcap.data.pixels import PixelPlan, identity_of
from hfcap.files import cache_folder
from hfcap.progress import error_console
from hfcap.schema import CaptionedImage, Images, SizedImages
from hfcap.store.fill import OneProcess, StoreFiller, StoreMessages
from hfcap.store.image_hashes import image_hashes
from hfcap.store.row_store import RowStore, StoredRows

_LARGEST_HALF = 60_000.0
_LAYOUT = 3
"""Part of the key, so that shards of an earlier layout or precision are never read."""


def encoder_key(modules: Iterable[nn.Module], image_processor: Any, output: str = "") -> str:
    """Return 32 hexadecimal digits that change with an encoder's weights, output choice or processor."""
    digest = hashlib.sha256(str(_LAYOUT).encode())
    for module in modules:
        digest.update(type(module).__name__.encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(output.encode())
    digest.update(identity_of(image_processor).encode())
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
    encode: Callable[[Any], Any]
    half: bool = True


def captioner_encoder(captioner: Captioner) -> ImageEncoder:
    """Return a captioner's encoder as training uses it."""
    modules = captioner.part_modules()["vision"]
    config = captioner.model.config
    key = encoder_key(modules, captioner.image_processor, str(getattr(config, "vision_feature", "")))
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
    name = f"{type(captioner.model).__name__}, {getattr(vision, 'model_type', type(modules[0]).__name__)}"
    return ImageEncoder(name, key, captioner.image_processor, captioner.model, captioner.encode)


def embedding_encoder(name: str, model: Any, image_processor: Any) -> ImageEncoder:
    """Return the image half of a dual encoder (CLIP, SigLIP): one float32 vector (D,) per image, not normalised.

    Args:
        name: model id or folder, for people.
        model: a transformers model with `get_image_features`.
    """

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        output = model.get_image_features(pixel_values=pixel_values)
        # transformers 5 wraps the vectors in an output object.
        vectors: torch.Tensor = getattr(output, "pooler_output", output)
        return vectors

    # The text half next to it costs a moment of hashing, and no model type has to be known here.
    key = encoder_key([model], image_processor, "get_image_features")
    return ImageEncoder(name, key, image_processor, model, encode, half=False)


class StoredStates(StoredRows):
    """Image states (S, D), or embeddings (D,), as inputs of a captioner."""

    encoded = True
    plan = None
    temporary: Any = None
    """The folder where the rows lie, if it goes with this object."""

    def __getstate__(self) -> dict[str, Any]:
        # A copy in a worker process does not own the folder.
        return {**super().__getstate__(), "temporary": None}


class FeatureStore:
    """The store of one encoder: `<folder>/<encoder key>/`.

    Args:
        folder: None = `features` in the cache folder.
        accelerator: processes that share the work; None = this one.

    Where one process finds that nothing can be written there, what is missing is kept in a temporary folder.
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
            UnreadableImageError: an image cannot be read.
        """
        model, rows, temporary = self.encoder.model, self.rows, None
        problem = rows.write_problem() if isinstance(self.accelerator, OneProcess) else None
        if problem is not None and not rows.places().keys() >= set(image_hashes(records)):
            temporary = tempfile.TemporaryDirectory(prefix="hfcap-features-")
            rows = RowStore(Path(temporary.name) / self.encoder.key)
            said = f"warning: {problem}; what is computed from images is forgotten at the end"
            error_console.print(said, markup=False, soft_wrap=True)
        pixels = PixelInputs(records, self.encoder.image_processor)
        was_training = model.training
        # Batch norm would otherwise learn from what is only looked at, and the encoder would no longer fit its key.
        model.eval()
        filling = StoreFiller(
            rows,
            pixels,
            lambda images: self._states(images, pixels.plan),
            self.encoder.name,
            StoreMessages(
                "Feature store: encoding",
                "the feature store",
                "set data.feature_store_folder (or HFCAP_CACHE) to another disk, or data.feature_store: off",
            ),
            self.accelerator,
            _device(model),
        )
        places = filling.places(batch_size, num_workers)
        model.train(was_training)
        states = StoredStates(places)
        states.temporary = temporary
        return states

    def _states(self, images: Images, plan: PixelPlan | None) -> Images:
        device = _device(self.encoder.model)
        # In the weights' own precision: it runs once per image, and the published model must see the same.
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            states: Any = self.encoder.encode(prepared(images, plan, device)).float().cpu()
        if not self.encoder.half:
            return states
        return states.mapped(_halved) if isinstance(states, SizedImages) else _halved(states)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _halved(states: torch.Tensor) -> torch.Tensor:
    # bfloat16 only where float16 would overflow: float16 keeps three more bits.
    fits = bool(states.abs().max() < _LARGEST_HALF)
    return states.to(torch.float16 if fits else torch.bfloat16)


def features_folder(folder: Path | None = None) -> Path:
    """Return where stores lie: the folder given, or `features` in the cache folder."""
    return cache_folder() / "features" if folder is None else folder.expanduser()
