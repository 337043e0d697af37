"""CNN-transformer: the feature map of any CNN (ResNet-50 first), read by a transformer decoder's cross-attention.

The decoder starts from random weights, or from GPT-2, BERT and the like. Grid features in place of detected regions:
Jiang et al. 2020 (arXiv:2001.03615).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from hfcap.captioners.base import BaseModel, CardFacts
from hfcap.captioners.published.modeling_encoder_decoder import CnnTransformerForConditionalGeneration
from hfcap.captioners.shared.custom_model import VisionOptions, as_decoder, load_as_decoder
from hfcap.captioners.shared.encoder_decoder import EncoderDecoderCaptioner
from hfcap.captioners.shared.pretrained import TINY_CNN, require_one_origin
from hfcap.captioners.shared.tokenizers import load_tokenizer, train_tokenizer, wrap_texts
from hfcap.places import Location
from hfcap.recipe.block_base import Share
from hfcap.recipe.blocks import TokenizerOptions


class CnnTransformerOptions(VisionOptions):
    """Keys of `model`: `pretrained` (a saved captioner), or an encoder and a decoder, each pretrained or a config."""

    vision_feature: Literal["patches", "pooled"] = Field(
        "patches", description="patches: every cell of the feature map; pooled: one vector"
    )
    decoder: Location | None = Field(None, description="Hub id or folder of a causal language model (GPT-2, BERT, ...)")
    decoder_config: dict[str, Any] | None = Field(None, description="config with model_type, for random weights")
    decoder_revision: str | None = Field(None, description="commit, tag or branch of `decoder`")
    bridge_dropout: Share = Field(0.0, description="dropout on the image states that the decoder reads")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        require_one_origin(self, {"an encoder": "vision", "a decoder": "decoder"})
        return self


class CnnTransformer(EncoderDecoderCaptioner):
    """A CnnTransformerForConditionalGeneration."""

    options_class = CnnTransformerOptions
    model_class = CnnTransformerForConditionalGeneration
    model_types = ("cnn_transformer",)
    card_facts = CardFacts(
        title="CNN-transformer",
        summary="A CNN gives a grid of features; a transformer decoder reads it through cross-attention.",
        paper_title="In Defense of Grid Features for Visual Question Answering",
        paper_url="https://arxiv.org/abs/2001.03615",
        bibtex="""@inproceedings{jiang2020defense,
  title     = {In Defense of Grid Features for Visual Question Answering},
  author    = {Jiang, Huaizu and Misra, Ishan and Rohrbach, Marcus and Learned-Miller, Erik and Chen, Xinlei},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020}
}""",
    )

    @classmethod
    def build(cls, options: CnnTransformerOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or join an encoder and a decoder by new cross-attention layers."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        base_models: list[BaseModel] = []
        key, revision = "model.decoder", options.decoder_revision
        if options.decoder is None:
            tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
            decoder = as_decoder(tokenizer, options.decoder_config or {}, "model.decoder_config")
        else:
            tokenizer = load_tokenizer(options.decoder, key, revision, options.trust_remote_code)
            decoder = load_as_decoder(options.decoder, key, revision, options.trust_remote_code)
            base_models.append(BaseModel(options.decoder, revision, "decoder"))
        wrap_texts(tokenizer, start=True, end=False)
        return cls.join(options, decoder, tokenizer, base_models, options.vision_feature, options.bridge_dropout)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """A ConvNeXt of four blocks on 64-pixel images and a GPT-2 of two layers and width 32."""
        return {
            "vision_config": dict(TINY_CNN),
            "decoder_config": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
            "tokenizer": {"vocab_size": 400},
        }


CnnTransformer.register()
REGISTERED = CnnTransformer
