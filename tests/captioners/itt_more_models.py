"""Smallest models of kinds that are served one caption per row (or by a small file), each with its own processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AyaVisionProcessor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    DeepseekVLImageProcessorPil,
    DeepseekVLProcessor,
    Glm4vImageProcessorPil,
    Glm4vProcessor,
    GotOcr2ImageProcessorPil,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    InstructBlipProcessor,
    InternVLProcessor,
    JanusImageProcessorPil,
    JanusProcessor,
    Kosmos2Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    MllamaImageProcessorPil,
    MllamaProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLProcessor,
)

from hfcap.captioners.image_text_to_text import ImageTextToText
from tests.captioners.itt_models import (
    IDEFICS_TEMPLATE,
    LAYERS,
    LLAMA,
    LLAVA_TEMPLATE,
    QWEN_TEMPLATE,
    SIZE,
    model_of,
    new_tokenizer,
    square_of,
    text_config,
)

SIGLIP = {"model_type": "siglip_vision_model", **LAYERS, "image_size": 32, "patch_size": 16}
CLIP = {**SIGLIP, "model_type": "clip_vision_model"}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def without_films(processor_class: Any) -> Any:
    """The processor class without its video processor, which needs torchvision."""
    return type(processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": lambda *_: None})


def template(placeholder: str) -> str:
    """ChatML with this placeholder for an image."""
    return QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", placeholder)


def internvl() -> tuple[Any, Any]:
    """InternVL, whose processor cuts images into tiles."""
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = new_tokenizer(["<|im_start|>", "<|im_end|>"], **names)
    image_processor = GotOcr2ImageProcessorPil(size=SIZE, min_patches=1, max_patches=4)
    processor = without_films(InternVLProcessor)(
        image_processor, tokenizer, None, image_seq_length=4, chat_template=template("<IMG_CONTEXT>\n")
    )
    vision = {**LAYERS, "image_size": [32, 32], "patch_size": [8, 8]}
    model = model_of(
        "internvl",
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA),
        image_token_id=tokenizer.context_image_token_id,
    )
    return model, processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: the whole image and tiles of it."""
    tokenizer = new_tokenizer(["<image>"])
    grid = [[32, 64], [64, 32], [64, 64]]
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE, image_grid_pinpoints=grid),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model = model_of(
        "llava_next",
        vision_config=CLIP,
        text_config=text_config(tokenizer, **LLAMA),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    return model, processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision with Qwen2."""
    tokenizer = new_tokenizer(["<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    grid = [[32, 32], [32, 64], [64, 64]]
    processor = without_films(LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=grid),
        tokenizer,
        None,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )
    model = model_of(
        "llava_onevision",
        vision_config={**SIGLIP, "vision_use_head": False},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen2"}),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
    )
    return model, processor


def aya_vision() -> tuple[Any, Any]:
    """Aya Vision."""
    special = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]
    tokenizer = new_tokenizer([*special, "TILE", "TILE_GLOBAL", "<|im_start|>", "<|im_end|>"])
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessorPil(size=SIZE, min_patches=1, max_patches=4),
        tokenizer,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=template("<image>"),
    )
    model = model_of(
        "aya_vision",
        vision_config={**SIGLIP, "patch_size": 8, "vision_use_head": False},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "cohere2", "head_dim": 16, "logit_scale": 1.0}),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        adapter_hidden_size=32,
        alignment_intermediate_size=32,
    )
    return model, processor


def idefics2() -> tuple[Any, Any]:
    """Idefics2: images keep their shape, a resampler makes equally many states of all."""
    tokenizer = new_tokenizer(["<|im_start|>"])
    processor = Idefics2Processor(
        Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=True),
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    )
    model = model_of(
        "idefics2",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "mistral"}),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return model, processor


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: features of early layers are added in the first layers of the language model."""
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = new_tokenizer(special)
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 128 * 128}, patch_size=16
    )
    processor = without_films(Qwen3VLProcessor)(image_processor, tokenizer, None, chat_template=QWEN_TEMPLATE)
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    model = model_of(
        "qwen3_vl",
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=text_config(
            tokenizer, **LLAMA | {"model_type": "qwen3_vl_text", "head_dim": 16, "rope_parameters": ROPE}
        ),
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )
    return model, processor


def glm4v() -> tuple[Any, Any]:
    """GLM-4.1V."""
    names = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    films = ["<|begin_of_video|>", "<|end_of_video|>"]
    tokenizer = new_tokenizer([*names, *films, "<|im_start|>", "<|im_end|>"])
    image_processor = Glm4vImageProcessorPil(size={"shortest_edge": 28 * 28 * 2, "longest_edge": 112 * 112 * 2})
    processor = without_films(Glm4vProcessor)(
        image_processor,
        tokenizer,
        None,
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    ids = dict(
        zip(
            ("image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id"),
            map(tokenizer.convert_tokens_to_ids, names),
            strict=True,
        )
    )
    model = model_of(
        "glm4v",
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "image_size": 56,
        },
        text_config=text_config(
            tokenizer, **LLAMA | {"model_type": "glm4v_text", "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}
        ),
        video_start_token_id=tokenizer.convert_tokens_to_ids(films[0]),
        video_end_token_id=tokenizer.convert_tokens_to_ids(films[1]),
        **ids,
    )
    return model, processor


def _deepseek(model_type: str, processor_class: Any, image_processor: Any, **values: Any) -> tuple[Any, Any]:
    names = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = new_tokenizer(["<|im_start|>", "<|im_end|>"], **names)
    processor = processor_class(image_processor, tokenizer, chat_template=template("<image_placeholder>\n"), **values)
    return tokenizer, processor


def deepseek_vl() -> tuple[Any, Any]:
    """DeepSeek-VL."""
    image_processor = DeepseekVLImageProcessorPil(size=SIZE, min_size=8)
    tokenizer, processor = _deepseek("deepseek_vl", DeepseekVLProcessor, image_processor, num_image_tokens=4)
    model = model_of(
        "deepseek_vl",
        vision_config=SIGLIP,
        text_config=text_config(tokenizer, **LLAMA),
        image_token_id=tokenizer.image_token_id,
    )
    return model, processor


def janus() -> tuple[Any, Any]:
    """Janus, of which only the understanding half is used."""
    image_processor = JanusImageProcessorPil(size=SIZE, min_size=8)
    tokenizer, processor = _deepseek("janus", JanusProcessor, image_processor)
    processor.num_image_tokens = 4
    vision = {**LAYERS, "image_size": 32, "patch_size": 16, "projection_dim": 32, "mlp_ratio": 2, "depth": 2}
    model = model_of(
        "janus",
        vision_config={**vision, "num_image_tokens": 4},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
            "num_patches": 2,
        },
        text_config=text_config(tokenizer, **LLAMA),
        image_token_id=tokenizer.image_token_id,
    )
    return model, processor


def kosmos2() -> tuple[Any, Any]:
    """Kosmos-2."""
    tokenizer = new_tokenizer(["<unk>"])
    tokenizer.unk_token = "<unk>"
    # The ids behind the unknown token stand for the image.
    tokenizer.add_tokens([f"<image{number}>" for number in range(64)])
    processor = Kosmos2Processor(CLIPImageProcessorPil(size=SIZE, do_center_crop=False), tokenizer, 4)
    model = model_of(
        "kosmos-2",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 16},
        text_config=text_config(
            processor.tokenizer, embed_dim=32, layers=2, ffn_dim=64, attention_heads=2, max_position_embeddings=256
        ),
    )
    return model, processor


def mllama() -> tuple[Any, Any]:
    """Llama 3.2 Vision: four tiles at most."""
    tokenizer = new_tokenizer(["<|image|>", "<|python_tag|>", "<|im_start|>", "<|im_end|>"])
    processor = MllamaProcessor(
        MllamaImageProcessorPil(size=SIZE, max_image_tiles=4), tokenizer, chat_template=template("<|image|>")
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "vision_output_dim": 64,
        "image_size": 32,
        "patch_size": 16,
        "intermediate_layers_indices": [1],
    }
    text = text_config(tokenizer, **LLAMA | {"model_type": "mllama_text_model", "num_hidden_layers": 3})
    model = model_of(
        "mllama",
        vision_config=vision,
        text_config={
            **text,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    with torch.no_grad():
        # The gates start closed.
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(1.0)
    return model, processor


def instructblip() -> tuple[Any, Any]:
    """InstructBLIP with Llama (Vicuna)."""
    words = new_tokenizer()
    processor = InstructBlipProcessor(BlipImageProcessorPil(size=SIZE), new_tokenizer(), words, num_query_tokens=4)
    model = model_of(
        "instructblip",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 16},
        qformer_config={**LAYERS, "encoder_hidden_size": 32, "vocab_size": len(words)},
        text_config=text_config(processor.tokenizer, **LLAMA),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.no_grad():
        model.query_tokens.copy_(torch.randn(model.query_tokens.shape, generator=torch.Generator().manual_seed(1)))
    return model, processor


MORE_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "internvl": internvl,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "aya_vision": aya_vision,
    "idefics2": idefics2,
    "qwen3_vl": qwen3_vl,
    "glm4v": glm4v,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
    "kosmos-2": kosmos2,
    "mllama": mllama,
    "instructblip": instructblip,
}


def more(name: str, prompt: str = "what is on it?", own: bool = False) -> ImageTextToText:
    """Build a captioner of one of these kinds; `own`: images keep their shape."""
    model, processor = MORE_MODELS[name]()
    return ImageTextToText(model, processor, prompt, image_size=None if own else square_of(name, model))
