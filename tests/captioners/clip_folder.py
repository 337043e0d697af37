"""A CLIP of random weights with a byte-level tokenizer, written to a folder."""

from __future__ import annotations

from pathlib import Path

import torch

SIZE, LONGEST = 32, 24


def write_clip(folder: Path, seed: int = 2, spread: float | None = 0.5, longest: int = LONGEST) -> str:
    """Write model, image processor and tokenizer; the vectors of its common space have 12 numbers.

    Args:
        spread: deviation of the weights, large enough that vectors differ; None leaves them as transformers draws them.
        longest: positions of the text encoder.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    end = len(words) - 1
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": longest,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    config = CLIPConfig(
        text_config={**tower, **text},
        vision_config={**tower, "image_size": SIZE, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    if spread is not None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.copy_(torch.randn(parameter.shape) * spread)
    model.save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return str(folder)
