"""Image and text encoders with one space (CLIP, SigLIP, ...): vectors of texts and images, resumable.

Shapes: M texts, B images, D width of the common space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import AutoModel, CLIPProcessor

from hfcap.captioners.shared.metadata import without_places
from hfcap.captioners.shared.pretrained import from_pretrained, load_image_processor
from hfcap.captioners.shared.tokenizers import load_tokenizer
from hfcap.errors import UserError
from hfcap.files import read_json, write_bytes, write_json
from hfcap.progress import error_console, progress_bar

TEXTS_PER_SHARD = 4096


def unit_vectors(output: Any) -> torch.Tensor:
    """Vectors of length one from what get_text_features or get_image_features gives, float32.

    transformers 5 wraps them in an output object, transformers 4 returns the tensor.
    """
    features = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(features.float(), dim=-1)


class DualEncoder:
    """A pretrained dual encoder with its image processor and tokenizer.

    Args:
        location: folder or Hub id. key: what the user calls it, for messages (a recipe key or an option).

    Raises:
        UserError: it cannot be loaded, or has no image and text encoder with a common space.
    """

    def __init__(self, location: str, key: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
        self.location = location
        self.model: Any = from_pretrained(
            AutoModel, location, key, revision=revision, trust_remote_code=trust_remote_code
        )
        self.model.eval()
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise UserError(
                f"{key}: {location} is a {type(self.model).__name__}, which has no image and text encoder with one "
                "space; give a CLIP or SigLIP model"
            )
        self.image_processor = load_image_processor(location, key, revision, trust_remote_code)
        self.tokenizer = load_tokenizer(location, key, revision, trust_remote_code)
        text_config = self.model.config.get_text_config()
        self._longest = int(getattr(text_config, "max_position_embeddings", 0) or self.tokenizer.model_max_length)
        # SigLIP was trained on texts that all have the full length.
        self._padding: Any = "max_length" if "siglip" in str(self.model.config.model_type) else True

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors (M, D) float32 of texts; long ones are cut such that the end token remains."""
        tokens = self.tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self.device)
        given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        if self._padding == "max_length":
            given.pop("attention_mask", None)
        return unit_vectors(self.model.get_text_features(**given)).cpu()

    @torch.inference_mode()
    def images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return unit vectors (B, D) float32 of processed images (B, 3, height, width)."""
        return unit_vectors(self.model.get_image_features(pixel_values=pixel_values.to(self.device))).cpu()

    def save(self, folder: Path) -> None:
        """Write the model with its processor, for AutoModel and AutoProcessor."""
        self.model.save_pretrained(folder)
        config = folder / "config.json"
        write_json(config, without_places(read_json(config, "model configuration")))
        CLIPProcessor(self.image_processor, self.tokenizer).save_pretrained(folder)

    def text_key(self) -> str:
        """Return 16 hexadecimal digits that change with the weights of the text encoder and its tokenizer."""
        digest = hashlib.sha256(
            json.dumps([self._longest, str(self._padding), sorted(self.tokenizer.get_vocab().items())]).encode()
        )
        for name, tensor in sorted(self.model.state_dict().items()):
            if not name.startswith("vision"):
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def all_texts(self, texts: Sequence[str], folder: Path, batch_size: int, what: str) -> torch.Tensor:
        """Return unit vectors (M, D) of many texts in half precision, with a progress bar.

        Every TEXTS_PER_SHARD vectors are kept in `folder` under a name made of encoder and texts, so that a killed run
        goes on after them and other texts never meet them.

        A damaged file there is computed again.
        """
        key, parts = self.text_key(), []
        with progress_bar() as progress:
            task = progress.add_task(what, total=len(texts))
            for first in range(0, len(texts), TEXTS_PER_SHARD):
                chunk = texts[first : first + TEXTS_PER_SHARD]
                name = hashlib.sha256(json.dumps([key, list(chunk)]).encode()).hexdigest()[:32]
                path = folder / f"texts-{name}.safetensors"
                known = _read_vectors(path)
                if known is not None:
                    parts.append(known)
                else:
                    rows = []
                    for start in range(0, len(chunk), batch_size):
                        rows.append(self.texts(chunk[start : start + batch_size]).half())
                        progress.advance(task, len(rows[-1]))
                    parts.append(torch.cat(rows))
                    write_bytes(path, save({"vectors": parts[-1]}))
                progress.update(task, completed=first + len(chunk))
        return torch.cat(parts)


def _read_vectors(path: Path) -> torch.Tensor | None:
    """Return what an earlier run kept; None where it kept nothing, or where that is damaged, which is said."""
    if not path.is_file():
        return None
    try:
        return load_file(path)["vectors"]
    except (SafetensorError, OSError, KeyError) as error:
        said = f"warning: {path}: damaged text vectors ({error}); they are computed again"
        error_console.print(said, markup=False, soft_wrap=True)
        return None
