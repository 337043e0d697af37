"""Models that metrics look through: loading them, and what signatures say of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfcap.errors import UserError, WorkError
from hfcap.files import sha256_of


@contextmanager
def loading(model: str, what: str) -> Iterator[None]:
    """Say what fails in the block, where a model is loaded, in one sentence.

    Args:
        model: folder or Hub id. what: the model is, for messages: "the CLIP model of metric 'clip_score'".

    Raises:
        WorkError: the Hub cannot be reached.
        UserError: there is no such model, or it is damaged.
    """
    from hfcap.failures.hub import give_up_soon, out_of_reach

    give_up_soon()
    try:
        yield
    except (OSError, ValueError) as error:
        said = f"{model}: {what} cannot be loaded"
        if problem := out_of_reach(error):
            raise WorkError(f"{said}: {problem}") from error
        raise UserError(f"{said} ({error}); choose another") from None


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
