"""Models with random weights of the true size, and captions of COCO's lengths, for the speed benchmarks.

Weights do not change how long a step takes, so random ones do.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPProcessor,
    CLIPVisionConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from hfcap.captioners.base import Captioner
from hfcap.captioners.blip import Blip
from hfcap.captioners.clip_prefix import ClipPrefix
from hfcap.captioners.published.modeling_clip_prefix import ClipPrefixConfig, ClipPrefixForConditionalGeneration
from hfcap.captioners.shared.pretrained import new_image_processor
from hfcap.captioners.vit_gpt2 import VitGpt2
from hfcap.environment import prepare_processor

FAMILIES = ("blip", "vit_gpt2", "clip_prefix")
START, END, PAD = 1, 2, 0
COCO = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco" / "captions.json"
WORDS_OF_COCO = {
    **{7: 91, 8: 2071, 9: 2774, 10: 2717, 11: 1929, 12: 1249, 13: 697, 14: 388, 15: 224, 16: 138, 17: 95, 18: 63},
    **{19: 51, 20: 27, 21: 24, 22: 9, 23: 8, 24: 7, 25: 6, 26: 3},
}
"""Captions of 2,515 COCO images by number of words: used where the captions themselves are not at hand."""

_SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def build_model(family: str, size: str) -> Any:
    """Return a transformers model with random weights: BLIP-base 384, ViT-B/16 224 + GPT-2, CLIP ViT-B/32 + GPT-2."""
    torch.manual_seed(0)
    small = size == "small"
    special: dict[str, Any] = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    gpt2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000} if small else {}
    if family == "blip":
        vision: dict[str, Any] = {**_SMALL, "image_size": 64} if small else {"image_size": 384}
        text: dict[str, Any] = (
            {**_SMALL, "encoder_hidden_size": 64, "vocab_size": 1000} if small else {"vocab_size": 30524}
        )
        config: Any = BlipConfig(
            vision_config={**vision, "initializer_range": 0.02}, text_config={**text, **special, "sep_token_id": END}
        )
        return BlipForConditionalGeneration(config)
    if family == "vit_gpt2":
        encoder = ViTConfig(**(_SMALL if small else {}), image_size=64 if small else 224)
        decoder = GPT2Config(**gpt2, **special, add_cross_attention=True)
        joined: Any = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        joined.decoder_start_token_id, joined.pad_token_id, joined.eos_token_id = START, PAD, END
        return VisionEncoderDecoderModel(joined)
    clip = CLIPVisionConfig(**(_SMALL if small else {}), image_size=64 if small else 224, patch_size=32)
    width = clip.hidden_size
    return ClipPrefixForConditionalGeneration(
        ClipPrefixConfig(vision_config=clip, text_config=GPT2Config(**gpt2), vision_width=width, **special)
    )


def vocabulary_size(model: Any) -> int:
    """Number of tokens the model chooses from."""
    config = model.config
    text: Any = config.decoder if hasattr(config, "decoder") else config.text_config
    return int(text.vocab_size)


def image_size(family: str, size: str) -> int:
    """Side of the square images the model takes."""
    return 64 if size == "small" else {"blip": 384}.get(family, 224)


def word_tokenizer(model: Any) -> Any:
    """A tokenizer with one word per token of the model."""
    words = {"<pad>": PAD, "<start>": START, "<end>": END}
    words |= {f"w{number}": number for number in range(len(words), vocabulary_size(model))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def as_captioner(family: str, model: Any, size: str) -> Captioner:
    """Wrap the model as hfcap does."""
    tokenizer, processor = word_tokenizer(model), new_image_processor(image_size(family, size))
    if family == "blip":
        return Blip(model, BlipProcessor(processor, tokenizer))
    return (VitGpt2 if family == "vit_gpt2" else ClipPrefix)(model, CLIPProcessor(processor, tokenizer))


def caption_lengths(count: int, seed: int = 0) -> list[int]:
    """Draw token counts of COCO captions; the closing full stop is a token of its own."""
    if COCO.is_file():
        rows = json.loads(COCO.read_text(encoding="utf-8"))["annotations"]
        population = [len(row["caption"].split()) for row in rows]
    else:
        population = [words for words, times in WORDS_OF_COCO.items() for _ in range(times)]
    return [length + 1 for length in random.Random(seed).choices(population, k=count)]


def random_captions(model: Any, n_images: int, captions_per_image: int, seed: int = 0) -> list[list[list[int]]]:
    """Token ids of captions of COCO's lengths, without special tokens."""
    generator = random.Random(seed)
    top = vocabulary_size(model)
    lengths = iter(caption_lengths(n_images * captions_per_image, seed))
    return [
        [[generator.randrange(3, top) for _ in range(next(lengths))] for _ in range(captions_per_image)]
        for _ in range(n_images)
    ]


def prepare_process(threads: int, side: str | None) -> None:
    """Set threads, and for hfcap's side what hfcap sets; random weights need flush_denormal on both sides."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if side == "hfcap":
        prepare_processor()
