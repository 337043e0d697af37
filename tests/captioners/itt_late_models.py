"""Smallest models of kinds that read images in ways of their own: merge sizes, linear attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from hfcap.captioners.image_text_to_text import ImageTextToText
from tests.captioners.itt_models import LAYERS, LLAMA, QWEN_TEMPLATE, model_of, new_tokenizer, text_config
from tests.captioners.itt_more_models import ROPE, without_films

hf: Any = transformers
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _ids(tokenizer: Any, *names: str) -> dict[str, int]:
    tokens = dict(zip(("vision_start", "vision_end", "image", "video"), SPECIAL[2:], strict=True))
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(tokens[name]) for name in names}


def video_llama_3() -> tuple[Any, Any]:
    """VideoLLaMA 3, whose outer model hands merge sizes on without naming them."""
    tokenizer = new_tokenizer(SPECIAL)
    image_processor = hf.VideoLlama3ImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}, patch_size=14, merge_size=1
    )
    processor = without_films(hf.VideoLlama3Processor)(image_processor, tokenizer, None, chat_template=QWEN_TEMPLATE)
    model = model_of(
        "video_llama_3",
        vision_config={**LAYERS, "patch_size": 14},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen2"}),
        **_ids(tokenizer, "image", "video"),
    )
    return model, processor


def qwen3_5() -> tuple[Any, Any]:
    """Qwen 3.5: a layer with linear attention, and one with full attention."""
    tokenizer = new_tokenizer(SPECIAL)
    image_processor = hf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}, patch_size=16
    )
    processor = without_films(hf.Qwen3VLProcessor)(image_processor, tokenizer, None, chat_template=QWEN_TEMPLATE)
    text = {
        "model_type": "qwen3_5_text",
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
    }
    model = model_of(
        "qwen3_5",
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA | text),
        **_ids(tokenizer, "vision_start", "vision_end", "image", "video"),
    )
    return model, processor


LATE_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "video_llama_3": video_llama_3,
    "qwen3_5": qwen3_5,
}


def late(name: str, own: bool = True) -> ImageTextToText:
    """Build a captioner of one of these kinds."""
    model, processor = LATE_MODELS[name]()
    return ImageTextToText(model, processor, "what is on it?", image_size=None if own else 56)
