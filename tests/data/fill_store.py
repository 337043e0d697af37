"""Run by test_features_processes.py: fills the feature store in one or two real processes.

Usage: fill_store.py IMAGES STORE SECONDS_PER_BATCH
Writes `encoded-<rank>.txt` beside the store: how many images this process encoded.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from hfcap.captioners.base import Captioner
from hfcap.data.images import FileImage
from hfcap.schema import CaptionedImage
from hfcap.store import row_store
from hfcap.store.features import FeatureStore, captioner_encoder
from tests.captioners.helpers import build


def records_in(folder: Path) -> list[CaptionedImage]:
    """All images of a folder, in the order of their names."""
    paths = sorted(folder.glob("*.png"))
    return [CaptionedImage(path.stem, path.name, ("x",), FileImage(path)) for path in paths]


def fill(images: Path, store: Path, seconds: float) -> None:
    """Fill the store, two images per batch and shard, each batch taking `seconds` longer."""
    row_store.IMAGES_PER_SHARD = 2
    captioner: Captioner = build("vit_gpt2")
    encoded = 0
    encode = captioner.encode

    def slow(pixel_values: torch.Tensor) -> torch.Tensor:
        nonlocal encoded
        encoded += len(pixel_values)
        time.sleep(seconds)
        return encode(pixel_values)

    captioner.encode = slow  # type: ignore[method-assign]  # counts and slows down
    accelerator = Accelerator(cpu=True)
    records = records_in(images)
    states = FeatureStore(captioner_encoder(captioner), store, accelerator).inputs(records, 2, 0)
    assert len(states.stacked()) == len(records)
    # One was encoded to tell the size.
    (store / f"encoded-{accelerator.process_index}.txt").write_text(str(encoded - 1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    fill(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
