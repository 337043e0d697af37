"""Show, Attend and Tell (Xu et al. 2015): the feature map of any CNN, soft attention, LSTM or GRU."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import CLIPProcessor, GenerationConfig

from hfcap.captioners.base import BaseModel, CardFacts
from hfcap.captioners.published.modeling_show_attend_tell import (
    ShowAttendTellConfig,
    ShowAttendTellForConditionalGeneration,
)
from hfcap.captioners.shared.custom_model import CustomModelCaptioner, VisionOptions, build_vision, vision_settings
from hfcap.captioners.shared.pretrained import TINY_CNN
from hfcap.captioners.shared.tokenizers import special_token_ids, train_tokenizer, wrap_texts
from hfcap.generation.attention_maps import grid_maps
from hfcap.generation.early_exit import leaving
from hfcap.recipe.block_base import NonNegativeFloat, PositiveInt, Share
from hfcap.recipe.blocks import TokenizerOptions
from hfcap.schema import IGNORED_LABEL, PackedCaptions


class ShowAttendTellOptions(VisionOptions):
    """Keys of `model`: `pretrained` (a saved captioner), or an image encoder in front of a new decoder."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="recurrent cell of the decoder")
    hidden_size: PositiveInt = Field(512, description="size of its state")
    embedding_size: PositiveInt = Field(512, description="size of word embeddings")
    attention_size: PositiveInt = Field(512, description="width inside the attention network")
    dropout: Share = Field(0.5, description="on word embeddings and before the head")
    attention_penalty: NonNegativeFloat = Field(
        1.0, description="weight of the doubly stochastic regulariser; 0 switches it off"
    )
    feature_norm: bool = Field(True, description="layer norm on the feature map; false = the paper's raw features")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(value is not None for value in (self.pretrained, self.vision, self.vision_config)) != 1:
            raise ValueError("give exactly one of pretrained, vision and vision_config")
        return self


class ShowAttendTell(CustomModelCaptioner):
    """A ShowAttendTellForConditionalGeneration. Parts: vision and text (attention, recurrent cell, output)."""

    options_class = ShowAttendTellOptions
    model_class = ShowAttendTellForConditionalGeneration
    parts = ("vision", "text")
    model_types = ("show_attend_tell",)
    card_facts = CardFacts(
        title="Show, Attend and Tell",
        summary="A CNN gives a feature map; before each word an LSTM (or GRU) attends to its cells.",
        paper_title="Show, Attend and Tell: Neural Image Caption Generation with Visual Attention",
        paper_url="https://arxiv.org/abs/1502.03044",
        bibtex="""@inproceedings{xu2015show,
  title     = {Show, Attend and Tell: Neural Image Caption Generation with Visual Attention},
  author    = {Xu, Kelvin and Ba, Jimmy and Kiros, Ryan and Cho, Kyunghyun and Courville, Aaron and Salakhutdinov,
               Ruslan and Zemel, Richard and Bengio, Yoshua},
  booktitle = {International Conference on Machine Learning},
  year      = {2015}
}""",
    )
    lora_target_modules = (
        r"decoder\.(initial_state|attention\.(image|state|gate)|cell\.(words|context|state)"
        r"|output_mlp\.(state|context))"
    )

    @classmethod
    def build(cls, options: ShowAttendTellOptions, training_captions: Iterable[str]) -> Self:
        """Load `pretrained`, or put a new decoder after an image encoder."""
        if options.pretrained is not None:
            return cls.from_pretrained(options)
        base_models: list[BaseModel] = []
        vision_model, image_processor = build_vision(options, base_models)
        tokenizer = train_tokenizer(options.tokenizer or TokenizerOptions(), training_captions)
        wrap_texts(tokenizer, start=True, end=False)
        config = ShowAttendTellConfig(
            **vision_settings(vision_model, image_processor, "patches"),
            **options.model_dump(include={"cell", "hidden_size", "embedding_size", "attention_size"}),
            **options.model_dump(include={"dropout", "attention_penalty", "feature_norm"}),
            vocab_size=len(tokenizer),
            **special_token_ids(tokenizer),
        )
        model = ShowAttendTellForConditionalGeneration(config, vision_model)
        return cls(model, CLIPProcessor(image_processor, tokenizer), options.prompt, base_models, assembled=True)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """A ConvNeXt of four blocks on 64-pixel images and a decoder of width 32."""
        return {
            "vision_config": dict(TINY_CNN),
            "hidden_size": 32,
            "embedding_size": 32,
            "attention_size": 32,
            "tokenizer": {"vocab_size": 400},
        }

    def part_modules(self) -> dict[str, list[nn.Module]]:
        """Image encoder and decoder."""
        return {"vision": [self.model.vision_model], "text": [self.model.decoder]}

    def plain_logits(self, image_states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the published model's own forward."""
        return self.model(image_states=image_states, input_ids=input_ids).logits

    def packed_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Run the decoder up to its head over all captions of an image together, each as a row of its own."""
        return self._run(image_states, packed)[0]

    def packed_head(self, states: torch.Tensor) -> torch.Tensor:
        """Run the decoder's head (the paper's L_o)."""
        return self.model.decoder.head(states)

    def states_and_penalty(
        self, image_states: torch.Tensor, packed: PackedCaptions
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the decoder's states and the doubly stochastic regulariser of the same pass."""
        strength = self.model.config.attention_penalty
        if strength == 0:
            return self.decoder_states(image_states, packed), None
        states, weights = self._run(image_states, packed)
        # The recurrence is the published model's own code, which both ways run: nothing to check here.
        self._packed = True
        return states, strength * doubly_stochastic_penalty(weights, packed)

    def _run(self, image_states: torch.Tensor, packed: PackedCaptions) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states before the head (B, P, E) and attention weights (B, P, S)."""
        decoder = self.model.decoder
        rows = CaptionRows.of(packed)
        embedded = decoder.embed(packed.input_ids)
        steps = decoder.run(decoder.cells(image_states), rows.to_steps(decoder.cell.words(embedded)))
        states = decoder.output_mlp(embedded, rows.to_packed(steps.hidden), rows.to_packed(steps.context))
        return states, rows.to_packed(steps.weights)

    def plain_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate by the published model's own `generate`."""
        return self.model.generate(image_states=image_states, input_ids=input_ids, generation_config=config)

    def fast_generate(self, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig) -> Any:
        """Generate with a batch that finished images leave."""
        return self.model.generate(
            image_states=image_states, input_ids=input_ids, generation_config=config, **leaving(config)
        )

    @torch.no_grad()
    def word_attention(self, image_states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the soft attention before each token; each map sums to 1."""
        cells = self.model.decoder.cells(image_states)
        output = self.model.decoder(input_ids=token_ids[:, :-1], image_states=cells)
        return grid_maps(output.attentions[0][0], self.model.config.vision_grid, self.card_facts.title)


def doubly_stochastic_penalty(weights: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
    """Sum over captions and cells of (1 - sum over words of the attention)^2 (Xu et al. 2015, equation 14).

    Words are the supervised positions: each cell should be looked at as often as any other over a whole caption.

    Args:
        weights: (B, P, S), attention weights at the positions of the packed rows.
    """
    n_captions = max(map(len, packed.caption_lengths()))
    numbers = torch.arange(n_captions, device=weights.device)
    spoken = (packed.caption_index[:, None] == numbers[:, None]) & (packed.labels != IGNORED_LABEL)[:, None]
    looked = torch.matmul(spoken.float(), weights.float())
    return ((1 - looked).square().sum(-1) * spoken.any(-1)).sum()


@dataclass(frozen=True, slots=True)
class CaptionRows:
    """Where the positions of packed rows stand when each caption is a row that advances step by step.

    The captions of an image are ordered by length, longest first, so that the rows that still run at a step are the
    first ones of every image.

    Attributes:
        counts: rows of each image that run at each step; never rising.
        from_packed: (B, N) packed position of each entry, N = sum of counts; 0 where that row has ended.
        place: (B, P) entry of each packed position; 0 for padding.
    """

    counts: list[int]
    from_packed: torch.Tensor
    place: torch.Tensor

    @classmethod
    def of(cls, packed: PackedCaptions) -> CaptionRows:
        """Plan the rows of packed captions."""
        index, positions = packed.caption_index, packed.position_ids
        batch, length = index.shape
        inside = index >= 0
        known = packed.caption_lengths()
        n_captions, n_steps = max(map(len, known)), max(itertools.chain.from_iterable(known))
        counts = [max(sum(n > step for n in of_image) for of_image in known) for step in range(n_steps)]
        lengths = torch.zeros(batch, n_captions, dtype=torch.long, device=index.device)
        lengths.scatter_add_(1, index.clamp_min(0), inside.long())
        order = lengths.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        steps = torch.arange(n_steps, device=index.device)
        running = (lengths.gather(1, order)[:, None] > steps[:, None]).sum(-1).amax(0)  # `counts`, on the device
        first = running.cumsum(0) - running
        place = (first[positions] + rank.gather(1, index.clamp_min(0))) * inside
        from_packed = torch.zeros(batch, sum(counts) + 1, dtype=torch.long, device=index.device)
        # Padding is written to a spare last column, so that it cannot overwrite entry 0.
        target = torch.where(inside, place, sum(counts))
        from_packed.scatter_(1, target, torch.arange(length, device=index.device).expand(batch, -1))
        return cls(counts, from_packed[:, :-1], place)

    def to_steps(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Packed (B, P, X) -> for each step (B, K of that step, X)."""
        index = self.from_packed[..., None].expand(-1, -1, values.shape[-1])
        return values.gather(1, index).split(self.counts, dim=1)

    def to_packed(self, values: torch.Tensor) -> torch.Tensor:
        """Entries of all steps (B, N, X) -> packed (B, P, X)."""
        return values.gather(1, self.place[..., None].expand(-1, -1, values.shape[-1]))


ShowAttendTell.register()
REGISTERED = ShowAttendTell
