"""BLIP (Li et al. 2022, arXiv:2201.12086): ViT image encoder, BERT-like text decoder with cross-attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor, GenerationConfig

from hfcap.captioners.base import Captioner, CardFacts
from hfcap.captioners.shared.encoder_decoder import ReadsByCrossAttention
from hfcap.captioners.shared.masks import packed_attention_mask
from hfcap.captioners.shared.pretrained import load_image_processor, new_image_processor, whole_model
from hfcap.captioners.shared.tokenizers import (
    load_tokenizer,
    special_token_ids,
    token_number,
    train_tokenizer,
    wrap_texts,
)
from hfcap.generation.attention_maps import grid_maps, mean_of_last_half, square_grid
from hfcap.generation.blip_attention import attention_probabilities, is_replaced, use_sdpa
from hfcap.generation.early_exit import leaving
from hfcap.generation.shared_attention import can_share, image_cache, shared_attention
from hfcap.recipe.blocks import ModelOptions, TokenizerOptions
from hfcap.schema import PackedCaptions


class BlipOptions(ModelOptions):
    """Keys of `model` for BLIP: `pretrained`, or `from_config` to train from random weights."""

    from_config: dict[str, Any] | None = Field(
        None, description="BlipConfig's vision_config and text_config, for training from scratch"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.pretrained is None) == (self.from_config is None):
            raise ValueError("give exactly one of pretrained and from_config")
        return self


class Blip(Captioner, ReadsByCrossAttention):
    """BLIP's captioning model. Parts: vision (ViT) and text (decoder with its head)."""

    options_class = BlipOptions
    parts = ("vision", "text")
    model_types = ("blip",)
    attention_is_fixed = True
    card_facts = CardFacts(
        title="BLIP",
        summary="A vision transformer encodes the image; a BERT-like decoder reads it through cross-attention.",
        paper_title="BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and "
        "Generation",
        paper_url="https://arxiv.org/abs/2201.12086",
        bibtex="""@inproceedings{li2022blip,
  title     = {{BLIP}: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and
               Generation},
  author    = {Li, Junnan and Li, Dongxu and Xiong, Caiming and Hoi, Steven},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}""",
        license="bsd-3-clause",
    )
    lora_target_modules = r"text_decoder\.bert\.encoder\..*\.(query|key|value|dense)"

    @classmethod
    def build(cls, options: BlipOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or build `from_config` with a tokenizer trained on the captions."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
        wrap_texts(tokenizer, start=True, end=True)
        values = options.from_config or {}
        text_config = {
            **values.get("text_config", {}),
            "vocab_size": len(tokenizer),
            "sep_token_id": tokenizer.eos_token_id,
            **special_token_ids(tokenizer),
        }
        # transformers' default of 1e-10 is for loading weights: trained from there, no image would change anything.
        vision_config = {"initializer_range": 0.02, **values.get("vision_config", {})}
        # BLIP's decoder projects image states of this width; a config that says otherwise cannot run.
        text_config["encoder_hidden_size"] = vision_config.get("hidden_size", 768)
        config: Any = BlipConfig(vision_config=vision_config, text_config=text_config)
        processor = BlipProcessor(new_image_processor(config.vision_config.image_size), tokenizer)
        return cls(BlipForConditionalGeneration(config), processor, options.prompt, assembled=True)

    def __init__(self, model: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(model, *arguments, **named)
        use_sdpa(model)

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved BLIP captioner."""
        model = whole_model(BlipForConditionalGeneration, location, revision)
        tokenizer = load_tokenizer(location, "model.pretrained", revision, trust_remote_code)
        image_processor = load_image_processor(location, "model.pretrained", revision, trust_remote_code)
        return cls(model, BlipProcessor(image_processor, tokenizer))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Two layers of width 32, 32-pixel images."""
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return {
            "from_config": {
                "vision_config": {**shape, "image_size": 32, "patch_size": 16},
                "text_config": {**shape, "max_position_embeddings": 64},
            },
            "tokenizer": {"vocab_size": 400},
        }

    @property
    def start_token_id(self) -> int:
        """BLIP's decoder token: `generate` forces it at position 0, so training starts from it too."""
        return token_number(self.model.config.text_config.bos_token_id, "bos_token_id")

    @property
    def end_token_id(self) -> int:
        """[SEP], which BLIP's `generate` stops at."""
        return token_number(self.model.config.text_config.sep_token_id, "sep_token_id")

    @property
    def pad_token_id(self) -> int:
        """[PAD]."""
        return token_number(self.model.config.text_config.pad_token_id, "pad_token_id")

    @property
    def reader(self) -> Any:
        """The text decoder."""
        return self.model.text_decoder

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Vision model and text decoder."""
        return {"vision": [self.model.vision_model], "text": [self.model.text_decoder]}

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the vision model's last hidden state, class token first."""
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the text decoder."""
        return self.model.text_decoder(input_ids=input_ids, encoder_hidden_states=image_states, use_cache=False).logits

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run the text decoder up to its head; cross-attention keys and values are computed once per image."""
        return self.model.text_decoder.bert(
            input_ids=packed.input_ids,
            attention_mask=packed_attention_mask(packed.caption_index, image_states.dtype),
            position_ids=packed.position_ids,
            encoder_hidden_states=image_states,
            use_cache=False,
            is_decoder=True,
        ).last_hidden_state

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run BERT's transform and the projection to words."""
        return self.model.text_decoder.cls(states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate as BlipForConditionalGeneration.generate does after its vision model."""
        return self.model.text_decoder.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            encoder_hidden_states=image_states,
            generation_config=config,
        )

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with one copy of the keys and values of an image for all its beams."""
        decoder = self.model.text_decoder
        if not (is_replaced(decoder) or can_share(decoder)):
            return decoder.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                encoder_hidden_states=image_states,
                generation_config=config,
                **leaving(config),
            )
        with shared_attention(decoder):
            return decoder.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                # Only asked whether it is there: keys and values come from the cache.
                encoder_hidden_states=image_states[:, :1],
                generation_config=config,
                **image_cache(decoder, image_states),
                **leaving(config),
            )

    @torch.no_grad()
    def word_attention(self, image_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the cross-attention of the last layers before each token."""
        with attention_probabilities(self.model):
            output = self.model.text_decoder(
                input_ids=token_ids[:, :-1],
                encoder_hidden_states=image_states,
                output_attentions=True,
                use_cache=False,
            )
        weights = mean_of_last_half(output.cross_attentions)
        return grid_maps(weights, square_grid(image_states.shape[1]), self.card_facts.title)


REGISTERED = Blip
