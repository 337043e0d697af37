"""A person's own folder of photos, the recipe for it, and a look at what a day left on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hfcap.files import UNFINISHED
from tests.data.sample_images import write_jpeg
from tests.training.harness import recipe_values

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange", "brown", "pink", "grey", "teal")


def write_album(folder: Path, caption: Callable[[str], list[str]] | None = None) -> Path:
    """Write twelve photos, eight to train on, two to validate with, two to test, and their metadata.jsonl."""
    rows = []
    for number, colour in enumerate(COLOURS):
        split = "train" if number < 8 else "validation" if number < 10 else "test"
        write_jpeg(folder / f"{colour}.jpg", colour)
        captions = caption(colour) if caption else [f"a {colour} wall", f"the wall is {colour}"]
        rows.append({"file_name": f"{colour}.jpg", "captions": captions, "split": split})
    write_rows(folder, rows)
    return folder


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metadata.jsonl."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write metadata.jsonl."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def write_recipe(folder: Path, album: Path, **blocks: Any) -> Path:
    """Write the recipe of a small captioner for an album; its run is `folder`/runs/tiny."""
    train = {"max_steps": 4, "save_steps": 1, "eval_steps": 4, **blocks.pop("train", {})}
    values = recipe_values("vit_gpt2", folder / "runs", **train)
    values["data"] = {"source": "folder", "root": str(album)}
    values["score"] = {"n_resamples": 20, "baselines": ["most_frequent_caption"]}
    for name, block in blocks.items():
        values[name] = {**values[name], **block} if isinstance(values.get(name), dict) else block
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def leftovers(folder: Path) -> list[str]:
    """Return what is unfinished, or hidden, below a folder."""
    return sorted({path.name for pattern in (UNFINISHED, ".*", "*.part-*") for path in folder.rglob(pattern)})
