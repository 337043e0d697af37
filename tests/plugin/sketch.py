"""A captioner family of somebody else, whole in this one file: any ViT-like encoder and a BERT decoder, from configs.

`tests/test_plugin.py` installs it as a package of its own; nothing in hfcap knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import nn
from transformers import BertConfig, CLIPProcessor, GenerationConfig, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vision_encoder_decoder import VisionEncoderDecoderConfig

from hfcap.captioners.base import Captioner, CardFacts
from hfcap.captioners.shared.pretrained import load_image_processor, new_image_processor, whole_model
from hfcap.captioners.shared.tokenizers import load_tokenizer, train_tokenizer, wrap_texts
from hfcap.recipe.block_base import PositiveInt
from hfcap.recipe.blocks import ModelOptions, TokenizerOptions


class SketchOptions(ModelOptions):
    """Keys of `model`."""

    pen_width: PositiveInt = 32


class Sketch(Captioner):
    """A small captioner from random weights."""

    options_class = SketchOptions
    parts = ("vision", "text")
    model_types = ()
    lora_target_modules = r"decoder\..*\.(query|key|value|dense)"
    card_facts = CardFacts("Sketch", "A sketch of a captioner.", "Sketches", "https://example.com", "@misc{sketch}")

    @classmethod
    def build(cls, options: SketchOptions, training_captions: Iterable[str]) -> Self:
        """Build from random weights."""
        tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(vocab_size=400), training_captions)
        wrap_texts(tokenizer, start=True, end=False)
        shape: dict[str, Any] = {
            "hidden_size": options.pen_width,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        ids: dict[str, Any] = {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        text = BertConfig(**shape, **ids, is_decoder=True, add_cross_attention=True, vocab_size=len(tokenizer))
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            ViTConfig(**shape, image_size=32, patch_size=16), text
        )
        config.decoder_start_token_id = tokenizer.bos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        processor = CLIPProcessor(new_image_processor(32), tokenizer)
        return cls(VisionEncoderDecoderModel(config), processor, options.prompt, assembled=True)

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved one."""
        tokenizer = load_tokenizer(location, "model.pretrained", revision, trust_remote_code)
        image_processor = load_image_processor(location, "model.pretrained", revision, trust_remote_code)
        model = whole_model(VisionEncoderDecoderModel, location, revision)
        return cls(model, CLIPProcessor(image_processor, tokenizer))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """It is tiny by nature."""
        return {"pen_width": 32}

    @property
    def start_token_id(self) -> int:
        """The tokenizer's start token."""
        return int(self.tokenizer.bos_token_id)

    @property
    def end_token_id(self) -> int:
        """The tokenizer's end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad token."""
        return int(self.tokenizer.pad_token_id)

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Encoder and decoder."""
        return {"vision": [self.model.encoder], "text": [self.model.decoder]}

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the encoder's last hidden state."""
        return self.model.encoder(pixel_values=pixel_values).last_hidden_state

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the decoder."""
        encoded = BaseModelOutput(last_hidden_state=image_states)
        return self.model(encoder_outputs=encoded, decoder_input_ids=input_ids, use_cache=False).logits

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with the encoder's output given."""
        return self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=image_states),
            decoder_input_ids=input_ids,
            generation_config=config,
        )


REGISTERED = Sketch
