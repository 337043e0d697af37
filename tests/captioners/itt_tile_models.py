"""Smallest models of kinds that look at whole images or tiles of them, and of Gemma 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.models.smolvlm import processing_smolvlm

from tests.captioners.itt_grid_models import GRID, QWEN_IMAGE, images_of, with_films
from tests.captioners.itt_models import (
    IDEFICS_TEMPLATE,
    LAYERS,
    LLAMA,
    LLAVA_TEMPLATE,
    SIZE,
    model_of,
    new_tokenizer,
    text_config,
)
from tests.captioners.itt_more_models import CLIP, ROPE, template
from tests.captioners.itt_vision_models import CHAT, GEMMA_4_TOKENS, ONE_GROUP, hf, ids_of


def vipllava() -> tuple[Any, Any]:
    """ViP-LLaVA: several layers of CLIP."""
    tokenizer = new_tokenizer(["<image>"])
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model = model_of(
        "vipllava",
        vision_config=CLIP,
        text_config=text_config(tokenizer, **LLAMA),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-1, -2],
    )
    return model, processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM2, whose processor takes films as well."""
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<|im_start|>"]
    tokenizer = new_tokenizer([*special, "<video>"])
    # It spells the numbers of a film's frames; no image needs that.
    module: Any = processing_smolvlm
    module.num2words = module.num2words or str
    image_processor = hf.SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = with_films(
        hf.SmolVLMProcessor,
        "SmolVLMVideoProcessor",
        image_processor,
        tokenizer,
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    )
    model = model_of(
        "smolvlm",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        text_config=text_config(tokenizer, **LLAMA),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return model, processor


def llava_next_video() -> tuple[Any, Any]:
    """LLaVA-NeXT-Video, given images."""
    tokenizer = new_tokenizer(["<image>", "<video>"])
    grid = [[32, 64], [64, 32], [64, 64]]
    processor = hf.LlavaNextVideoProcessor(
        hf.LlavaNextVideoVideoProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
        hf.LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE, image_grid_pinpoints=grid),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model = model_of(
        "llava_next_video",
        vision_config=CLIP,
        text_config=text_config(tokenizer, **LLAMA),
        **ids_of(tokenizer, image_token_index="<image>", video_token_index="<video>"),
        image_grid_pinpoints=grid,
    )
    return model, processor


def video_llava() -> tuple[Any, Any]:
    """Video-LLaVA, given images."""
    tokenizer = new_tokenizer(["<image>", "<video>"])
    processor = hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
        hf.VideoLlavaVideoProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
        tokenizer,
        patch_size=16,
        chat_template=LLAVA_TEMPLATE,
    )
    model = model_of(
        "video_llava",
        vision_config=CLIP,
        text_config=text_config(tokenizer, **LLAMA),
        **ids_of(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    return model, processor


def aria() -> tuple[Any, Any]:
    """Aria: queries that read the image, and experts."""
    tokenizer = new_tokenizer(CHAT, image_token="<|img|>")
    image_processor = hf.AriaImageProcessorPil(max_image_size=980, min_image_size=336)
    processor = hf.AriaProcessor(
        image_processor, tokenizer, chat_template=template("<|img|>"), size_conversion={980: 4}
    )
    text = {"model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    model = model_of(
        "aria",
        vision_config={"model_type": "idefics3_vision", **LAYERS, "image_size": 980, "patch_size": 196},
        text_config=text_config(tokenizer, **LLAMA | text),
        projector_patch_to_query_dict={25: 4},
        image_token_index=tokenizer.image_token_id,
    )
    return model, processor


def qianfan_ocr() -> tuple[Any, Any]:
    """Qianfan-OCR, with tiles as InternVL has them."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = new_tokenizer([*CHAT, "<image>"], **names)
    processor = hf.QianfanOCRProcessor(
        hf.GotOcr2ImageProcessorPil(size=SIZE, min_patches=1, max_patches=4),
        tokenizer,
        image_seq_length=4,
        chat_template=template("<image>\n"),
    )
    model = model_of(
        "qianfan_ocr",
        vision_config={**LAYERS, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen3", "head_dim": 16}),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    return model, processor


def pp_chart2table() -> tuple[Any, Any]:
    """PP-Chart2Table, whose chat template writes the image's places itself."""
    tokenizer = new_tokenizer([*CHAT, "<img>", "</img>", "<imgpad>"])
    processor = hf.PPChart2TableProcessor(
        hf.PPChart2TableImageProcessorPil(size=SIZE),
        tokenizer,
        chat_template=template("<img>" + "<imgpad>" * 4 + "</img>\n"),
    )
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
    }
    model = model_of(
        "pp_chart2table",
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen2"}),
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
        image_seq_length=4,
    )
    return model, processor


def granite_docling() -> tuple[Any, Any]:
    """Granite for Docling: features of early layers are added in the first layers of the language model."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = new_tokenizer([*CHAT, "<fake_token_around_image>", "<image>", "<global-img>", *rows])
    processor = hf.GraniteDoclingProcessor(
        hf.GraniteDoclingImageProcessorPil(size=SIZE, min_patches=1, max_patches=4),
        tokenizer,
        image_seq_len=4,
        chat_template=template("<image>"),
    )
    vision = {
        **LAYERS,
        "image_size": 32,
        "patch_size": 8,
        "out_hidden_size": 32,
        "scale_factor": 2,
        "deepstack_visual_indexes": [0],
        "use_fine_route": False,
    }
    text = text_config(tokenizer, **LLAMA | {"model_type": "granite_docling_text"})
    model = model_of(
        "granite_docling",
        vision_config=vision,
        text_config=text,
        pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return model, processor


def gemma4() -> tuple[Any, Any]:
    """Gemma 4, which hears as well."""
    tokenizer = new_tokenizer([*CHAT, "<|video|>"], **GEMMA_4_TOKENS)
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70),
        tokenizer,
        hf.Gemma4VideoProcessor(),
        image_seq_length=70,
        chat_template=template("<|image|>"),
    )
    text = {
        "model_type": "gemma4_text",
        **LAYERS,
        **ONE_GROUP,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": len(tokenizer),
    }
    vision = {**LAYERS, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64}
    audio = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
    model = model_of(
        "gemma4",
        vision_config=vision,
        audio_config={**audio, "subsampling_conv_channels": [8, 8]},
        text_config=text_config(tokenizer, **text),
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in GEMMA_4_TOKENS if name != "eoa_token"},
        eoa_token_index=tokenizer.eoa_token_id,
        **ids_of(tokenizer, video_token_id="<|video|>"),
    )
    return model, processor


def qwen2_5_omni_thinker() -> tuple[Any, Any]:
    """Qwen2.5-Omni's thinker, which hears as well."""
    names = {
        "image_token": "<|image_pad|>",
        "audio_token": "<|AUDIO|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    processor = hf.Qwen2_5OmniProcessor(
        images_of("Qwen2VLImageProcessorPil", 14),
        hf.Qwen2VLVideoProcessor(),
        hf.WhisperFeatureExtractor(feature_size=8),
        tokenizer,
        chat_template=template(QWEN_IMAGE),
    )
    audio = {
        "num_mel_bins": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "d_model": 16,
        "n_window": 4,
        "output_dim": 32,
        "max_source_positions": 16,
    }
    model = model_of(
        "qwen2_5_omni_thinker",
        vision_config={**GRID, "window_size": 56, "fullatt_block_indexes": [1]},
        audio_config=audio,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen2_5_omni_text", "rope_parameters": ROPE}),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_token_index=tokenizer.audio_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        audio_end_token_id=tokenizer.audio_eos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )
    return model, processor


TILE_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "aria": aria,
    "gemma4": gemma4,
    "granite_docling": granite_docling,
    "llava_next_video": llava_next_video,
    "pp_chart2table": pp_chart2table,
    "qianfan_ocr": qianfan_ocr,
    "qwen2_5_omni_thinker": qwen2_5_omni_thinker,
    "smolvlm": smolvlm,
    "video_llava": video_llava,
    "vipllava": vipllava,
}
