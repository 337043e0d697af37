"""Smallest configurations of well-known encoders and language models, and folders as save_pretrained writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, CLIPImageProcessor, ViTImageProcessor

from hfcap.captioners.published.modeling_image_encoder import encoder_from_config
from hfcap.captioners.shared.tokenizers import train_tokenizer
from hfcap.recipe.blocks import TokenizerOptions
from tests.captioners.helpers import CORPUS, make_lively

_LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_PATCHES: dict[str, Any] = {"image_size": 32, "patch_size": 16}
_GROUPED: dict[str, Any] = {**_LAYERS, "num_key_value_heads": 1}

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"model_type": "vit", **_LAYERS, **_PATCHES},
    "deit": {"model_type": "deit", **_LAYERS, **_PATCHES},
    "clip": {"model_type": "clip_vision_model", **_LAYERS, **_PATCHES},
    "siglip": {"model_type": "siglip_vision_model", **_LAYERS, **_PATCHES},
    "flava": {"model_type": "flava_image_model", **_LAYERS, **_PATCHES},
    "dinov2": {"model_type": "dinov2", **_LAYERS, **_PATCHES},
    "swin": {
        "model_type": "swin",
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
    },
    "resnet": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 8, 16],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
    },
}

SMALL_LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
"""Sizes of a tiny decoder in the words of Llama and its kin."""

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "llama": {"model_type": "llama", **_GROUPED},
    "qwen2": {"model_type": "qwen2", **_GROUPED},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
    },
    "gpt_neox": {"model_type": "gpt_neox", **_LAYERS},
}

WITHOUT_POSITIONS: dict[str, dict[str, Any]] = {
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}

DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": LANGUAGE_MODELS["gpt2"],
    "gpt2-wider": {**LANGUAGE_MODELS["gpt2"], "n_embd": 48},
    "bert": {"model_type": "bert", **_LAYERS},
    "roberta": {"model_type": "roberta", **_LAYERS},
}


def _config(values: dict[str, Any]) -> Any:
    remaining = dict(values)
    return AutoConfig.for_model(remaining.pop("model_type"), **remaining)


def write_encoder(folder: Path, values: dict[str, Any]) -> Path:
    """Write an image encoder with its processor as a Hub repository would hold it."""
    model: Any = encoder_from_config(_config(values))
    make_lively(model, seed=1)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


WHOLE_MODELS: dict[str, dict[str, Any]] = {
    "clip": {"vision_config": {**_LAYERS, **_PATCHES}, "projection_dim": 16},
    "siglip": {"vision_config": {**_LAYERS, **_PATCHES}},
    "flava": {
        "image_config": {**_LAYERS, **_PATCHES},
        "multimodal_config": _LAYERS,
        "image_codebook_config": {"num_groups": 1, "hidden_size": 8, "num_blocks_per_group": 1, "vocab_size": 16},
    },
}
"""Models of image and text, of which a captioner takes the image half."""


def write_whole(folder: Path, model_type: str) -> Path:
    """Write a model with both towers, as OpenAI's repositories of CLIP are."""
    text = {**_LAYERS, "vocab_size": 99, "max_position_embeddings": 16}
    config = AutoConfig.for_model(model_type, text_config=text, **WHOLE_MODELS[model_type])
    model = AutoModel.from_config(config)
    make_lively(model, seed=1)
    model.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return folder


def write_language_model(folder: Path, values: dict[str, Any]) -> Path:
    """Write a causal language model with a tokenizer trained on the tests' captions."""
    tokenizer = train_tokenizer(TokenizerOptions(vocab_size=400), CORPUS)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(_config({**values, **special, "vocab_size": len(tokenizer)}))
    make_lively(model, seed=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
