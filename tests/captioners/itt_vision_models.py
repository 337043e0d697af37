"""Smallest models of kinds whose processor or vision part exists only for torchvision or timm: for images, mostly."""

from __future__ import annotations

from typing import Any

import transformers

from tests.captioners.itt_models import LAYERS, LLAMA, SIZE, model_of, new_tokenizer, text_config
from tests.captioners.itt_more_models import SIGLIP, template

hf: Any = transformers
"""Without types: those of image processors say nothing of the settings of each."""
GEMMA_4_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
CHAT = ["<|im_start|>", "<|im_end|>"]
ONE_GROUP = {"num_key_value_heads": 1, "head_dim": 16}
GRID = {"patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8}
PIXTRAL: dict[str, Any] = {"model_type": "pixtral", **LAYERS, "image_size": 64, "patch_size": 8, "head_dim": 16}


def ids_of(tokenizer: Any, **tokens: str) -> dict[str, int]:
    """Numbers of tokens, under the names that a config has for them."""
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in tokens.items()}


def _pixtral(processor_class: Any, tokenizer: Any, placeholder: str) -> Any:
    image_processor = hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 16, "width": 16})
    return processor_class(
        image_processor, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template(placeholder)
    )


def mistral3() -> tuple[Any, Any]:
    """Mistral 3, with Pixtral's vision transformer."""
    tokenizer = new_tokenizer([*CHAT, "[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    model = model_of(
        "mistral3",
        vision_config=PIXTRAL,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "mistral", "head_dim": 16}),
        spatial_merge_size=2,
        **ids_of(tokenizer, image_token_index="[IMG]"),
    )
    return model, _pixtral(hf.PixtralProcessor, tokenizer, "[IMG]")


def mistral_large4() -> tuple[Any, Any]:
    """Mistral Large 4: latent attention that looks at chosen tokens, and experts."""
    tokenizer = new_tokenizer([*CHAT, "[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    text = {
        "model_type": "mistral_large4_text",
        **LAYERS,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "index_topk": 64,
        "index_head_dim": 16,
        "index_n_heads": 2,
    }
    model = model_of(
        "mistral_large4",
        vision_config=PIXTRAL,
        text_config=text_config(tokenizer, **text),
        spatial_merge_size=2,
        **ids_of(tokenizer, image_token_index="[IMG]"),
    )
    return model, _pixtral(hf.PixtralProcessor, tokenizer, "[IMG]")


def lighton_ocr() -> tuple[Any, Any]:
    """LightOnOCR, with Pixtral's vision transformer and Qwen3."""
    names = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer = new_tokenizer(CHAT, **names)
    model = model_of(
        "lighton_ocr",
        vision_config=PIXTRAL,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen3", "head_dim": 16}),
        image_token_id=tokenizer.image_token_id,
        spatial_merge_size=2,
    )
    return model, _pixtral(hf.LightOnOcrProcessor, tokenizer, "<|image_pad|>")


def cohere2_vision() -> tuple[Any, Any]:
    """Command A Vision."""
    names = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    image_processor = hf.Cohere2VisionImageProcessor(size=SIZE, min_patches=1, max_patches=4, patch_size=2)
    processor = hf.Cohere2VisionProcessor(image_processor, tokenizer, chat_template=template("<|IMG_PATCH|>"))
    model = model_of(
        "cohere2_vision",
        vision_config={**SIGLIP, "patch_size": 8, "vision_use_head": False},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "cohere2", "head_dim": 16, "logit_scale": 1.0}),
        image_token_id=tokenizer.image_token_id,
        alignment_intermediate_size=32,
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
    image_processor = hf.Lfm2VlImageProcessor(
        encoder_patch_size=8,
        tile_size=32,
        min_image_tokens=4,
        max_image_tokens=16,
        max_num_patches=64,
        do_image_splitting=False,
    )
    processor = hf.Lfm2VlProcessor(image_processor, tokenizer, chat_template=template("<image>"))
    vision = {"model_type": "siglip2_vision_model", **LAYERS, "patch_size": 8, "num_patches": 16}
    text = {"model_type": "lfm2", **LAYERS, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}
    model = model_of(
        "lfm2_vl",
        vision_config={**vision, "vision_use_head": False},
        text_config=text_config(tokenizer, **text),
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=32,
    )
    return model, processor


def fast_vlm() -> tuple[Any, Any]:
    """FastVLM, whose vision part is timm's FastViT."""
    tokenizer = new_tokenizer([*CHAT, "<image>"])
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size=128),
        tokenizer,
        patch_size=64,
        vision_feature_select_strategy="full",
        chat_template=template("<image>"),
    )
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "fastvit_mci3",
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "model_args": {"inference_mode": False, "layers": [1, 1, 1, 1, 1], "embed_dims": [4, 8, 16, 32, 64]},
    }
    model = model_of(
        "fast_vlm",
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "qwen2"}),
        **ids_of(tokenizer, image_token_id="<image>"),
    )
    return model, processor


def perception_lm() -> tuple[Any, Any]:
    """Perception LM, whose vision transformer is timm's."""
    tokenizer = new_tokenizer(CHAT, image_token="<|image|>", video_token="<|video|>")
    processor = hf.PerceptionLMProcessor(
        hf.PerceptionLMVideoProcessor(),
        hf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=1, vision_input_type="vanilla"),
        tokenizer,
        patch_size=8,
        pooling_ratio=2,
        chat_template=template("<|image|>"),
    )
    network = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "patch_size": 8,
        "img_size": [32, 32],
        "global_pool": "",
        "use_post_transformer_norm": False,
        "init_values": 0.1,
        "ref_feat_shape": [4, 4],
    }
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "do_pooling": True,
        "num_classes": 32,
        "global_pool": "map",
        "model_args": network,
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


def inkling2() -> tuple[Any, Any]:
    """Inkling 2."""
    tokenizer = new_tokenizer([*CHAT, "<|unused_200054|>"])
    image_processor = hf.Inkling2ImageProcessor(size={"height": 16, "width": 16})
    processor = hf.Inkling2Processor(image_processor, tokenizer, chat_template=template("<|unused_200054|>"))
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **ONE_GROUP,
        "unpadded_vocab_size": len(tokenizer),
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 16,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "d_rel": 4,
        "rel_extent": 64,
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "projection_hidden_dim": 32,
        "text_hidden_size": 32,
        "posemb_grid_size": 8,
    }
    model = model_of(
        "inkling2",
        vision_config=vision,
        text_config=text_config(tokenizer, **text),
        **ids_of(tokenizer, image_token_id="<|unused_200054|>"),
    )
    return model, processor


def kimi_k25() -> tuple[Any, Any]:
    """Kimi K2.5 with DeepSeek V3."""
    tokenizer = new_tokenizer([*CHAT, "<|media_pad|>", "<|kimi_k25_video_placeholder|>"])
    image_processor = hf.Kimi_K25ImageProcessor(patch_size=8, merge_size=2, max_patches=64)
    processor = hf.Kimi_K25Processor(
        image_processor, tokenizer, hf.Kimi_K25VideoProcessor(), chat_template=template("<|media_pad|>")
    )
    text = {
        "model_type": "deepseek_v3",
        **LAYERS,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    }
    model = model_of(
        "kimi_k25",
        vision_config={**LAYERS, **GRID},
        text_config=text_config(tokenizer, **text),
        projection_hidden_size=32,
        **ids_of(tokenizer, image_token_id="<|media_pad|>", video_token_id="<|kimi_k25_video_placeholder|>"),
    )
    return model, processor


MUSE = [
    "<|patch|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|video|>",
    "<|vid_frame_separator|>",
    "<|vid_start|>",
    "<|vid_end|>",
]
MUSE_IDS = {"image_token_id": "<|patch|>", "video_token_id": "<|video|>"}


def muse_glimmer() -> tuple[Any, Any]:
    """Muse Glimmer."""
    tokenizer = new_tokenizer([*CHAT, *MUSE])
    processor = hf.MuseGlimmerProcessor(
        hf.MuseGlimmerImageProcessor(patch_size=8, max_image_tokens=16),
        hf.MuseGlimmerVideoProcessor(),
        tokenizer,
        chat_template=template("<|patch|>"),
    )
    model = model_of(
        "muse_glimmer",
        vision_config={"model_type": "muse_glimmer_vision", **LAYERS, **GRID, "max_position_embeddings": 64},
        text_config=text_config(tokenizer, model_type="muse_glimmer_text", **LAYERS, **ONE_GROUP),
        out_hidden_size=128,
        projector_hidden_size=32,
        **ids_of(tokenizer, **MUSE_IDS),
    )
    return model, processor
