"""A judge small enough for tests: LLaVA with random weights, which grades without sense but by the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.captioners.itt_models import llava


def write_judge(folder: Path, *, positions: int = 1024) -> str:
    """Write model and processor into a folder; half of its grades begin with 1."""
    model, processor = llava({"model_type": "llama", **LAYERS, "max_position_embeddings": positions})
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        # Digits and the point are likelier than other tokens, as of a judge that has understood the question.
        for token in "0123456789":
            head.weight[processor.tokenizer.convert_tokens_to_ids(token)] *= 3.0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
