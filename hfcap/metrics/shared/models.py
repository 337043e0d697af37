"""Which model the values of a metric depend on."""

from __future__ import annotations

from pathlib import Path

from hfcap.files import sha256_of


def model_signature(model: str) -> dict[str, str]:
    """Return the model for a signature: its Hub id, or of a folder its name and hashes of its weights.

    Args:
        model: folder or Hub id.
    """
    folder = Path(model)
    weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not weights:
        return {"model": model}
    return {"model": folder.name, "weights": ",".join(sha256_of(path)[:16] for path in weights)}
