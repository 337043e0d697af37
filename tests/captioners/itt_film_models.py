"""Smallest models of kinds whose processors exist only for torchvision and take films or sounds as well as images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hfcap.captioners.image_text_to_text import ImageTextToText
from tests.captioners.helpers import make_lively
from tests.captioners.itt_grid_models import GRID_MODELS
from tests.captioners.itt_models import LAYERS, model_of, new_tokenizer, text_config
from tests.captioners.itt_more_models import template
from tests.captioners.itt_tile_models import TILE_MODELS
from tests.captioners.itt_vision_models import (
    CHAT,
    GEMMA_4_TOKENS,
    GRID,
    MUSE,
    MUSE_IDS,
    ONE_GROUP,
    cohere2_vision,
    fast_vlm,
    hf,
    ids_of,
    inkling2,
    kimi_k25,
    lfm2_vl,
    lighton_ocr,
    mistral3,
    mistral_large4,
    muse_glimmer,
    perception_lm,
)


def muse_spark() -> tuple[Any, Any]:
    """Muse Spark, which hears as well."""
    tokenizer = new_tokenizer([*CHAT, *MUSE, "<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>"])
    processor = hf.MuseSparkProcessor(
        hf.MuseGlimmerImageProcessor(patch_size=8, max_image_tokens=16),
        hf.MuseGlimmerVideoProcessor(),
        tokenizer,
        hf.MuseSparkFeatureExtractor(),
        chat_template=template("<|patch|>"),
    )
    text = {
        "model_type": "muse_spark_text",
        **LAYERS,
        **ONE_GROUP,
        "moe_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 32,
    }
    model = model_of(
        "muse_spark",
        vision_config={"model_type": "muse_spark_vision", **LAYERS, **GRID, "max_position_embeddings": 64},
        audio_config={"model_type": "muse_spark_audio", "hidden_sizes": [8, 8, 8, 8], "out_hidden_size": 32},
        text_config=text_config(tokenizer, **text),
        out_hidden_size=128,
        projector_hidden_size=32,
        **ids_of(tokenizer, **MUSE_IDS, audio_token_id="<|audio|>"),
    )
    return model, processor


def minimax_m3_vl() -> tuple[Any, Any]:
    """MiniMax M3."""
    image, film = "]<]image[>[", "]<]video[>["
    tokenizer = new_tokenizer([*CHAT, image, film, "]<]start of image[>[", "]<]end of image[>["])
    processor = hf.MiniMaxM3VLProcessor(
        hf.MiniMaxM3VLImageProcessor(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}),
        tokenizer,
        hf.MiniMaxM3VLVideoProcessor(),
        chat_template=template(image),
    )
    text = {
        "model_type": "minimax_m3_vl_text",
        **LAYERS,
        **ONE_GROUP,
        "rotary_dim": 8,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "dense_intermediate_size": 32,
        "shared_intermediate_size": 32,
        "index_n_heads": 1,
        "index_head_dim": 16,
        "index_block_size": 8,
        "index_topk_blocks": 8,
    }
    model = model_of(
        "minimax_m3_vl",
        vision_config={**LAYERS, "image_size": 64, "patch_size": 8},
        text_config=text_config(tokenizer, **text),
        projector_hidden_size=32,
        **ids_of(tokenizer, image_token_index=image, video_token_index=film),
    )
    return model, processor


def _minicpm(model_type: str, image_class: str, name: str, film_class: str) -> tuple[Any, Any]:
    """MiniCPM with Qwen 3.5: the patches of all images stand in one long strip."""
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    settings = {"patch_size": 8, "scale_resolution": 32, "slice_mode": False, "use_image_id": False}
    processor = getattr(hf, f"{name}Processor")(
        getattr(hf, image_class)(**settings),
        getattr(hf, film_class)(),
        tokenizer,
        chat_template=template("<|image_pad|>"),
    )
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 3, 3],
        "partial_rotary_factor": 1.0,
    }
    text = {
        "model_type": "qwen3_5_text",
        **LAYERS,
        **ONE_GROUP,
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": rope,
    }
    model = model_of(
        model_type,
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8, "insert_layer_id": 0},
        insert_layer_id=0,
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return model, processor


def minicpm_ocr() -> tuple[Any, Any]:
    """MiniCPM-OCR."""
    return _minicpm("minicpm_ocr", "MiniCPMOcrImageProcessor", "MiniCPMOcr", "MiniCPMOcrVideoProcessor")


def minicpmv4_6() -> tuple[Any, Any]:
    """MiniCPM-V 4.6."""
    return _minicpm("minicpmv4_6", "MiniCPMV4_6ImageProcessorPil", "MiniCPMV4_6", "MiniCPMV4_6VideoProcessor")


def minicpmv4_7() -> tuple[Any, Any]:
    """MiniCPM-V 4.7, with the image processor of 4.6."""
    return _minicpm("minicpmv4_7", "MiniCPMV4_6ImageProcessorPil", "MiniCPMV4_7", "MiniCPMV4_6VideoProcessor")


def gemma3n() -> tuple[Any, Any]:
    """Gemma 3n, whose vision part is a network of timm (MobileNet V5 there, a smaller one here)."""
    names = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    processor = hf.Gemma3nProcessor(
        hf.Gemma3nAudioFeatureExtractor(),
        hf.SiglipImageProcessorPil(size={"height": 128, "width": 128}),
        tokenizer,
        image_seq_length=16,
        chat_template=template("<image_soft_token>"),
    )
    audio = {
        "hidden_size": 16,
        "conf_num_hidden_layers": 1,
        "conf_num_attention_heads": 2,
        "vocab_offset": len(tokenizer) + 16,
        "vocab_size": 8,
        "input_feat_size": 32,
        "sscp_conv_channel_size": [8, 8],
    }
    text = {
        "model_type": "gemma3n_text",
        **LAYERS,
        **ONE_GROUP,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": len(tokenizer),
        "laurel_rank": 8,
    }
    vision = {"hidden_size": 256, "vocab_offset": len(tokenizer) + 8, "vocab_size": 8}
    model = model_of(
        "gemma3n",
        vision_config={**vision, "architecture": "test_efficientnet"},
        audio_config=audio,
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        vision_soft_tokens_per_image=16,
    )
    return model, processor


def gemma4_unified() -> tuple[Any, Any]:
    """Gemma 4 without an image encoder: patches go straight into the language model."""
    tokenizer = new_tokenizer([*CHAT, "<|video|>"], **GEMMA_4_TOKENS)
    processor = hf.Gemma4UnifiedProcessor(
        hf.Gemma4UnifiedAudioFeatureExtractor(),
        hf.Gemma4UnifiedImageProcessor(patch_size=4, max_soft_tokens=70),
        tokenizer,
        hf.Gemma4UnifiedVideoProcessor(),
        image_seq_length=70,
        chat_template=template("<|image|>"),
    )
    vision = {"patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32}
    model = model_of(
        "gemma4_unified",
        vision_config={"model_type": "gemma4_unified_vision", **vision},
        text_config=text_config(
            tokenizer,
            model_type="gemma4_unified_text",
            **LAYERS,
            **ONE_GROUP,
            global_head_dim=16,
            num_global_key_value_heads=1,
        ),
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in GEMMA_4_TOKENS},
        **ids_of(tokenizer, video_token_id="<|video|>"),
    )
    return model, processor


def inkling() -> tuple[Any, Any]:
    """Inkling, which hears as well."""
    tokens = {
        "image_token_id": "<|unused_200054|>",
        "audio_token_id": "<|unused_200053|>",
        "image_bos_token_id": "<|content_image|>",
        "audio_bos_token_id": "<|content_audio_input|>",
    }
    tokenizer = new_tokenizer([*CHAT, *tokens.values()])
    processor = hf.InklingProcessor(
        hf.InklingFeatureExtractor(),
        hf.InklingImageProcessor(size={"height": 4, "width": 4}),
        tokenizer,
        chat_template=template("<|unused_200054|>"),
    )
    text = {
        **LAYERS,
        **ONE_GROUP,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 16,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "d_rel": 4,
        "rel_extent": 64,
        "n_shared_experts": 1,
        "logits_mup_width_multiplier": 1.0,
        "unpadded_vocab_size": len(tokenizer),
    }
    model = model_of(
        "inkling_mm_model",
        # With fewer layers than steps of scale, scipy would choose among them.
        vision_config={"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 4},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 8},
        text_config=text_config(tokenizer, **text),
        **ids_of(tokenizer, **tokens),
    )
    return model, processor


def nemotron_h_omni() -> tuple[Any, Any]:
    """Nemotron 3 Nano Omni: RADIO, and a language model of Mamba layers, attention and experts."""
    names = {"image_token": "<image>", "image_start_token": "<img>", "image_end_token": "</img>"}
    tokenizer = new_tokenizer([*CHAT, "<video>", "<so_embedding>", "<so_start>", "<so_end>"], **names)
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        hf.NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=8, min_num_patches=4, max_num_patches=64),
        hf.NemotronH_Omni_Reasoning_V3VideoProcessor(),
        tokenizer,
        hf.ParakeetFeatureExtractor(),
        chat_template=template("<image>"),
    )
    text = {
        "model_type": "nemotron_h",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        **ONE_GROUP,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
    }
    vision = {
        "model_type": "radio",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2.0,
        "patch_size": 8,
        "image_size": 32,
        "max_img_size": 64,
        "video_temporal_patch_size": 2,
    }
    model = model_of(
        "nemotron_h_omni",
        vision_config=vision,
        text_config=text_config(tokenizer, **text),
        vision_hidden_size=32,
        projector_hidden_size=32,
        image_token_id=tokenizer.image_token_id,
        **ids_of(tokenizer, video_token_id="<video>", audio_token_id="<so_embedding>"),
    )
    return model, processor


VISION_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "cohere2_vision": cohere2_vision,
    "fast_vlm": fast_vlm,
    "gemma3n": gemma3n,
    "gemma4_unified": gemma4_unified,
    "inkling2": inkling2,
    "inkling_mm_model": inkling,
    "kimi_k25": kimi_k25,
    "lfm2_vl": lfm2_vl,
    "lighton_ocr": lighton_ocr,
    "minicpm_ocr": minicpm_ocr,
    "minicpmv4_6": minicpmv4_6,
    "minicpmv4_7": minicpmv4_7,
    "minimax_m3_vl": minimax_m3_vl,
    "mistral3": mistral3,
    "mistral_large4": mistral_large4,
    "muse_glimmer": muse_glimmer,
    "muse_spark": muse_spark,
    "nemotron_h_omni": nemotron_h_omni,
    "perception_lm": perception_lm,
    **GRID_MODELS,
    **TILE_MODELS,
}
QUIET_WORDS = {"lfm2_vl", "granite_docling", "cohere_compass"}
"""Head and embeddings are one: otherwise the last word decides alone, and every image is captioned alike."""
SEEDS = {"cohere2_vision": 1, "cohere_compass": 3, "granite_docling": 2, "inkling2": 2, "minicpm_ocr": 1}
"""Of the weights, where those of seed 0 caption every image alike."""
IMAGE_SIZES = {
    "inkling_mm_model": 12,
    **dict.fromkeys(("fast_vlm", "perception_lm", "gemma3n", "pp_chart2table", "video_llava", "vipllava")),
    **dict.fromkeys(("ernie4_5_vl_moe", "exaone4_5", "glm46v", "glm4v_moe", "glm_ocr", "glmga"), 56),
    **dict.fromkeys(("hyperclovax_vision_v2", "paddleocr_vl", "qwen2_5_omni_thinker"), 56),
}
"""Where it is not 32; None for processors that make squares of all images themselves."""

NEEDS: dict[str, list[str]] = {
    "fast_vlm": ["timm"],
    "gemma3n": ["timm"],
    "perception_lm": ["timm", "torchvision"],
    "smolvlm": ["torchvision", "num2words"],
    "lighton_ocr": [],
    "aria": [],
    "granite_docling": [],
    "hunyuan_vl": [],
    "paddleocr_vl": [],
    "pp_chart2table": [],
    "qianfan_ocr": [],
    "vipllava": [],
}
"""Packages beside the core ones, where they are others than torchvision."""


def of_vision(name: str, own: bool = False) -> ImageTextToText:
    """Build a captioner of one of VISION_MODELS, its images loud enough to be told apart."""
    model, processor = VISION_MODELS[name]()
    if name in SEEDS:
        make_lively(model, SEEDS[name])
    if name in QUIET_WORDS:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.1)
    return ImageTextToText(model, processor, "what is it", image_size=None if own else IMAGE_SIZES.get(name, 32))
