"""A CLIP that is there in a moment."""

from __future__ import annotations

from pathlib import Path

import torch

_SIZE = 32
LONGEST = 24
"""Tokens that fit into the text half."""


def save_tiny_clip(folder: Path) -> str:
    """Save a CLIP with random weights and a byte-level tokenizer without merges; return the folder."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    end = len(words) - 1
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(words),
            "max_position_embeddings": LONGEST,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**tower, "image_size": _SIZE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(3)  # one negative similarity among positive ones, so that both sides of the maximum are tried
    CLIPModel(config).save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": _SIZE}, crop_size={"height": _SIZE, "width": _SIZE})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return str(folder)
