"""How a server runs a published vision-language model: what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hfcap.card.usage_code import read_notes, read_prompt
from hfcap.pages.markdown import Safe, code, code_block
from hfcap.text import has_controls

_ADDRESS = "http://localhost:8000/v1"


def serving(model_id: str, model: Path, has_code: bool, is_adapter: bool) -> dict[str, Any] | None:
    """Return commands and a sentence for the card; None for models that no server of chat completions takes.

    Args:
        model_id: Hub id of the repository, or "." for the folder itself.
        model: folder with the weights.
        has_code: the repository brings its own modelling code.
    """
    notes = read_notes(model)
    if notes.get("call") != "chat" or has_code:
        return None
    merging = [f"hfcap merge {model_id} -o merged"] if is_adapter else []
    served = "merged" if is_adapter else model_id
    commands = [
        *merging,
        'pip install "transformers[serving]"',
        f"transformers serve {served}  # or: vllm serve {served}",
    ]
    prompt = read_prompt(model)
    asked = f" and the prompt {code(prompt)}" if prompt and not has_controls(prompt) else ""
    text = (
        f"The server answers OpenAI's chat completions at {_ADDRESS}, asked with the image{asked}; `vllm serve` "
        "needs a vLLM that knows this model type."
    )
    if notes.get("image_size"):
        text += (
            f" In training every image was made one square of {notes['image_size']} pixels first; a server does not "
            "do that, so that captions can differ."
        )
    return {"commands": code_block("\n".join(commands), "sh"), "text": Safe(text)}
