"""Prefix captioners (ClipCap, Mokady et al. 2021): any image encoder, a mapper, any causal language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CLIPProcessor,
    GenerationConfig,
)

from hfcap.captioners.base import BaseModel, CardFacts
from hfcap.captioners.probe import penalises_repetition
from hfcap.captioners.published.modeling_clip_prefix import ClipPrefixConfig, ClipPrefixForConditionalGeneration
from hfcap.captioners.published.modeling_image_encoder import position_offset
from hfcap.captioners.shared.custom_model import CustomModelCaptioner, VisionOptions, build_vision, vision_settings
from hfcap.captioners.shared.masks import prefix_attention_mask
from hfcap.captioners.shared.pretrained import (
    TINY_VIT,
    config_from_mapping,
    from_pretrained,
    require_one_origin,
    require_positions,
)
from hfcap.captioners.shared.tokenizers import load_tokenizer, special_token_ids, train_tokenizer, wrap_texts
from hfcap.errors import UserError
from hfcap.generation.attention_maps import grid_maps, mean_of_last_half, self_attention
from hfcap.generation.early_exit import leaving
from hfcap.generation.language_head import body_states, head_logits
from hfcap.generation.shared_prefix import SharedPrefix
from hfcap.generation.step_scores import drop_step_scores
from hfcap.places import Location
from hfcap.recipe.block_base import PositiveInt, Share
from hfcap.recipe.blocks import TokenizerOptions
from hfcap.schema import PackedCaptions


class ClipPrefixOptions(VisionOptions):
    """Keys of `model`: `pretrained` (a saved prefix captioner), or one encoder and one language model."""

    language_model: Location | None = Field(None, description="Hub id or folder of the causal language model")
    language_model_config: dict[str, Any] | None = Field(None, description="config with model_type, for random weights")
    language_model_revision: str | None = Field(None, description="commit, tag or branch of `language_model`")
    gguf_file: str | None = Field(None, description="name of a GGUF file inside the language_model folder")
    vision_feature: Literal["pooled", "patches"] = Field(
        "pooled", description="what the mapper reads: one vector per image, or one per patch"
    )
    mapper: Literal["mlp", "transformer", "linear"] = Field(
        "mlp", description="network from image to prefix: mlp (ClipCap), transformer, or linear"
    )
    prefix_length: PositiveInt = Field(
        10, description="positions of the prefix; mapper: linear makes one per patch instead"
    )
    mapper_layers: PositiveInt = Field(8, description="layers of mapper: transformer")
    mapper_heads: PositiveInt = Field(8, description="attention heads of mapper: transformer")
    mapper_dropout: Share = Field(0.0, description="probability of dropout in the mapper")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one_origin(self, {"an encoder": "vision", "a language model": "language_model"})
        if self.mapper == "linear" and self.vision_feature == "pooled":
            raise ValueError("mapper: linear gives one prefix position per patch; set vision_feature: patches")
        if self.mapper == "mlp" and self.vision_feature == "patches":
            raise ValueError("mapper: mlp takes one vector per image; set vision_feature: pooled or another mapper")
        return self


class ClipPrefix(CustomModelCaptioner):
    """A ClipPrefixForConditionalGeneration. Parts: vision, mapper and text (the language model)."""

    options_class = ClipPrefixOptions
    model_class = ClipPrefixForConditionalGeneration
    parts = ("vision", "mapper", "text")
    model_types = ("clip_prefix",)
    card_facts = CardFacts(
        title="CLIP-prefix (ClipCap)",
        summary="A mapper turns the image encoder's output into a prefix that a causal language model continues.",
        paper_title="ClipCap: CLIP Prefix for Image Captioning",
        paper_url="https://arxiv.org/abs/2111.09734",
        bibtex="""@article{mokady2021clipcap,
  title   = {{ClipCap}: {CLIP} Prefix for Image Captioning},
  author  = {Mokady, Ron and Hertz, Amir and Bermano, Amit H.},
  journal = {arXiv preprint arXiv:2111.09734},
  year    = {2021}
}""",
    )
    lora_target_modules = (
        r"language_model\..*\.(c_attn|c_proj|c_fc|q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj"
        r"|query_key_value|dense|dense_h_to_4h|dense_4h_to_h|fc1|fc2|fc_in|fc_out)"
    )

    @classmethod
    def build(cls, options: ClipPrefixOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or join encoder and language model by a new mapper."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        base_models: list[BaseModel] = []
        vision_model, image_processor = build_vision(options, base_models)
        language_model, tokenizer = cls._build_language_model(options, training_captions, base_models)
        _require_loadable(language_model, options)
        config = ClipPrefixConfig(
            **vision_settings(vision_model, image_processor, options.vision_feature),
            text_config=language_model.config,
            **options.model_dump(
                include={"mapper", "prefix_length", "mapper_layers", "mapper_heads", "mapper_dropout"}
            ),
            **special_token_ids(tokenizer),
        )
        _require_room(config)
        model = ClipPrefixForConditionalGeneration(config, vision_model, language_model)
        return cls(model, CLIPProcessor(image_processor, tokenizer), options.prompt, base_models, assembled=True)

    @staticmethod
    def _build_language_model(
        options: ClipPrefixOptions, training_captions: Iterable[str], base_models: list[BaseModel]
    ) -> tuple[Any, Any]:
        if options.language_model is None:
            tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
            wrap_texts(tokenizer, start=True, end=False)
            values = {
                **(options.language_model_config or {}),
                "vocab_size": len(tokenizer),
                **special_token_ids(tokenizer),
            }
            config = config_from_mapping(values, "model.language_model_config")
            return AutoModelForCausalLM.from_config(config), tokenizer
        revision = options.language_model_revision
        arguments: dict[str, Any] = {"revision": revision, "trust_remote_code": options.trust_remote_code}
        if options.gguf_file is not None:
            arguments["gguf_file"] = options.gguf_file
        tokenizer = load_tokenizer(options.language_model, "model.language_model", **arguments)
        wrap_texts(tokenizer, start=True, end=False)
        model = from_pretrained(
            AutoModelForCausalLM, options.language_model, "model.language_model", dtype=torch.float32, **arguments
        )
        base_models.append(BaseModel(options.language_model, revision, "text"))
        return model, tokenizer

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """A ViT and a GPT-2 of two layers and width 32, 32-pixel images, a prefix of 4."""
        return {
            "vision_config": dict(TINY_VIT),
            "language_model_config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
            "mapper": "mlp",
            "prefix_length": 4,
            "tokenizer": {"vocab_size": 400},
        }

    @property
    def lora_modules_to_save(self) -> list[str]:
        """The mapper starts from random weights (or is small): it is trained in full."""
        return ["mapper"]

    @property
    def positions_before_text(self) -> int:
        """The prefix."""
        return int(_prefix_positions(self.model.config))

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Image encoder, mapper and language model."""
        return {
            "vision": [self.model.vision_model],
            "mapper": [self.model.mapper],
            "text": [self.model.language_model],
        }

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the published model's own forward."""
        return self.model(image_states=image_states, input_ids=input_ids).logits

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run mapper and language model up to its head; every caption sees the one prefix and nothing of the others."""
        n_prefix = _prefix_positions(self.model.config)
        inputs = self.model.language_inputs(
            image_states,
            packed.input_ids,
            attention_mask=prefix_attention_mask(packed.caption_index, n_prefix, image_states.dtype),
            position_ids=packed.position_ids,
        )
        return body_states(self.model.language_model, **inputs)[:, n_prefix:]

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the language model's head."""
        return head_logits(self.model.language_model, states)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate by the published model's own `generate`."""
        return self.model.generate(image_states=image_states, input_ids=input_ids, generation_config=config)

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate from the prefix of encoded images; all rows of an image share one copy of it."""
        language_model = self.model.language_model
        embeddings = self.model.get_input_embeddings().weight
        prefix = None
        # From embeddings, as the published model generates, `generate` forbids repetitions in the new words alone.
        if not penalises_repetition(config):
            prefix = SharedPrefix.read(language_model, self.model.mapper(image_states).to(embeddings.dtype))
        if prefix is None:
            return self.model.generate(
                image_states=image_states, input_ids=input_ids, generation_config=config, **drop_step_scores(config)
            )
        with prefix.in_front_of(language_model):
            return language_model.generate(
                **prefix.inputs(input_ids), generation_config=config, **leaving(config, prefix.keep)
            )

    @torch.no_grad()
    def word_attention(self, image_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the attention of the last layers to the prefix, where each position of that is one patch.

        The rest of each row's attention goes to earlier words: a map's sum says how much the image counted.
        """
        config = self.model.config
        if config.mapper != "linear":
            raise UserError(
                f"a prefix made by mapper: {config.mapper} mixes all places of the image; there is nothing to "
                "draw; heat maps of this family need mapper: linear with vision_feature: patches"
            )
        inputs = self.model.language_inputs(image_states, token_ids[:, :-1])
        weights = mean_of_last_half(self_attention(self.model.language_model, inputs))
        return grid_maps(weights[config.vision_tokens :, : config.vision_tokens], config.vision_grid, "captioner")


def _require_loadable(language_model: Any, options: ClipPrefixOptions) -> None:
    """Refuse a language model that could be trained but not loaded again, or not trained as it generates."""
    if type(language_model).__module__.startswith("transformers_modules"):
        raise UserError(
            f"model.language_model: {options.language_model} brings its own code, which a saved prefix captioner "
            "cannot carry along; choose a language model that is part of transformers"
        )
    require_positions(language_model, "model.language_model")
    if position_offset(language_model):
        raise UserError(
            f"model.language_model: {type(language_model).__name__} counts positions from its padding index, which a "
            "prefix does not have; choose another language model, such as GPT-2, or captioner: vit_gpt2"
        )


def _prefix_positions(config: Any) -> int:
    return config.vision_tokens if config.mapper == "linear" else config.prefix_length


def _require_room(config: Any) -> None:
    limit = getattr(config.text_config, "max_position_embeddings", None)
    if limit is not None and _prefix_positions(config) >= limit:
        raise UserError(
            f"model.mapper: {config.mapper} makes {_prefix_positions(config)} prefix positions, but the language model "
            f"has {limit} in all; set mapper: transformer with a short prefix_length, or choose another language model"
        )


ClipPrefix.register()
REGISTERED = ClipPrefix
