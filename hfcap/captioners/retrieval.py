"""Retrieval captioners: captions of the nearest training images (Devlin et al. 2015), or the nearest captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import nn
from transformers import CLIPProcessor, GenerationConfig

from hfcap.captioners.base import BaseModel, CardFacts
from hfcap.captioners.published.modeling_image_encoder import image_states_from
from hfcap.captioners.published.modeling_retrieval import RetrievalConfig, RetrievalForImageCaptioning
from hfcap.captioners.shared.custom_model import CustomModelCaptioner, VisionOptions, build_vision, vision_settings
from hfcap.captioners.shared.dual_encoder import DualEncoder, unit_vectors
from hfcap.captioners.shared.nonparametric import FittingData, NonparametricCaptioner
from hfcap.captioners.shared.pretrained import TINY_VIT, vision_tower
from hfcap.captioners.shared.retrieval_index import agreement_tables, numbers_of_texts, read_corpus
from hfcap.captioners.shared.tokenizers import special_token_ids, train_tokenizer, wrap_texts
from hfcap.errors import UserError
from hfcap.places import LocalPath
from hfcap.recipe.block_base import PositiveInt
from hfcap.recipe.blocks import GenerateOptions, TokenizerOptions


class RetrievalOptions(VisionOptions):
    """Keys of `model`: an image encoder, what the index holds, and how a caption is chosen.

    For search: images, `vision` is any image encoder; for search: captions, a CLIP or SigLIP with its text encoder.
    """

    search: Literal["images", "captions"] = Field(
        "images",
        description="images: captions of the nearest training images; captions: those nearest to the image",
    )
    corpus: LocalPath | None = Field(
        None,
        description="search: captions: file of captions (.txt, one a line, or any reference file), not the split's",
    )
    n_neighbours: PositiveInt = Field(60, description="nearest images or captions that are candidates")
    consensus: bool | None = Field(
        None, description="choose the candidate most similar to the others by CIDEr-D; null = yes for search: images"
    )
    consensus_size: PositiveInt | None = Field(
        None, description="compare a candidate with the N most similar ones; null = with all"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if sum(value is not None for value in (self.pretrained, self.vision, self.vision_config)) != 1:
            raise ValueError("give exactly one of pretrained, vision and vision_config")
        if self.prompt.strip():
            raise ValueError("prompt: retrieval returns whole captions and cannot continue a text; leave prompt empty")
        if self.search == "captions" and self.vision_config is not None:
            raise ValueError("search: captions needs a pretrained dual encoder; give vision, not vision_config")
        if self.search == "images" and self.corpus is not None:
            raise ValueError("corpus: search: images takes the captions of the training images; set search: captions")
        return self


class Retrieval(NonparametricCaptioner, CustomModelCaptioner):
    """A RetrievalForImageCaptioning. Parts: vision (the image encoder) and index (its projection, where it has one)."""

    options_class = RetrievalOptions
    model_class = RetrievalForImageCaptioning
    parts = ("vision", "index")
    model_types = ("caption_retrieval",)
    card_facts = CardFacts(
        title="Retrieval",
        summary=(
            "Nothing is generated: the caption is one that a person wrote for a similar image, found by nearest "
            "neighbours in an image encoder's space. The captions it was fitted to are part of the model."
        ),
        paper_title="Exploring Nearest Neighbor Approaches for Image Captioning",
        paper_url="https://arxiv.org/abs/1505.04467",
        bibtex="""@article{devlin2015exploring,
  title   = {Exploring Nearest Neighbor Approaches for Image Captioning},
  author  = {Devlin, Jacob and Gupta, Saurabh and Girshick, Ross and Mitchell, Margaret and Zitnick, C. Lawrence},
  journal = {arXiv preprint arXiv:1505.04467},
  year    = {2015}
}""",
    )

    @classmethod
    def effective_decoding(cls, options: Any, generate: GenerateOptions) -> None:
        """Nothing is decoded: captions are looked up."""

    def sidecar(self) -> dict[str, str]:
        """Return the values of `Captioner.sidecar`, and that decoding settings have no effect."""
        return super().sidecar() | {"decodes": "false"}

    text_encoder: DualEncoder | None = None
    corpus: Path | None = None

    @classmethod
    def build(cls, options: RetrievalOptions, training_captions: Iterable[str]) -> Self:
        """Load the encoder; the index is empty until `fit`."""
        if options.pretrained is not None:
            return cls._from_fitted(options)
        base_models: list[BaseModel] = []
        text_encoder = projection = None
        if options.search == "images":
            vision_model, image_processor = build_vision(options, base_models)
        else:
            assert options.vision is not None
            trust = options.trust_remote_code
            text_encoder = DualEncoder(options.vision, "model.vision", options.vision_revision, trust)
            base_models.append(BaseModel(options.vision, options.vision_revision, "vision"))
            vision_model, image_processor = vision_tower(text_encoder.model), text_encoder.image_processor
            projection = _image_projection(text_encoder)
        # Lossless: a caption comes back as it was written.
        tokenizer = train_tokenizer(
            options.tokenizer or TokenizerOptions(vocab_size=8000, lowercase=False), training_captions
        )
        wrap_texts(tokenizer, start=True, end=False)
        model = _new_model(options, vision_model, projection, image_processor, tokenizer)
        captioner = cls(model, CLIPProcessor(image_processor, tokenizer), "", base_models, assembled=True)
        captioner.text_encoder = text_encoder
        captioner.corpus = None if options.corpus is None else Path(options.corpus)
        return captioner

    @classmethod
    def _from_fitted(cls, options: RetrievalOptions) -> Self:
        captioner = cls.from_pretrained(options)
        config, given = captioner.model.config, options.model_fields_set
        if ("search" in given and options.search != config.search) or options.corpus is not None:
            raise UserError(
                f"model.pretrained: {options.pretrained} searches {config.search} in an index of its own; to build "
                "another one, give model.vision instead"
            )
        if config.search == "captions":
            raise UserError(
                f"model.pretrained: {options.pretrained} holds no text encoder for new captions; give model.vision"
            )
        for name in ("n_neighbours", "consensus", "consensus_size"):
            if name in given:
                setattr(config, name, getattr(options, name))
        return captioner

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """A ViT of two layers and width 32, 32-pixel images, consensus among three neighbours."""
        return {
            "vision_config": dict(TINY_VIT),
            "n_neighbours": 3,
            "tokenizer": {"vocab_size": 400, "lowercase": False},
        }

    @property
    def fits_on_images(self) -> bool:
        """An index of images needs them; an index of captions only reads texts."""
        return self.model.config.search == "images"

    def take_sidecar(self, values: Mapping[str, str]) -> None:
        """Take over what was saved with it; no prompt was."""
        super().take_sidecar(values)
        self.start_token_ids(self.prompt)

    def start_token_ids(self, prompt: str | None = None) -> list[int]:
        """Return the start token.

        Raises:
            UserError: a prompt is given.
        """
        if prompt is not None and prompt.strip():
            raise UserError(
                "prompt: a retrieval captioner returns whole captions and cannot continue a text; leave it out"
            )
        return [self.start_token_id]

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Image encoder, and the projection into the index's space."""
        return {"vision": [self.model.vision_model], "index": [self.model.projection]}

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Look up captions; `input_ids` is the start token."""
        return self.model.generate(image_states=image_states, input_ids=input_ids, generation_config=config)

    def fit(self, data: FittingData) -> None:
        """Build the index of the training images, or of the corpus's captions."""
        config = self.model.config
        if config.search == "images":
            assert data.image_states is not None
            captions = [" ".join(caption.split()) for record in data.records for caption in record.captions]
            with torch.inference_mode():
                vectors = torch.cat([self.model.index_vectors(states).half().cpu() for states in data.image_states])
            documents = [record.captions for record in data.records]
            counts = [len(record.captions) for record in data.records]
        else:
            assert self.text_encoder is not None
            own = [record.captions for record in data.records]
            corpus = own if self.corpus is None else read_corpus(self.corpus)
            captions = list(dict.fromkeys(" ".join(caption.split()) for group in corpus for caption in group))
            self.text_encoder.model.to(self.device)
            vectors = self.text_encoder.all_texts(captions, data.folder, data.batch_size, "Encoding captions")
            documents, counts = [(caption,) for caption in captions], [1] * len(captions)
        self.set_index(vectors, captions, counts, documents)

    def set_index(
        self, vectors: torch.Tensor, captions: Sequence[str], counts: Sequence[int], documents: Sequence[Sequence[str]]
    ) -> None:
        """Make an index of N items: unit vectors (N, D) half, M captions item after item, how many each item has.

        `documents` are the N groups of captions in which document frequencies are counted.
        """
        ids = self.caption_token_ids(captions, max_tokens=1_000_000)
        buffers = {
            "vectors": vectors.contiguous(),
            "caption_starts": _starts(counts),
            "token_ids": torch.tensor([token for row in ids for token in row], dtype=torch.int32),
            "token_starts": _starts([len(row) for row in ids]),
            "text_numbers": numbers_of_texts(captions),
            **agreement_tables(documents, wanted=self.model.config.consensus),
        }
        self.model.set_index(buffers)


def _starts(lengths: Sequence[int]) -> torch.Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64).cumsum(0)])


def _image_projection(dual: DualEncoder) -> nn.Linear | None:
    """Return the linear layer between the image tower's pooled output and the common space; None where there is none.

    Found by trying: what tower and layer give must be what the whole model gives.
    """
    image = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    pixels = dual.image_processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        wanted = dual.images(pixels)
        pooled = image_states_from(vision_tower(dual.model)(pixel_values=pixels), "pooled")[:, 0]
        for layer in (None, getattr(dual.model, "visual_projection", None)):
            found = unit_vectors(pooled if layer is None else layer(pooled))
            if found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-4):
                return layer
    raise UserError(
        f"model.vision: the image vectors of {dual.location} ({type(dual.model).__name__}) are made in a way that "
        "hfcap does not know; give a CLIP or SigLIP model, or set search: images"
    )


def _new_model(
    options: RetrievalOptions, vision_model: Any, projection: nn.Linear | None, image_processor: Any, tokenizer: Any
) -> RetrievalForImageCaptioning:
    vision = vision_settings(vision_model, image_processor, "pooled")
    config = RetrievalConfig(
        **vision,
        **options.model_dump(include={"search", "n_neighbours", "consensus_size"}),
        consensus=options.search == "images" if options.consensus is None else options.consensus,
        index_width=vision["vision_width"] if projection is None else projection.out_features,
        projection=projection is not None,
        projection_bias=projection is not None and projection.bias is not None,
        **special_token_ids(tokenizer),
    )
    model = RetrievalForImageCaptioning(config, vision_model)
    if projection is not None:
        model.projection.load_state_dict(projection.state_dict())
    return model


Retrieval.register()

REGISTERED = Retrieval
