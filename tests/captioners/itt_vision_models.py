"""Smallest models of kinds whose processor or vision part exists only for torchvision or timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from hfcap.captioners.image_text_to_text import ImageTextToText
from tests.captioners.helpers import make_lively
from tests.captioners.itt_models import LAYERS, LLAMA, SIZE, model_of, new_tokenizer, text_config
from tests.captioners.itt_more_models import SIGLIP, template, without_films

PIXTRAL: dict[str, Any] = {"model_type": "pixtral", **LAYERS, "image_size": 64, "patch_size": 8, "head_dim": 16}
CHAT = ["<|im_start|>", "<|im_end|>"]


def mistral3() -> tuple[Any, Any]:
    """Mistral 3, with Pixtral's vision transformer."""
    tokenizer = new_tokenizer([*CHAT, "[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    image_processor = transformers.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=SIZE16)
    processor = transformers.PixtralProcessor(
        image_processor, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template("[IMG]")
    )
    model = model_of(
        "mistral3",
        vision_config=PIXTRAL,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "mistral", "head_dim": 16}),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return model, processor


SIZE16 = {"height": 16, "width": 16}


def lighton_ocr() -> tuple[Any, Any]:
    """LightOnOCR, with Pixtral's vision transformer and Qwen3."""
    names = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer = new_tokenizer(CHAT, **names)
    image_processor = transformers.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=SIZE16)
    processor = transformers.LightOnOcrProcessor(
        image_processor, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template("<|image_pad|>")
    )
    model = model_of(
        "lighton_ocr",
        vision_config=PIXTRAL,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen3", "head_dim": 16}),
        image_token_id=tokenizer.image_token_id,
        spatial_merge_size=2,
    )
    return model, processor


def cohere2_vision() -> tuple[Any, Any]:
    """Command A Vision."""
    names = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    image_processor = transformers.Cohere2VisionImageProcessor(size=SIZE, min_patches=1, max_patches=4, patch_size=2)
    processor = transformers.Cohere2VisionProcessor(image_processor, tokenizer, chat_template=template("<|IMG_PATCH|>"))
    model = model_of(
        "cohere2_vision",
        vision_config={**SIGLIP, "patch_size": 8, "vision_use_head": False},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "cohere2", "head_dim": 16, "logit_scale": 1.0}),
        image_token_id=tokenizer.image_token_id,
        alignment_intermediate_size=32,
    )
    return model, processor


def perception_lm() -> tuple[Any, Any]:
    """Perception LM, whose vision transformer is timm's."""
    tokenizer = new_tokenizer(CHAT, image_token="<|image|>", video_token="<|video|>")
    image_processor = transformers.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=1, vision_input_type="vanilla")
    processor = without_films(transformers.PerceptionLMProcessor)(
        None, image_processor, tokenizer, patch_size=8, pooling_ratio=2, chat_template=template("<|image|>")
    )
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "do_pooling": True,
        "num_classes": 32,
        "global_pool": "map",
        "model_args": {
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 8,
            "img_size": [32, 32],
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
            "ref_feat_shape": [4, 4],
        },
    }
    model = model_of(
        "perception_lm",
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        projector_pooling_ratio=2,
    )
    return model, processor


def lfm2_vl() -> tuple[Any, Any]:
    """LFM2-VL: SigLIP 2 on patches, and a language model of convolutions and attention."""
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    image_processor = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=32, min_image_tokens=4, max_image_tokens=16, max_num_patches=64,
        do_image_splitting=False,
    )
    processor = transformers.Lfm2VlProcessor(image_processor, tokenizer, chat_template=template("<image>"))
    text = {"model_type": "lfm2", **LAYERS, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}
    model = model_of(
        "lfm2_vl",
        vision_config={"model_type": "siglip2_vision_model", **LAYERS, "patch_size": 8, "num_patches": 16,
                       "vision_use_head": False},
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=32,
    )
    return model, processor


def fast_vlm() -> tuple[Any, Any]:
    """FastVLM, whose vision part is timm's FastViT."""
    tokenizer = new_tokenizer([*CHAT, "<image>"])
    image_processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size=128)
    processor = transformers.LlavaProcessor(
        image_processor, tokenizer, patch_size=64, vision_feature_select_strategy="full", chat_template=template("<image>")
    )
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "model_args": {
            "inference_mode": False,
            "layers": [1, 1, 1, 1, 1],
            "embed_dims": [4, 8, 16, 32, 64],
        },
    }
    model = model_of(
        "fast_vlm",
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen2"}),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return model, processor


QUIET_WORDS = {"lfm2_vl"}
"""Head and embeddings are one: otherwise the last word decides alone, and every image is captioned alike."""

SEEDS = {"cohere2_vision": 1}
"""Of the weights, where those of seed 0 caption every image alike."""

def kimi_k25() -> tuple[Any, Any]:
    """Kimi K2.5 with DeepSeek V3."""
    tokenizer = new_tokenizer([*CHAT, "<|media_pad|>", "<|kimi_k25_video_placeholder|>"])
    image_processor = transformers.Kimi_K25ImageProcessor(patch_size=8, merge_size=2, max_patches=64)
    processor = without_films(transformers.Kimi_K25Processor)(
        image_processor, tokenizer, None, chat_template=template("<|media_pad|>")
    )
    text = {
        "model_type": "deepseek_v3", **LAYERS, "num_key_value_heads": 2, "moe_intermediate_size": 32,
        "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    }
    model = model_of(
        "kimi_k25",
        vision_config={**LAYERS, "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8},
        text_config=text_config(tokenizer, **text),
        projection_hidden_size=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|kimi_k25_video_placeholder|>"),
    )
    return model, processor


MUSE = ["<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>", "<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>"]


def muse_glimmer() -> tuple[Any, Any]:
    """Muse Glimmer."""
    tokenizer = new_tokenizer([*CHAT, *MUSE])
    image_processor = transformers.MuseGlimmerImageProcessor(patch_size=8, max_image_tokens=16)
    processor = without_films(transformers.MuseGlimmerProcessor)(
        image_processor, None, tokenizer, chat_template=template("<|patch|>")
    )
    text = {"model_type": "muse_glimmer_text", **LAYERS, "num_key_value_heads": 1, "head_dim": 16}
    model = model_of(
        "muse_glimmer",
        vision_config={"model_type": "muse_glimmer_vision", **LAYERS, "patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8,
                       "max_position_embeddings": 64},
        text_config=text_config(tokenizer, **text),
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<|patch|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    return model, processor


def minimax_m3_vl() -> tuple[Any, Any]:
    """MiniMax M3."""
    names = ["]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["]
    tokenizer = new_tokenizer([*CHAT, *names])
    image_processor = transformers.MiniMaxM3VLImageProcessor(
        patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    processor = without_films(transformers.MiniMaxM3VLProcessor)(
        image_processor, tokenizer, None, chat_template=template("]<]image[>[")
    )
    text = {
        "model_type": "minimax_m3_vl_text", **LAYERS, "num_key_value_heads": 1, "head_dim": 16, "rotary_dim": 8,
        "num_experts_per_tok": 2, "num_local_experts": 4, "dense_intermediate_size": 32, "shared_intermediate_size": 32,
        "index_n_heads": 1, "index_head_dim": 16, "index_block_size": 8, "index_topk_blocks": 8,
    }
    model = model_of(
        "minimax_m3_vl",
        vision_config={**LAYERS, "image_size": 64, "patch_size": 8},
        text_config=text_config(tokenizer, **text),
        projector_hidden_size=32,
        image_token_index=tokenizer.convert_tokens_to_ids("]<]image[>["),
        video_token_index=tokenizer.convert_tokens_to_ids("]<]video[>["),
    )
    return model, processor


def mistral_large4() -> tuple[Any, Any]:
    """Mistral Large 4."""
    tokenizer = new_tokenizer([*CHAT, "[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    image_processor = transformers.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=SIZE16)
    processor = transformers.PixtralProcessor(
        image_processor, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template("[IMG]")
    )
    text = {
        "model_type": "mistral_large4_text", **LAYERS, "num_key_value_heads": 2, "moe_intermediate_size": 32,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "index_topk": 64, "index_head_dim": 16, "index_n_heads": 2, "head_dim": 8,
    }
    model = model_of(
        "mistral_large4",
        vision_config=PIXTRAL,
        text_config=text_config(tokenizer, **text),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return model, processor


def inkling2() -> tuple[Any, Any]:
    """Inkling 2."""
    tokenizer = new_tokenizer([*CHAT, "<|unused_200054|>"])
    image_processor = transformers.Inkling2ImageProcessor(size={"height": 16, "width": 16})
    processor = transformers.Inkling2Processor(image_processor, tokenizer, chat_template=template("<|unused_200054|>"))
    text = {
        **LAYERS, "num_key_value_heads": 1, "head_dim": 16, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 1,
        "swa_head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "d_rel": 4,
        "rel_extent": 64,
    }
    text.pop("intermediate_size")
    model = model_of(
        "inkling2",
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8,
                       "projection_hidden_dim": 32, "text_hidden_size": 32, "posemb_grid_size": 8},
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.convert_tokens_to_ids("<|unused_200054|>"),
    )
    return model, processor


def gemma3n() -> tuple[Any, Any]:
    """Gemma 3n, whose vision part is a network of timm (MobileNet V5 there, a smaller one here)."""
    names = {
        "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    processor = without_films(transformers.Gemma3nProcessor)(
        None, transformers.SiglipImageProcessorPil(size={"height": 128, "width": 128}), tokenizer,
        image_seq_length=16, chat_template=template("<image_soft_token>"),
    )
    text = {
        "model_type": "gemma3n_text", **LAYERS, "num_key_value_heads": 1, "head_dim": 16, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tokenizer), "laurel_rank": 8,
    }
    model = model_of(
        "gemma3n",
        vision_config={"hidden_size": 256, "vocab_offset": len(tokenizer) + 8, "vocab_size": 8,
                       "architecture": "test_efficientnet"},
        audio_config={"hidden_size": 16, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2,
                      "vocab_offset": len(tokenizer) + 16, "vocab_size": 8, "input_feat_size": 32,
                      "sscp_conv_channel_size": [8, 8]},
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        vision_soft_tokens_per_image=16,
    )
    return model, processor


def inkling() -> tuple[Any, Any]:
    """Inkling."""
    names = ["<|unused_200054|>", "<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>"]
    tokenizer = new_tokenizer([*CHAT, *names])
    image_processor = transformers.InklingImageProcessor(size={"height": 16, "width": 16})
    processor = without_films(transformers.InklingProcessor)(
        None, image_processor, tokenizer, chat_template=template("<|unused_200054|>")
    )
    text = {
        **LAYERS, "num_key_value_heads": 1, "head_dim": 16, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 1,
        "swa_head_dim": 16, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "d_rel": 4,
        "rel_extent": 64, "n_shared_experts": 1, "logits_mup_width_multiplier": 1.0,
    }
    model = model_of(
        "inkling_mm_model",
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16,
                       "text_hidden_size": 32},
        audio_config={"text_hidden_size": 32, "n_mel_bins": 8, "mel_vocab_size": 8},
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.convert_tokens_to_ids("<|unused_200054|>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|unused_200053|>"),
        image_bos_token_id=tokenizer.convert_tokens_to_ids("<|content_image|>"),
        audio_bos_token_id=tokenizer.convert_tokens_to_ids("<|content_audio_input|>"),
    )
    return model, processor


def muse_spark() -> tuple[Any, Any]:
    """Muse Spark."""
    tokenizer = new_tokenizer([*CHAT, *MUSE, "<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>"])
    image_processor = transformers.MuseGlimmerImageProcessor(patch_size=8, max_image_tokens=16)
    processor = without_films(transformers.MuseSparkProcessor)(
        image_processor, None, tokenizer, None, chat_template=template("<|patch|>")
    )
    text = {
        "model_type": "muse_spark_text", **LAYERS, "num_key_value_heads": 1, "head_dim": 16, "moe_intermediate_size": 32,
        "num_local_experts": 4, "num_experts_per_tok": 2, "moe_hidden_size": 32,
    }
    model = model_of(
        "muse_spark",
        vision_config={"model_type": "muse_spark_vision", **LAYERS, "patch_size": 8, "pos_emb_height": 8,
                       "pos_emb_width": 8, "max_position_embeddings": 64},
        audio_config={"model_type": "muse_spark_audio", "hidden_sizes": [8, 8, 8, 8]},
        text_config=text_config(tokenizer, **text),
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=tokenizer.convert_tokens_to_ids("<|patch|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio|>"),
    )
    return model, processor


def gemma4_unified() -> tuple[Any, Any]:
    """Gemma 4 without an image encoder: patches go straight into the language model."""
    names = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }
    tokenizer = new_tokenizer([*CHAT, "<|video|>"], **names)
    image_processor = transformers.Gemma4UnifiedImageProcessor(patch_size=4, max_soft_tokens=70)
    processor = without_films(transformers.Gemma4UnifiedProcessor)(
        None, image_processor, tokenizer, None, image_seq_length=70, chat_template=template("<|image|>")
    )
    text = {
        "model_type": "gemma4_unified_text", **LAYERS, "num_key_value_heads": 1, "head_dim": 16,
        "global_head_dim": 16, "num_global_key_value_heads": 1,
    }
    model = model_of(
        "gemma4_unified",
        vision_config={"model_type": "gemma4_unified_vision", "patch_size": 4, "mm_embed_dim": 32, "mm_posemb_size": 64,
                       "output_proj_dims": 32},
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        boi_token_id=tokenizer.boi_token_id, eoi_token_id=tokenizer.eoi_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    return model, processor


def minicpm_ocr() -> tuple[Any, Any]:
    """MiniCPM-OCR with Qwen 3.5."""
    names = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
        "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    image_processor = transformers.MiniCPMOcrImageProcessor(
        patch_size=8, scale_resolution=32, slice_mode=False, use_image_id=False
    )
    films = type("Films", (), {"slice_mode": False, "downsample_mode": "4x"})()
    processor = without_films(transformers.MiniCPMOcrProcessor)(
        image_processor, films, tokenizer, chat_template=template("<|image_pad|>")
    )
    text = {
        "model_type": "qwen3_5_text", **LAYERS, "num_key_value_heads": 1, "head_dim": 16,
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3],
                            "partial_rotary_factor": 1.0},
    }
    model = model_of(
        "minicpm_ocr",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8, "insert_layer_id": 0},
        insert_layer_id=0,
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return model, processor


VISION_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "mistral3": mistral3,
    "lighton_ocr": lighton_ocr,
    "cohere2_vision": cohere2_vision,
    "perception_lm": perception_lm,
    "lfm2_vl": lfm2_vl,
    "fast_vlm": fast_vlm,
    "kimi_k25": kimi_k25,
    "muse_glimmer": muse_glimmer,
    "minimax_m3_vl": minimax_m3_vl,
    "mistral_large4": mistral_large4,
    "inkling2": inkling2,
    "gemma3n": gemma3n,
    "inkling_mm_model": inkling,
    "muse_spark": muse_spark,
    "gemma4_unified": gemma4_unified,
    "minicpm_ocr": minicpm_ocr,
}


def of_vision(name: str) -> ImageTextToText:
    """One of VISION_MODELS as a captioner, its images loud enough to be told apart."""
    model, processor = VISION_MODELS[name]()
    if name in SEEDS:
        make_lively(model, SEEDS[name])
    if name in QUIET_WORDS:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(0.1)
    image_size = None if name in ("fast_vlm", "perception_lm", "gemma3n") else 32
    return ImageTextToText(model, processor, "what is it", image_size=image_size)
