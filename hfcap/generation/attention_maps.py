"""What a decoder's attention says about where in the image it looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hfcap.errors import UserError
from hfcap.generation.shared_attention import attention_by


def last_layers_attention(decoder: Any, token_ids: torch.Tensor, encoder_states: torch.Tensor) -> torch.Tensor:
    """Cross-attention of the last half of the layers, averaged over them and their heads.

    Args:
        decoder: a causal language model of transformers with cross-attention, in evaluation mode.
        token_ids: (1, T). encoder_states: (1, S, H) as the decoder reads them.

    Returns:
        (T - 1, S): row t is what was looked at while token t + 1 was predicted; rows sum to 1.
    """
    inputs = {"input_ids": token_ids[:, :-1], "encoder_hidden_states": encoder_states}
    return mean_of_last_half(_with_attention(decoder, inputs).cross_attentions)


def self_attention(language_model: Any, inputs: dict[str, Any]) -> Sequence[torch.Tensor]:
    """Self-attention (B, heads, T, T) of every layer of a causal language model for its forward's inputs."""
    return _with_attention(language_model, inputs).attentions


@torch.no_grad()
def _with_attention(language_model: Any, inputs: dict[str, Any]) -> Any:
    # The fast kernels do not give their weights away.
    with attention_by(language_model, "eager"):
        return language_model(**inputs, output_attentions=True, use_cache=False)


def mean_of_last_half(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average attention (1, heads, T, S) over heads and the last half of the layers -> (T, S)."""
    return torch.stack(list(layers[len(layers) // 2 :])).mean(dim=(0, 2))[0]


def square_grid(n_states: int) -> tuple[int, int] | None:
    """Return the sides of the square of patches among so many states; up to five in front of them may be special."""
    for n_special in range(6):
        side = round((n_states - n_special) ** 0.5)
        if side > 0 and side * side == n_states - n_special:
            return side, side
    return None


def grid_maps(weights: torch.Tensor, grid: Sequence[int] | None, title: str) -> torch.Tensor:
    """Attention weights (T, S) -> (T, height, width) over the last states, which are places in the image.

    Raises:
        UserError: the states are no grid (`grid` is None).
    """
    if grid is None:
        raise UserError(
            f"the image states of this {title} are no grid of places in the image (a pooled vector, or an image "
            "that is not square), so that there is nothing to draw; use another captioner"
        )
    height, width = grid
    return weights[:, -height * width :].unflatten(1, (height, width))
