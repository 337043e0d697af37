"""What is written next to the weights and what is kept out of there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcap.errors import UserError
from hfcap.files import read_json

SIDECAR = "hfcap.json"
"""Small file next to the weights: what transformers has no field for (family and caption prompt)."""


def without_places(value: Any) -> Any:
    """Return a model's configuration without the folders it was loaded from."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items() if key != "_name_or_path"}
    return value


def read_sidecar(folder: Path) -> dict[str, str]:
    """Return family and prompt that `Captioner.save` wrote; empty for models that hfcap did not write."""
    path = folder / SIDECAR
    if not path.is_file():
        return {}
    values = read_json(path, "hfcap's note next to the weights")
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise UserError(f"{path}: must map names to texts; delete the file or write the model again")
    return values
