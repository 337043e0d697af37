"""Image transformer (CPTR, Liu et al. 2021, arXiv:2101.10804): patches -> transformer encoder -> transformer decoder.

All from random weights, with plain sizes as keys; the encoder may start from a pretrained ViT, as in the paper. The
decoder is pre-norm with learned positions (GPT-2's layers); the paper's is post-norm with sinusoids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, model_validator

from hfcap.captioners.base import BaseModel, CardFacts
from hfcap.captioners.published.modeling_encoder_decoder import ImageTransformerForConditionalGeneration
from hfcap.captioners.shared.custom_model import VisionOptions, as_decoder
from hfcap.captioners.shared.encoder_decoder import EncoderDecoderCaptioner
from hfcap.captioners.shared.tokenizers import train_tokenizer, wrap_texts
from hfcap.places import Location
from hfcap.recipe.block_base import Block, PositiveInt, Share
from hfcap.recipe.blocks import ModelOptions, TokenizerOptions


class Architecture(Block):
    """Sizes of encoder and decoder."""

    image_size: PositiveInt = Field(224, description="images are resized to this square; a multiple of patch_size")
    patch_size: PositiveInt = Field(16, description="side of a patch, pixels")
    width: PositiveInt = Field(512, description="size of the states in encoder and decoder")
    heads: PositiveInt = Field(8, description="attention heads of each layer")
    encoder_layers: PositiveInt = Field(6, description="layers of the encoder")
    decoder_layers: PositiveInt = Field(6, description="layers of the decoder")
    feed_forward: PositiveInt = Field(2048, description="width inside the feed-forward networks")
    dropout: Share = Field(0.1, description="probability of dropout in both")
    max_positions: PositiveInt = Field(64, description="longest text: start token, prompt and caption")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        return self

    def vision_config(self) -> dict[str, Any]:
        """Return the encoder's config: a ViT."""
        return {
            "model_type": "vit",
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.encoder_layers,
            "num_attention_heads": self.heads,
            "hidden_dropout_prob": self.dropout,
        }

    def decoder_config(self) -> dict[str, Any]:
        """Return the decoder's config: GPT-2's layers with cross-attention."""
        return {
            "model_type": "gpt2",
            "n_embd": self.width,
            "n_inner": self.feed_forward,
            "n_layer": self.decoder_layers,
            "n_head": self.heads,
            "n_positions": self.max_positions,
            "embd_pdrop": self.dropout,
            "resid_pdrop": self.dropout,
            "attn_pdrop": 0.0,
            "activation_function": "gelu_pytorch_tanh",
        }


class ImageTransformerOptions(ModelOptions):
    """Keys of `model`: `pretrained` (a saved captioner), or an architecture to train."""

    architecture: Architecture | None = Field(None, description="sizes, for training from random weights")
    vision: Location | None = Field(
        None, description="Hub id or folder of a ViT that the encoder starts from, with its own sizes"
    )
    vision_revision: str | None = Field(None, description="commit, tag or branch of `vision`")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.pretrained is None) == (self.architecture is None):
            raise ValueError("give exactly one of pretrained and architecture")
        if self.vision is not None and self.architecture is None:
            raise ValueError("vision starts a new captioner and needs architecture; pretrained holds its own encoder")
        return self


class ImageTransformer(EncoderDecoderCaptioner):
    """An ImageTransformerForConditionalGeneration."""

    options_class = ImageTransformerOptions
    model_class = ImageTransformerForConditionalGeneration
    model_types = ("image_transformer",)
    card_facts = CardFacts(
        title="Image transformer (CPTR)",
        summary="A transformer encodes image patches; a transformer decoder reads them through cross-attention.",
        paper_title="CPTR: Full Transformer Network for Image Captioning",
        paper_url="https://arxiv.org/abs/2101.10804",
        bibtex="""@article{liu2021cptr,
  title   = {{CPTR}: Full Transformer Network for Image Captioning},
  author  = {Liu, Wei and Chen, Sihan and Guo, Longteng and Zhu, Xinxin and Liu, Jing},
  journal = {arXiv preprint arXiv:2101.10804},
  year    = {2021}
}""",
    )

    @classmethod
    def build(cls, options: ImageTransformerOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or build the architecture with a tokenizer trained on the captions."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        shape = options.architecture
        assert shape is not None
        tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
        wrap_texts(tokenizer, start=True, end=False)
        decoder = as_decoder(tokenizer, shape.decoder_config(), "model.architecture")
        base_models: list[BaseModel] = []
        vision = VisionOptions(
            vision=options.vision,
            vision_revision=options.vision_revision,
            vision_config=None if options.vision else shape.vision_config(),
            trust_remote_code=options.trust_remote_code,
            prompt=options.prompt,
        )
        return cls.join(vision, decoder, tokenizer, base_models)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Two layers of width 32 on either side, 32-pixel images."""
        return {
            "architecture": {
                "image_size": 32,
                "width": 32,
                "heads": 2,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "feed_forward": 64,
            },
            "tokenizer": {"vocab_size": 400},
        }


ImageTransformer.register()
REGISTERED = ImageTransformer
