"""Vision encoder-decoder captioners: any ViT-like encoder joined to any causal decoder by cross-attention.

The layout is transformers' VisionEncoderDecoderModel, made known for captions by nlpconnect/vit-gpt2-image-captioning
(ViT, Dosovitskiy et al. 2021, arXiv:2010.11929; GPT-2, Radford et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import (
    AutoModel,
    CLIPProcessor,
    GenerationConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from hfcap.captioners.base import BaseModel, Captioner, CardFacts
from hfcap.captioners.published.modeling_image_encoder import position_offset
from hfcap.captioners.shared.custom_model import as_decoder, load_as_decoder
from hfcap.captioners.shared.encoder_decoder import ReadsByCrossAttention
from hfcap.captioners.shared.masks import packed_attention_mask
from hfcap.captioners.shared.pretrained import (
    TINY_VIT,
    config_from_mapping,
    from_pretrained,
    load_image_processor,
    new_image_processor,
    require_one_origin,
    vision_tower,
    whole_model,
)
from hfcap.captioners.shared.tokenizers import load_tokenizer, token_number, train_tokenizer, wrap_texts
from hfcap.errors import UserError
from hfcap.generation.attention_maps import grid_maps, last_layers_attention, square_grid
from hfcap.generation.early_exit import leaving
from hfcap.generation.language_head import body_states, head_logits
from hfcap.generation.shared_attention import can_share, image_cache, shared_attention
from hfcap.generation.step_scores import drop_step_scores
from hfcap.places import Location
from hfcap.recipe.blocks import ModelOptions, TokenizerOptions
from hfcap.schema import PackedCaptions


class VitGpt2Options(ModelOptions):
    """Keys of `model`: `pretrained` (a whole captioner), or an encoder and a decoder, each pretrained or a config."""

    encoder: Location | None = Field(None, description="Hub id or folder of the image encoder")
    encoder_config: dict[str, Any] | None = Field(None, description="config with model_type, for random weights")
    encoder_revision: str | None = Field(None, description="commit, tag or branch of `encoder`")
    decoder: Location | None = Field(None, description="Hub id or folder of the causal language model")
    decoder_config: dict[str, Any] | None = Field(None, description="config with model_type, for random weights")
    decoder_revision: str | None = Field(None, description="commit, tag or branch of `decoder`")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one_origin(self, {"an encoder": "encoder", "a decoder": "decoder"})
        return self


class VitGpt2(Captioner, ReadsByCrossAttention):
    """A VisionEncoderDecoderModel. Parts: vision (encoder) and text (decoder and the projection into it)."""

    options_class = VitGpt2Options
    parts = ("vision", "text")
    model_types = ("vision-encoder-decoder",)
    card_facts = CardFacts(
        title="ViT-GPT2",
        summary="A vision transformer encodes the image; a causal language model with cross-attention reads it.",
        paper_title="Leveraging Pre-trained Checkpoints for Sequence Generation Tasks",
        paper_url="https://arxiv.org/abs/1907.12461",
        bibtex="""@article{rothe2020leveraging,
  title   = {Leveraging Pre-trained Checkpoints for Sequence Generation Tasks},
  author  = {Rothe, Sascha and Narayan, Shashi and Severyn, Aliaksei},
  journal = {Transactions of the Association for Computational Linguistics},
  volume  = {8},
  year    = {2020}
}""",
        license="apache-2.0",
    )
    lora_target_modules = (
        r"decoder\..*\.(c_attn|q_attn|c_proj|c_fc|query|key|value|q_proj|k_proj|v_proj|o_proj|out_proj"
        r"|gate_proj|up_proj|down_proj|fc1|fc2|dense)"
    )

    @classmethod
    def build(cls, options: VitGpt2Options, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or join an encoder and a decoder by new cross-attention layers."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        base_models: list[BaseModel] = []
        encoder, image_processor = cls._build_encoder(options, base_models)
        tokenizer = cls._build_tokenizer(options, training_captions)
        decoder = cls._build_decoder(options, tokenizer, base_models)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        model: Any = VisionEncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
        for holder in (model.config, model.config.decoder):
            holder.decoder_start_token_id = tokenizer.bos_token_id
            holder.bos_token_id = tokenizer.bos_token_id
            holder.eos_token_id = tokenizer.eos_token_id
            holder.pad_token_id = tokenizer.pad_token_id
        return cls(model, CLIPProcessor(image_processor, tokenizer), options.prompt, base_models, assembled=True)

    @staticmethod
    def _build_encoder(options: VitGpt2Options, base_models: list[BaseModel]) -> tuple[Any, Any]:
        if options.encoder is None:
            config = config_from_mapping(options.encoder_config or {}, "model.encoder_config")
            _require_states(config, "model.encoder_config", config.model_type)
            return AutoModel.from_config(config), new_image_processor(config.image_size)
        revision, trust = options.encoder_revision, options.trust_remote_code
        encoder = from_pretrained(
            AutoModel, options.encoder, "model.encoder", revision=revision, trust_remote_code=trust
        )
        encoder = vision_tower(encoder)
        if type(encoder).__module__.startswith("transformers_modules"):
            raise UserError(
                f"model.encoder: {options.encoder} brings its own code, which VisionEncoderDecoderModel cannot load "
                "again; use captioner: clip_prefix for such a backbone"
            )
        _require_states(encoder.config, "model.encoder", options.encoder)
        base_models.append(BaseModel(options.encoder, revision, "encoder"))
        return encoder, load_image_processor(options.encoder, "model.encoder", revision, trust)

    @staticmethod
    def _build_tokenizer(options: VitGpt2Options, training_captions: Iterable[str]) -> Any:
        if options.decoder is None:
            tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
        else:
            tokenizer = load_tokenizer(
                options.decoder, "model.decoder", options.decoder_revision, options.trust_remote_code
            )
        wrap_texts(tokenizer, start=True, end=False)
        return tokenizer

    @staticmethod
    def _build_decoder(options: VitGpt2Options, tokenizer: Any, base_models: list[BaseModel]) -> Any:
        if options.decoder is None:
            return as_decoder(tokenizer, options.decoder_config or {}, "model.decoder_config")
        revision = options.decoder_revision
        decoder = load_as_decoder(options.decoder, "model.decoder", revision, options.trust_remote_code)
        base_models.append(BaseModel(options.decoder, revision, "decoder"))
        return decoder

    @classmethod
    def from_folder(cls, location: str, revision: str | None, trust_remote_code: bool) -> Self:
        """Load a saved vision encoder-decoder captioner."""
        model = whole_model(VisionEncoderDecoderModel, location, revision)
        tokenizer = load_tokenizer(location, "model.pretrained", revision, trust_remote_code)
        image_processor = load_image_processor(location, "model.pretrained", revision, trust_remote_code)
        return cls(model, CLIPProcessor(image_processor, tokenizer))

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Two layers of width 32 on either side, 32-pixel images."""
        return {
            "encoder_config": dict(TINY_VIT),
            "decoder_config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
            "tokenizer": {"vocab_size": 400},
        }

    @property
    def start_token_id(self) -> int:
        """decoder_start_token_id, the token transformers prepends to shifted labels and to generation."""
        config = self.model.config
        start = config.decoder_start_token_id
        return token_number(self.tokenizer.bos_token_id if start is None else start, "decoder_start_token_id")

    @property
    def end_token_id(self) -> int:
        """The tokenizer's end token."""
        return token_number(self.tokenizer.eos_token_id, "eos_token_id")

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad token (GPT-2: its end token)."""
        return token_number(self.tokenizer.pad_token_id, "pad_token_id")

    @property
    def lora_modules_to_save(self) -> list[str]:
        """Cross-attention is random where encoder and decoder were joined here; it must be trained in full."""
        if not self.assembled:
            return []
        names = {name.rsplit(".", 1)[-1] for name, _ in self.model.named_modules()}
        return sorted(names & {"crossattention", "ln_cross_attn", "encoder_attn", "enc_to_dec_proj"})

    @property
    def positions_before_text(self) -> int:
        """RoBERTa-like decoders leave their first positions unused."""
        return position_offset(self.model.decoder)

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Encoder; decoder with the projection between them where there is one."""
        projection = [self.model.enc_to_dec_proj] if hasattr(self.model, "enc_to_dec_proj") else []
        return {"vision": [self.model.encoder], "text": [self.model.decoder, *projection]}

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the encoder's last hidden state, before the projection to the decoder's width."""
        return self.model.encoder(pixel_values=pixel_values).last_hidden_state

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the model's own forward, its encoder's output given."""
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=image_states),
            decoder_input_ids=input_ids,
            use_cache=False,
        ).logits

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run projection and decoder up to its head; cross-attention keys and values are computed once per image."""
        return body_states(
            self.model.decoder,
            input_ids=packed.input_ids,
            attention_mask=packed_attention_mask(packed.caption_index, image_states.dtype),
            position_ids=packed.position_ids + position_offset(self.model.decoder),
            encoder_hidden_states=self.read_states(image_states),
        )

    @property
    def reader(self) -> Any:
        """The decoder."""
        return self.model.decoder

    def read_states(self, image_states: torch.Tensor) -> torch.Tensor:
        """Image states in the decoder's width."""
        return self.model.enc_to_dec_proj(image_states) if hasattr(self.model, "enc_to_dec_proj") else image_states

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the decoder's head."""
        return head_logits(self.model.decoder, states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with the encoder's output given, so that it does not run again."""
        return self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=image_states),
            decoder_input_ids=input_ids,
            generation_config=config,
        )

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with one copy of the keys and values of an image for all its beams."""
        decoder = self.model.decoder
        start: dict[str, Any] = {"decoder_input_ids": input_ids, "generation_config": config}
        if not can_share(decoder):
            encoded = BaseModelOutput(last_hidden_state=image_states)
            return self.model.generate(encoder_outputs=encoded, **start, **drop_step_scores(config))
        with shared_attention(decoder):
            return self.model.generate(
                # Only asked whether they are there: keys and values come from the cache.
                encoder_outputs=BaseModelOutput(last_hidden_state=image_states[:, :1]),
                **image_cache(decoder, self.read_states(image_states)),
                **leaving(config),
                **start,
            )

    @torch.no_grad()
    def word_attention(self, image_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the cross-attention of the last layers before each token."""
        weights = last_layers_attention(self.model.decoder, token_ids, self.read_states(image_states))
        return grid_maps(weights, square_grid(image_states.shape[1]), self.card_facts.title)


def _require_states(config: Any, key: str, name: str) -> None:
    if not hasattr(config, "hidden_size") or not hasattr(config, "image_size"):
        raise UserError(
            f"{key}: {name} gives a feature map instead of a sequence of image states, which VisionEncoderDecoderModel "
            "needs; choose a vision transformer (ViT, DeiT, Swin, ...), or captioner: clip_prefix"
        )


REGISTERED = VitGpt2
