"""Small images and datasets that tests of the data package write."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from hfcap.data.sources.folder import FolderOptions
from hfcap.data.tables.entries import Entry, EntryReader
from hfcap.data.tables.layout import TableFile
from hfcap.data.tables.layouts import BY_NAME


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """Encode an image in memory."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_jpeg(path: Path, colour: str = "red", size: tuple[int, int] = (12, 8)) -> Path:
    """Write a JPEG of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.new("RGB", size, colour), "JPEG"))
    return path


def write_coco_json(
    folder: Path, n_images: int = 4, splits: tuple[str, ...] = ("train", "val"), **changes: Any
) -> Path:
    """Write a COCO caption file with two captions per image, the splits taking turns, and the images."""
    images = [
        {"id": 10 + i, "file_name": f"{i}.jpg", **({"split": splits[i % len(splits)]} if splits else {})}
        for i in range(n_images)
    ]
    annotations = [
        {"id": 100 * i + k, "image_id": 10 + i, "caption": f"caption {k} of image {i}"}
        for i in range(n_images)
        for k in range(2)
    ]
    for image in images:
        write_jpeg(folder / "images" / str(image["file_name"]))
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations} | changes), encoding="utf-8")
    return path


def metadata_entries(path: Path, caption_columns: list[str] | None = None) -> list[Entry]:
    """Read a metadata file without looking at its images."""
    options = FolderOptions(root=str(path.parent), caption_columns=caption_columns)
    return list(EntryReader(BY_NAME["metadata"], options, False, "metadata file").entries(TableFile(path)))
