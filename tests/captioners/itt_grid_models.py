"""Smallest models of kinds that cut images into the patches of a grid, as Qwen-VL and GLM-V do."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.captioners.itt_models import LAYERS, LLAMA, model_of, new_tokenizer, text_config
from tests.captioners.itt_more_models import ROPE, template, without_films
from tests.captioners.itt_vision_models import CHAT, hf, ids_of

QWEN = [*CHAT, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
GRID: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
}
"""A vision transformer on the patches of a grid."""
PLACES = {"num_position_embeddings": 16}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
}


def tokenizer_of(class_name: str, special: Sequence[str]) -> Any:
    """Train a tokenizer of the class that transformers takes for a model type, whatever was saved."""
    with tempfile.TemporaryDirectory() as folder:
        new_tokenizer(special).save_pretrained(folder)
        return getattr(hf, class_name).from_pretrained(folder)


def with_films(
    processor_class: Any, film_class: str, *parts: Any, film_values: Mapping[str, Any] | None = None, **values: Any
) -> Any:
    """Build a processor with its part for films, which needs torchvision; without it where that is missing."""
    if importlib.util.find_spec("torchvision") is None:
        return without_films(processor_class)(*parts, None, **values)
    return processor_class(*parts, getattr(hf, film_class)(**(film_values or {})), **values)


def images_of(name: str, patch_size: int, **values: Any) -> Any:
    """Image processor of patches, of which two by two are merged; images of 4 to 64 patches."""
    side = patch_size * 2
    return getattr(hf, name)(
        patch_size=patch_size, size={"shortest_edge": side * side, "longest_edge": 16 * side * side}, **values
    )


def _qwen(model_type: str, text: dict[str, Any], vision: dict[str, Any], patch_size: int = 16) -> tuple[Any, Any]:
    """A model with the processor of Qwen3-VL."""
    kind = "Qwen2Tokenizer" if model_type == "qwen3_vl_moe" else "Qwen3_5Tokenizer"
    tokenizer = tokenizer_of(kind, QWEN)
    processor = with_films(
        hf.Qwen3VLProcessor,
        "Qwen3VLVideoProcessor",
        images_of("Qwen2VLImageProcessorPil", patch_size),
        tokenizer,
        chat_template=template(QWEN_IMAGE),
    )
    model = model_of(
        model_type,
        vision_config=vision,
        text_config=text_config(tokenizer, **LLAMA | text),
        **ids_of(tokenizer, **QWEN_IDS),
    )
    return model, processor


def qwen3_vl_moe() -> tuple[Any, Any]:
    """Qwen3-VL with experts."""
    text = {"model_type": "qwen3_vl_moe_text", "head_dim": 16, "rope_parameters": ROPE, **EXPERTS}
    return _qwen("qwen3_vl_moe", text, {**GRID, **PLACES, "deepstack_visual_indexes": [0]})


def qwen3_5_moe() -> tuple[Any, Any]:
    """Qwen 3.5 with experts: a layer with linear attention, and one with full attention."""
    layers = ["linear_attention", "full_attention"]
    text = {"model_type": "qwen3_5_moe_text", **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}
    return _qwen("qwen3_5_moe", {**text, "layer_types": layers}, {**GRID, **PLACES})


def qwen4_exp() -> tuple[Any, Any]:
    """Qwen4-Exp: linear attention, and attention to chosen tokens."""
    layers = ["linear_attention", "indexed_attention"]
    text = {"model_type": "qwen4_exp_text", **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}
    indexer = {"n_heads": 2, "kv_heads": 1, "head_dim": 16, "budget": 64, "compress_ratio": 4}
    text |= {"hc_count": 2, "hc_lowrank": 8, **{f"indexer_{name}": value for name, value in indexer.items()}}
    return _qwen("qwen4_exp", {**text, "layer_types": layers}, {**GRID, **PLACES})


def lfm3_vl() -> tuple[Any, Any]:
    """LFM3-VL: convolutions and attention, for images and for words."""
    tokenizer = new_tokenizer(QWEN)
    processor = with_films(
        hf.Lfm3VlProcessor,
        "Qwen3VLVideoProcessor",
        images_of("Qwen2VLImageProcessorPil", 16),
        tokenizer,
        chat_template=template(QWEN_IMAGE),
    )
    layers = ["conv", "full_attention"]
    model = model_of(
        "lfm3_vl",
        vision_config={**LAYERS, "num_key_value_heads": 1, "layer_types": layers},
        text_config=text_config(
            tokenizer, model_type="lfm3", **LAYERS, num_key_value_heads=1, layer_types=layers, head_dim=16
        ),
        projector_hidden_size=32,
        **ids_of(tokenizer, **QWEN_IDS),
    )
    return model, processor


def exaone4_5() -> tuple[Any, Any]:
    """EXAONE 4.5, with windows in its vision transformer."""
    tokenizer = new_tokenizer(QWEN)
    processor = with_films(
        hf.Exaone4_5_Processor,
        "Qwen2VLVideoProcessor",
        images_of("Qwen2VLImageProcessorPil", 14),
        tokenizer,
        chat_template=template(QWEN_IMAGE),
    )
    model = model_of(
        "exaone4_5",
        vision_config={**GRID, "num_key_value_heads": 1, "window_size": 56, "fullatt_block_indexes": [1]},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "exaone4", "head_dim": 16}),
        **ids_of(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    return model, processor


def hyperclovax_vision_v2() -> tuple[Any, Any]:
    """HyperCLOVA X SEED Think, with the vision transformer of Qwen2.5-VL."""
    tokenizer = tokenizer_of("GPT2Tokenizer", QWEN)
    processor = with_films(
        hf.HyperCLOVAXVisionV2Processor,
        "Qwen2VLVideoProcessor",
        images_of("Qwen2VLImageProcessorPil", 14),
        tokenizer,
        chat_template=template(QWEN_IMAGE),
    )
    model = model_of(
        "hyperclovax_vision_v2",
        vision_config={
            "model_type": "qwen2_5_vl_vision",
            **GRID,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "hyperclovax", "head_dim": 16}),
        **ids_of(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )
    return model, processor


def cohere_compass() -> tuple[Any, Any]:
    """Cohere's North Micro Vision."""
    special = ["<|IMAGE_PAD|>", "<|VIDEO_PAD|>", "<|VISION_START|>", "<|VISION_END|>"]
    tokenizer = new_tokenizer([*CHAT, *special])
    processor = with_films(
        hf.CohereCompassProcessor,
        "CohereCompassVideoProcessor",
        images_of("CohereCompassImageProcessorPil", 16),
        tokenizer,
        chat_template=template("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    )
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {"model_type": "cohere_compass_text", "rope_parameters": {"full_attention": ROPE}}
    model = model_of(
        "cohere_compass",
        vision_config={**GRID, **PLACES, "deepstack_visual_indexes": [0]},
        text_config=text_config(tokenizer, **LLAMA | text),
        **ids_of(tokenizer, **dict(zip(names, special, strict=True))),
    )
    return model, processor


GLM = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
GLM_IDS = dict(
    zip(
        (
            "image_token_id",
            "video_token_id",
            "image_start_token_id",
            "image_end_token_id",
            "video_start_token_id",
            "video_end_token_id",
        ),
        GLM,
        strict=True,
    )
)


def _glm(model_type: str, text: dict[str, Any], kind: str, vision_type: str, images: str = "") -> tuple[Any, Any]:
    """A model with the processor of GLM-4.1V or GLM-4.6V; the pixels of a patch count once for each of two frames."""
    tokenizer = new_tokenizer([*CHAT, *GLM])
    image_processor: Any = getattr(hf, f"{images or kind}ImageProcessorPil")(
        size={"shortest_edge": 28 * 28 * 2, "longest_edge": 112 * 112 * 2}
    )
    processor = with_films(
        getattr(hf, f"{kind}Processor"),
        f"{images or kind}VideoProcessor",
        image_processor,
        tokenizer,
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    rope = {"rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}}
    model = model_of(
        model_type,
        vision_config={**GRID, "image_size": 56, "model_type": vision_type},
        text_config=text_config(tokenizer, **LLAMA | rope | text),
        **ids_of(tokenizer, **GLM_IDS),
    )
    return model, processor


def glm46v() -> tuple[Any, Any]:
    """GLM-4.6V Flash."""
    return _glm("glm46v", {"model_type": "glm4v_text"}, "Glm46V", "glm4v_vision")


def glm4v_moe() -> tuple[Any, Any]:
    """GLM-4.5V: experts from the second layer on."""
    text = {
        "model_type": "glm4v_moe_text",
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    return _glm("glm4v_moe", text, "Glm4v", "glm4v_moe_vision")


def glm_ocr() -> tuple[Any, Any]:
    """GLM-OCR, with the processor of GLM-4.6V as in its repository."""
    return _glm("glm_ocr", {"model_type": "glm_ocr_text"}, "Glm46V", "glm_ocr_vision")


def glmga() -> tuple[Any, Any]:
    """GLM-GA: GLM-4.6V with image and film processors of its own."""
    return _glm("glmga", {"model_type": "glm4v_text"}, "Glm46V", "glm4v_vision", "Glmga")


def paddleocr_vl() -> tuple[Any, Any]:
    """PaddleOCR-VL."""
    tokenizer = new_tokenizer([*QWEN[:4], "<|video_pad|>"], image_token="<|image_pad|>")
    processor = hf.PaddleOCRVLProcessor(
        images_of("PaddleOCRVLImageProcessorPil", 14), tokenizer, chat_template=template(QWEN_IMAGE)
    )
    text = {"model_type": "paddleocr_vl_text", "head_dim": 16, "rope_parameters": ROPE}
    model = model_of(
        "paddleocr_vl",
        vision_config={**LAYERS, "image_size": 56},
        text_config=text_config(tokenizer, **LLAMA | text),
        **ids_of(tokenizer, **QWEN_IDS),
    )
    return model, processor


def hunyuan_vl() -> tuple[Any, Any]:
    """HunyuanOCR: tokens for the ends of the image's lines."""
    names = {"image_token": "<img_pad>", "image_start_token": "<img>", "image_end_token": "</img>"}
    tokenizer = new_tokenizer([*CHAT, "<img_newline>"], **names)
    processor = hf.HunYuanVLProcessor(
        images_of("HunYuanVLImageProcessorPil", 16), tokenizer, chat_template=template("<img><img_pad></img>")
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
    text = {"model_type": "hunyuan_vl_text", "head_dim": 16, "rope_parameters": rope}
    model = model_of(
        "hunyuan_vl",
        vision_config={**LAYERS, "out_hidden_size": 32, "max_image_size": 64, "text_hidden_size": 32},
        text_config=text_config(tokenizer, **LLAMA | text),
        image_token_id=tokenizer.image_token_id,
        **ids_of(tokenizer, im_start_id="<img>", im_end_id="</img>", im_newline_id="<img_newline>"),
    )
    return model, processor


def ernie4_5_vl_moe() -> tuple[Any, Any]:
    """ERNIE 4.5 VL: experts of their own for words and for images."""
    names = {
        "image_token": "<|IMAGE_PLACEHOLDER|>",
        "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>",
        "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>",
        "video_end_token": "<|VIDEO_END|>",
    }
    tokenizer = new_tokenizer(CHAT, **names)
    processor = with_films(
        hf.Ernie4_5_VLMoeProcessor,
        "Ernie4_5_VLMoeVideoProcessor",
        images_of("Ernie4_5_VLMoeImageProcessorPil", 14),
        tokenizer,
        film_values={"draw_on_frames": False},
        chat_template=template("<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    )
    text = {
        "model_type": "ernie4_5_vl_moe_text",
        "moe_intermediate_size": [32, 32],
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 1,
        "rope_parameters": {**ROPE, "mrope_section": [3, 3, 2]},
    }
    model = model_of(
        "ernie4_5_vl_moe",
        vision_config=GRID,
        text_config=text_config(tokenizer, **LLAMA | text),
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in names},
    )
    return model, processor


GRID_MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "cohere_compass": cohere_compass,
    "ernie4_5_vl_moe": ernie4_5_vl_moe,
    "exaone4_5": exaone4_5,
    "glm46v": glm46v,
    "glm4v_moe": glm4v_moe,
    "glm_ocr": glm_ocr,
    "glmga": glmga,
    "hyperclovax_vision_v2": hyperclovax_vision_v2,
    "hunyuan_vl": hunyuan_vl,
    "lfm3_vl": lfm3_vl,
    "paddleocr_vl": paddleocr_vl,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen4_exp": qwen4_exp,
}
