"""What a decoder's cross-attention says about where it looked."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def last_layers_attention(decoder: Any, token_ids: torch.Tensor, encoder_states: torch.Tensor) -> torch.Tensor:
    """Cross-attention of the last half of the layers, averaged over them and their heads.

    Args:
        decoder: a causal language model of transformers with cross-attention, in evaluation mode.
        token_ids: (1, T). encoder_states: (1, S, H) as the decoder reads them.

    Returns:
        (T - 1, S): row t is what was looked at while token t + 1 was predicted; rows sum to 1.
    """
    implementation = decoder.config._attn_implementation
    # The fast kernels do not give their weights away.
    decoder.set_attn_implementation("eager")
    try:
        output = decoder(
            input_ids=token_ids[:, :-1],
            encoder_hidden_states=encoder_states,
            output_attentions=True,
            use_cache=False,
        )
    finally:
        decoder.set_attn_implementation(implementation)
    layers = output.cross_attentions
    return torch.stack(layers[len(layers) // 2 :]).mean(dim=(0, 2))[0]
