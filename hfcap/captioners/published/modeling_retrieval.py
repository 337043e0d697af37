"""Retrieval captioner: the captions of the nearest training pictures, or the captions nearest in a joint space.

This file is published beside the weights and runs without hfcap: it imports only torch and transformers. Consensus
among the captions of the nearest pictures: Devlin et al. 2015 (arXiv:1505.04467), with CIDEr-D (Vedantam et al. 2015).
Shapes: B images, W encoder width, D index width, N items of the index, M captions, C candidates of an image, T tokens,
E (caption, n-gram) entries, U n-grams.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from .modeling_image_encoder import CHANNELS_FIRST, as_config, image_states_from, new_vision_model

ROWS_AT_ONCE = 65_536
"""Index rows compared at a time: the index stays in half precision, and no copy of it as a whole is made."""

_SIGMA = 6.0
_ORDERS = 4


class RetrievalConfig(PreTrainedConfig):
    """Configuration of a retrieval captioner.

    Args:
        vision_config: config of the image encoder.
        search: "images" (the index holds training pictures, each with its captions) or "captions".
        n_neighbours: index items that are candidates.
        consensus: choose the candidate that agrees most with the others, instead of the nearest one.
        consensus_size: compare with so many of the most similar candidates; None = with all.
        vision_layout: as in ImageCaptionerConfig.
        vision_width: W. index_width: D; equal to W where `projection` is False.
        sizes: lengths of the index buffers, set by `RetrievalForImageCaptioning.set_index`.
    """

    model_type = "caption_retrieval"

    def __init__(
        self,
        vision_config: Any = None,
        search: str = "images",
        n_neighbours: int = 60,
        consensus: bool = True,
        consensus_size: int | None = None,
        vision_feature: str = "pooled",
        vision_width: int = 768,
        index_width: int = 768,
        projection: bool = False,
        projection_bias: bool = False,
        vision_layout: str = CHANNELS_FIRST,
        sizes: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, number in (("n_neighbours", n_neighbours), ("consensus_size", consensus_size or 1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"config.json: {name} must be a whole number of at least 1, not {number!r}")
        self.vision_config = as_config(vision_config)
        self.search = search
        self.n_neighbours = n_neighbours
        self.consensus = consensus
        self.consensus_size = consensus_size
        self.vision_feature = vision_feature
        self.vision_width = vision_width
        self.index_width = index_width
        self.projection = projection
        self.projection_bias = projection_bias
        self.vision_layout = vision_layout
        self.sizes = sizes or {"items": 0, "captions": 0, "tokens": 0, "entries": 0, "ngrams": 0}
        super().__init__(**kwargs)


@dataclass
class RetrievalOutput(ModelOutput):
    """Captions with what they were chosen by.

    Attributes:
        sequences: (B * n, T) start token, caption, end token, padding.
        sequences_scores: (B * n,) mean CIDEr-D to the other candidates, or cosine to the picture.
    """

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None


def _ranges(starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of all half-open ranges one after another, and the range that each belongs to."""
    lengths = ends - starts
    owner = torch.repeat_interleave(torch.arange(len(starts), device=starts.device), lengths)
    before = torch.cumsum(lengths, 0) - lengths
    return torch.arange(len(owner), device=starts.device) + (starts - before)[owner], owner


class RetrievalForImageCaptioning(PreTrainedModel, GenerationMixin):
    """A retrieval captioner for `AutoModelForImageTextToText`; `generate(pixel_values=...)` returns whole captions.

    Buffers: `vectors` (N, D) unit vectors in half precision; `caption_starts` (N + 1) captions of each item;
    `token_ids` (T,) with `token_starts` (M + 1); `text_numbers` (M,) equal for equal texts; and for the consensus, per
    caption the n-grams that other captions share (`entry_starts` (M + 1), `entry_ngrams` and `entry_counts` (E,)), its
    CIDEr norms (M, 4) and length; `ngram_idf` and `ngram_orders` (U,).
    """

    config_class = RetrievalConfig
    base_model_prefix = "caption_retrieval"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _supports_flash_attn = True

    config: RetrievalConfig
    projection: nn.Module
    vectors: torch.Tensor
    caption_starts: torch.Tensor
    token_ids: torch.Tensor
    token_starts: torch.Tensor
    text_numbers: torch.Tensor
    entry_starts: torch.Tensor
    entry_ngrams: torch.Tensor
    entry_counts: torch.Tensor
    caption_norms: torch.Tensor
    caption_words: torch.Tensor
    ngram_idf: torch.Tensor
    ngram_orders: torch.Tensor

    def __init__(self, config: RetrievalConfig, vision_model: Any = None) -> None:
        super().__init__(config)
        self.vision_model = new_vision_model(config) if vision_model is None else vision_model
        if config.projection:
            self.projection = nn.Linear(config.vision_width, config.index_width, bias=config.projection_bias)
        else:
            self.projection = nn.Identity()
        for name, value in empty_index(config).items():
            self.register_buffer(name, value)
        self.post_init()

    def set_index(self, buffers: dict[str, torch.Tensor]) -> None:
        """Put an index in place of the present one; `buffers` are those that the class names, with their dtypes."""
        self.config.sizes = {
            "items": len(buffers["vectors"]),
            "captions": len(buffers["text_numbers"]),
            "tokens": len(buffers["token_ids"]),
            "entries": len(buffers["entry_ngrams"]),
            "ngrams": len(buffers["ngram_idf"]),
        }
        for name, expected in empty_index(self.config).items():
            value = buffers[name]
            assert value.shape == expected.shape and value.dtype == expected.dtype, (name, value.shape, expected.shape)
            self.register_buffer(name, value.to(self.device))

    def encode(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        """(B, 3, height, width) -> pooled image states (B, 1, W)."""
        outputs = self.vision_model(pixel_values=pixel_values)
        return image_states_from(outputs, self.config.vision_feature, self.config.vision_layout)

    def index_vectors(self, image_states: torch.Tensor) -> torch.Tensor:
        """Image states (B, S, W) -> unit vectors (B, D) of the index's space, float32."""
        projected = self.projection(image_states.to(self._weight_dtype()).mean(1))
        return nn.functional.normalize(projected.float(), dim=-1)

    def _weight_dtype(self) -> torch.dtype:
        return self.projection.weight.dtype if isinstance(self.projection, nn.Linear) else torch.float32

    def nearest(self, queries: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines (B, count) and items (B, count) of the nearest items, nearest first; exact search."""
        best = queries.new_empty(len(queries), 0)
        found = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
        for first in range(0, len(self.vectors), ROWS_AT_ONCE):
            cosine = queries @ self.vectors[first : first + ROWS_AT_ONCE].float().T
            value, item = cosine.topk(min(count, cosine.shape[1]), dim=1)
            best, found = torch.cat([best, value], 1), torch.cat([found, item + first], 1)
            best, order = best.topk(min(count, best.shape[1]), dim=1)
            found = found.gather(1, order)
        return best, found

    def agreement(self, captions: torch.Tensor) -> torch.Tensor:
        """CIDEr-D between C captions, (C, C) float32: row = candidate, column = reference; the diagonal means nothing.

        The clipped product min(a, b) b of counts a and b is the sum over t = 1, 2, ... of [a >= t] times [b >= t] b:
        with one column for every t, all pairs are one matrix product.
        """
        entry, row = _ranges(self.entry_starts[captions], self.entry_starts[captions + 1])
        ngram, times = self.entry_ngrams[entry].long(), self.entry_counts[entry].long()
        idf = self.ngram_idf[ngram]
        weight = idf / self.caption_norms[captions[row], self.ngram_orders[ngram].long()]
        level, owner = _ranges(torch.zeros_like(times), times)
        most = int(times.max()) if len(times) else 1
        _, column, holders = torch.unique(ngram[owner] * most + level, return_inverse=True, return_counts=True)
        # What only one candidate holds adds to no pair.
        shared = holders[column] > 1
        owner, column = owner[shared], (torch.cumsum(holders > 1, 0) - 1)[column[shared]]
        size = (len(captions), int((holders > 1).sum()))
        ours = torch.zeros(size, device=captions.device)
        ours[row[owner], column] = weight[owner]
        theirs = torch.zeros(size, device=captions.device)
        theirs[row[owner], column] = weight[owner] * times[owner]
        bigrams = (self.caption_words[captions] - 1).clamp(min=0).float()
        penalty = torch.exp(-((bigrams[:, None] - bigrams[None, :]) ** 2) / (2 * _SIGMA**2))
        return (ours @ theirs.T) * penalty * (10.0 / _ORDERS)

    def consensus_scores(self, captions: torch.Tensor) -> torch.Tensor:
        """Mean CIDEr-D of each of C captions to the others, or to its `consensus_size` most similar ones, (C,)."""
        others = len(captions) - 1
        if others == 0:
            return torch.zeros(1, device=captions.device)
        agreement = self.agreement(captions).fill_diagonal_(-1.0)
        size = min(self.config.consensus_size or others, others)
        return agreement.topk(size, dim=1).values.mean(1)

    def candidates(self, image_states: torch.Tensor, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each image (B, S, W) up to `count` captions of different texts, best first, with their scores."""
        n_items = max(self.config.n_neighbours, count)
        cosines, items = self.nearest(self.index_vectors(image_states), n_items)
        chosen = []
        for cosine, item in zip(cosines, items, strict=True):
            captions, owner = _ranges(self.caption_starts[item], self.caption_starts[item + 1])
            scores = self.consensus_scores(captions) if self.config.consensus else cosine[owner]
            scores, order = scores.sort(descending=True, stable=True)
            captions = captions[order]
            seen: dict[int, int] = {}
            for place, text in enumerate(self.text_numbers[captions].tolist()):
                seen.setdefault(text, place)
            kept = torch.tensor(list(seen.values())[:count], device=captions.device)
            chosen.append((captions[kept], scores[kept]))
        return chosen

    def forward(
        self, pixel_values: torch.Tensor | None = None, image_states: torch.Tensor | None = None, **kwargs: Any
    ) -> RetrievalOutput:
        """Return the best caption of each picture, as `generate` does."""
        return self.generate(pixel_values, image_states=image_states, return_dict_in_generate=True)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        num_return_sequences: int | None = None,
        return_dict_in_generate: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return captions of pictures as token ids (B * n, T), n = num_return_sequences, best first.

        Captions are returned whole, whatever the options of token-by-token decoding say (beams, lengths, sampling).
        """
        if not len(self.vectors):
            raise ValueError("this retrieval captioner holds no captions yet: fit it first")
        config = self.generation_config if generation_config is None else generation_config
        count = num_return_sequences or config.num_return_sequences or 1
        if image_states is None:
            image_states = self.encode(pixel_values)
        rows, scores = [], []
        for captions, values in self.candidates(image_states, count):
            for place in range(count):
                # A small index may hold fewer different captions than were asked for: the list starts again, so that
                # where captions are counted no one weighs more than a round.
                number = place % len(captions)
                first, last = self.token_starts[captions[number]], self.token_starts[captions[number] + 1]
                rows.append(self.token_ids[first:last].long())
                scores.append(values[number])
        sequences = self._padded(rows, input_ids, count)
        if return_dict_in_generate or config.return_dict_in_generate:
            return RetrievalOutput(sequences=sequences, sequences_scores=torch.stack(scores))
        return sequences

    def _padded(self, rows: list[torch.Tensor], input_ids: torch.Tensor | None, count: int) -> torch.Tensor:
        config = self.config
        end = torch.full((1,), config.eos_token_id, device=self.vectors.device)
        padded = nn.utils.rnn.pad_sequence([torch.cat([row, end]) for row in rows], True, config.pad_token_id)
        if input_ids is None or input_ids.shape[1] == 0:
            return torch.cat([padded.new_full((len(rows), 1), config.bos_token_id), padded], dim=1)
        return torch.cat([input_ids.to(padded).repeat_interleave(count, dim=0), padded], dim=1)


def empty_index(config: RetrievalConfig) -> dict[str, torch.Tensor]:
    """Return buffers of the sizes that the configuration says, filled with zeros."""
    sizes = config.sizes
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "vectors": ((sizes["items"], config.index_width), torch.float16),
        "caption_starts": ((sizes["items"] + 1,), torch.int64),
        "token_ids": ((sizes["tokens"],), torch.int32),
        "token_starts": ((sizes["captions"] + 1,), torch.int64),
        "text_numbers": ((sizes["captions"],), torch.int32),
        "entry_starts": ((sizes["captions"] + 1,), torch.int64),
        "entry_ngrams": ((sizes["entries"],), torch.int32),
        "entry_counts": ((sizes["entries"],), torch.int16),
        "caption_norms": ((sizes["captions"], _ORDERS), torch.float32),
        "caption_words": ((sizes["captions"],), torch.int32),
        "ngram_idf": ((sizes["ngrams"],), torch.float32),
        "ngram_orders": ((sizes["ngrams"],), torch.uint8),
    }
    return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
