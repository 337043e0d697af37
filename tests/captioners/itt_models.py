"""Smallest real models of every kind of image-text-to-text model, each with its own processor, built from configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Florence2Processor,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    SiglipImageProcessorPil,
)

from hfcap.captioners.image_text_to_text import ImageTextToText
from hfcap.captioners.shared.tokenizers import train_tokenizer
from hfcap.recipe.blocks import TokenizerOptions
from tests.captioners.helpers import CORPUS, build, make_lively

LAYERS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA: dict[str, Any] = {"model_type": "llama", **LAYERS, "num_key_value_heads": 1}
SIZE = {"height": 32, "width": 32}

IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The template of SmolVLM's and Idefics3's repositories."""

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}<end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def new_tokenizer(special: Sequence[str] = (), **named: str) -> Any:
    """Train a tokenizer; `named` tokens become attributes, such as image_token."""
    tokenizer = train_tokenizer(TokenizerOptions(vocab_size=400, lowercase=False), CORPUS)
    if named:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            extra_special_tokens=named,
        )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def text_config(tokenizer: Any, **values: Any) -> dict[str, Any]:
    """Values of a text configuration, with the tokenizer's numbers."""
    return {
        **values,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def model_of(model_type: str, **values: Any) -> Any:
    """Build a model with lively random weights, in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **values))
    make_lively(model, 0)
    return model.eval()


def blip2() -> tuple[Any, Any]:
    """BLIP-2 with OPT."""
    processor = Blip2Processor(BlipImageProcessorPil(size=SIZE), new_tokenizer(), num_query_tokens=4)
    opt = {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, **LAYERS}
    model = model_of(
        "blip-2",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 16},
        qformer_config={**LAYERS, "encoder_hidden_size": 32, "vocab_size": 99},
        text_config=text_config(processor.tokenizer, **opt),
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    with torch.no_grad():
        model.query_tokens.copy_(torch.randn(model.query_tokens.shape, generator=torch.Generator().manual_seed(1)))
    return model, processor


def florence2() -> tuple[Any, Any]:
    """Florence-2."""
    image_processor: Any = CLIPImageProcessorPil(size=SIZE, do_center_crop=False)
    image_processor.image_seq_length = 5
    tokenizer = new_tokenizer(image_token="<image>")
    processor = Florence2Processor(image_processor, tokenizer)
    text = text_config(
        tokenizer,
        model_type="bart",
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=128,
        decoder_start_token_id=tokenizer.eos_token_id,
    )
    vision = {
        "embed_dim": [8, 16],
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 4],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 2,
        "projection_dim": 32,
        "drop_path_rate": 0.0,
    }
    model = model_of("florence2", vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id)
    with torch.no_grad():
        # Otherwise every image is captioned alike.
        model.model.multi_modal_projector.image_proj_norm.weight.fill_(6)
        for layer in model.model.language_model.decoder.layers:
            layer.encoder_attn.v_proj.weight.mul_(4)
    return model, processor


def paligemma2() -> tuple[Any, Any]:
    """PaliGemma 2: Gemma 2 caps its logits, and every other layer has a window."""
    caps = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 16}
    return paligemma("gemma2", **caps)


def paligemma(text_type: str = "gemma", **text: Any) -> tuple[Any, Any]:
    """PaliGemma with Gemma."""
    image_processor: Any = SiglipImageProcessorPil(size=SIZE)
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor, new_tokenizer())
    tokenizer = processor.tokenizer
    model = model_of(
        "paligemma",
        vision_config={"model_type": "siglip_vision_model", **LAYERS, "image_size": 32, "patch_size": 16},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": text_type, "head_dim": 16, **text}),
        projection_dim=32,
        image_token_id=processor.image_token_id,
    )
    return model, processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3, whose parts and processor SmolVLM shares."""
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<|im_start|>"]
    tokenizer = new_tokenizer(special)
    # Splitting is on by default, as in the published repositories.
    image_processor = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    model = model_of(
        "idefics3",
        vision_config={**LAYERS, "image_size": 32, "patch_size": 8},
        text_config=text_config(tokenizer, **LLAMA),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return model, processor


def llava(text: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """LLaVA with Llama, or with another language model."""
    tokenizer = new_tokenizer(["<image>"])
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    model = model_of(
        "llava",
        vision_config={"model_type": "clip_vision_model", **LAYERS, "image_size": 32, "patch_size": 16},
        text_config=text_config(tokenizer, **(text or LLAMA)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return model, processor


def gemma3() -> tuple[Any, Any]:
    """Gemma 3, for which hfcap has no file: the generic path."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = new_tokenizer(**names)
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size=SIZE),
        tokenizer,
        image_seq_length=4,
        chat_template=QWEN_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", names["boi_token"]),
    )
    model = model_of(
        "gemma3",
        vision_config={"model_type": "siglip_vision_model", **LAYERS, "image_size": 32, "patch_size": 8},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": "gemma3_text", "head_dim": 16}),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    with torch.no_grad():
        # Otherwise the scaled embedding of the last word decides alone, and every image is captioned alike.
        model.get_input_embeddings().weight.mul_(0.1)
        model.model.multi_modal_projector.mm_input_projection_weight.mul_(4)
    return model, processor


class QwenProcessor(Qwen2VLProcessor):
    """Qwen's processor without its video processor, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


def _qwen(model_type: str, **vision: Any) -> tuple[Any, Any]:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = new_tokenizer(special)
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 112 * 112}, patch_size=14
    )
    processor = QwenProcessor(image_processor, tokenizer, QWEN_TEMPLATE)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    model = model_of(
        model_type,
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, **vision},
        text_config=text_config(tokenizer, **LLAMA | {"model_type": f"{model_type}_text", "rope_parameters": rope}),
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in ids.items()},
    )
    return model, processor


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL."""
    return _qwen("qwen2_vl", embed_dim=32, hidden_size=32, mlp_ratio=2)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL, with windows in its vision transformer."""
    return _qwen(
        "qwen2_5_vl",
        hidden_size=32,
        intermediate_size=64,
        out_hidden_size=32,
        window_size=56,
        fullatt_block_indexes=[1],
    )


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "blip-2": blip2,
    "florence2": florence2,
    "paligemma": paligemma,
    "paligemma2": paligemma2,
    "idefics3": idefics3,
    "llava": llava,
    "gemma3": gemma3,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
}
PROMPTS = {
    "git": "a picture of",
    "blip-2": "a picture of",
    "florence2": "<CAPTION>",
    "paligemma": "caption en",
    "paligemma2": "caption en",
}
IMAGE_SIZES = {"qwen2_vl": 56, "qwen2_5_vl": 84, "qwen3_vl": 64, "glm4v": 56}


def itt(name: str, prompt: str | None = None, own: bool = False) -> ImageTextToText:
    """Build a captioner of one kind, with its usual prompt unless one is given; `own`: images keep their shape."""
    prompt = PROMPTS.get(name, "what is on it?") if prompt is None else prompt
    if name == "git":
        captioner = build("image_text_to_text", prompt=prompt)
        assert isinstance(captioner, ImageTextToText)
        return captioner
    model, processor = MODELS[name]()
    return ImageTextToText(model, processor, prompt, image_size=None if own else square_of(name, model))


OWN_SQUARES = (
    "blip-2",
    "florence2",
    "paligemma",
    "paligemma2",
    "llava",
    "gemma3",
    "deepseek_vl",
    "janus",
    "kosmos-2",
    "instructblip",
)
"""Kinds whose processors make squares of all images themselves."""


def square_of(name: str, model: Any) -> int | None:
    """Side of the square that tests of the square path make of all images."""
    if name in OWN_SQUARES:
        return None
    size = getattr(model.config.vision_config, "image_size", None) or 32
    return IMAGE_SIZES.get(name, size[0] if isinstance(size, (list, tuple)) else int(size))
