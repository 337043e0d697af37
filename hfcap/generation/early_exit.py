"""Greedy search, sampling and beam search whose finished images leave the batch.

transformers' `generate` computes every row until the last image of the batch has ended; of captions, that is about
three steps in ten for nothing. `early_exit_search` goes to `generate` as its `custom_generate`: preparation, caches,
processors of logits and stopping criteria are transformers', and so are captions, scores and, with a seed, samples.

Letters: B images, A of them still in the batch, n rows of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils.generic import ModelOutput

from hfcap.generation.step_scores import drop_step_scores

_NEVER = -1e9
_ENDED_SHARE = 8
"""Images leave when at least an eighth of the batch has ended: each leaving copies what stays."""


@dataclass
class FoundCaptions:
    """Sequences (B * num_return_sequences, T), best first, padded, and with beams their scores.

    Attributes:
        left: how often images left the batch.
    """

    sequences: torch.Tensor
    sequences_scores: torch.Tensor | None = None
    left: int = 0


def leaving(config: GenerationConfig, leave: Callable[[torch.Tensor], None] | None = None) -> dict[str, Any]:
    """Arguments of `generate` that let finished images leave.

    Sampled beams, and the logits of every step, are left to transformers' own search.

    Args:
        leave: told which of the A images stay, (A',) int64, whenever some leave: for what is kept outside the cache.
    """
    if config.output_logits or (config.do_sample and config.num_beams > 1):
        return drop_step_scores(config) if config.output_scores else {}
    return {"custom_generate": early_exit_search, "leave": leave}


def early_exit_search(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    leave: Callable[[torch.Tensor], None] | None = None,
    **model_kwargs: Any,
) -> FoundCaptions | torch.Tensor:
    """Generate from prepared inputs, as `generate(custom_generate=early_exit_search)` calls it.

    Returns the sequences alone where the configuration does not say `return_dict_in_generate`.
    """
    n_rows = generation_config.num_beams if generation_config.num_beams > 1 else generation_config.num_return_sequences
    batch = _Batch(model, model_kwargs, n_rows, len(input_ids) // n_rows, leave)
    search = _beam_search if generation_config.num_beams > 1 else _one_by_one
    found = search(batch, input_ids, logits_processor, stopping_criteria, generation_config)
    found.left = batch.left
    return found if generation_config.return_dict_in_generate else found.sequences


class _Batch:
    """The model and all it needs for the rows of the images that have not left.

    Attributes:
        images: (A,) their places in the batch that came.
    """

    def __init__(self, model: Any, kwargs: dict[str, Any], n_rows: int, n_images: int, leave: Any) -> None:
        self.model, self.kwargs, self.n_rows, self.leave = model, kwargs, n_rows, leave
        self.images = torch.arange(n_images)
        self.started = False
        self.left = 0

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the next token of each row, (A * n, V) float32."""
        new: dict[str, Any] = {"next_sequence_length": 1} if self.started else {"is_first_iteration": True}
        self.started = True
        inputs = self.model.prepare_inputs_for_generation(ids, **new, **self.kwargs)
        outputs = self.model(**inputs, return_dict=True)
        self.kwargs = self.model._update_model_kwargs_for_generation(
            outputs, self.kwargs, is_encoder_decoder=self.model.config.is_encoder_decoder
        )
        logits: torch.Tensor = outputs.logits
        return logits[:, -1].to(torch.float32, copy=True)

    def keep(self, staying: torch.Tensor) -> None:
        """Go on with some of the A images, given by their places among them."""
        self.left += 1
        device, n_before = staying.device, len(self.images) * self.n_rows
        rows = (staying[:, None] * self.n_rows + torch.arange(self.n_rows, device=device)).flatten()
        self.images = self.images[staying.to(self.images.device)]
        self.kwargs = {name: _of_rows(value, rows, n_before) for name, value in self.kwargs.items()}
        if self.leave is not None:
            self.leave(staying)


def _of_rows(value: Any, rows: torch.Tensor, n_before: int) -> Any:
    """What the model is given for each row, for these rows."""
    if isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == n_before:
        return value.index_select(0, rows.to(value.device))
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _of_rows(inner, rows, n_before) for name, inner in value.items()})
    if hasattr(value, "batch_select_indices"):
        value.batch_select_indices(rows)
    return value


def _enough_ended(ended: torch.Tensor) -> bool:
    """Whether so many of the images (A,) have ended that leaving pays, but not all."""
    count = int(ended.sum())
    return count < len(ended) and count * _ENDED_SHARE >= max(len(ended), _ENDED_SHARE)


def _one_by_one(
    batch: _Batch, ids: torch.Tensor, processor: Any, stopping: Any, config: GenerationConfig
) -> FoundCaptions:
    """Greedy search, or sampling; the draws are those of the whole batch, so leaving does not change them."""
    n, n_all, pad = batch.n_rows, len(ids), _padding(config)
    found = ids.new_full((n_all, int(config.max_length)), pad)
    ended = torch.zeros(n_all, dtype=torch.bool, device=ids.device)
    own = torch.arange(n_all, device=ids.device)
    while True:
        scores = processor(ids, batch.logits(ids))
        if config.do_sample:
            shares = scores.new_ones(n_all, scores.shape[-1])
            shares[own] = scores.softmax(-1)
            token = torch.multinomial(shares, num_samples=1)[own, 0]
        else:
            token = scores.argmax(-1)
        token = token.masked_fill(ended, pad)
        ids = torch.cat([ids, token[:, None]], dim=-1)
        found[own, : ids.shape[1]] = ids
        ended = ended | stopping(ids, None)
        if bool(ended.all()):
            return FoundCaptions(found[:, : ids.shape[1]])
        images_ended = ended.view(-1, n).all(1)
        if _enough_ended(images_ended):
            staying = (~images_ended).nonzero()[:, 0]
            rows = (~images_ended).repeat_interleave(n)
            ids, ended, own = ids[rows], ended[rows], own[rows]
            batch.keep(staying)


@dataclass
class _Beams:
    """Beams of the images in the batch: running ones, and the best ended ones so far.

    Attributes:
        ids: (A, n, L) with L the greatest length. scores: (A, n) sums of log-probabilities.
        best_ids: (A, n, L). best_scores: (A, n) with the length penalty. best_lengths: (A, n). filled: (A, n) bool.
        open: (A,) whether running beams may still beat the ended ones.
    """

    ids: torch.Tensor
    scores: torch.Tensor
    best_ids: torch.Tensor
    best_scores: torch.Tensor
    best_lengths: torch.Tensor
    filled: torch.Tensor
    open: torch.Tensor

    @classmethod
    def start(cls, ids: torch.Tensor, n: int, config: GenerationConfig) -> _Beams:
        """One beam of each image counts at first: all n are the same."""
        shape = (len(ids) // n, n)
        whole = ids.new_full((*shape, int(config.max_length)), _padding(config))
        whole[..., : ids.shape[1]] = ids.view(*shape, -1)
        scores = torch.full(shape, _NEVER, device=ids.device)
        first = scores.clone()
        first[:, 0] = 0.0
        nothing = torch.zeros(shape, dtype=torch.bool, device=ids.device)
        lengths = torch.full(shape, ids.shape[1], device=ids.device)
        return cls(whole, first, whole.clone(), scores, lengths, nothing, ~nothing[:, 0])

    def of(self, images: torch.Tensor) -> _Beams:
        """The same of some images, (A',) places."""
        return _Beams(**{name: value[images] for name, value in vars(self).items()})


def _beam_search(
    batch: _Batch, ids: torch.Tensor, processor: Any, stopping: Any, config: GenerationConfig
) -> FoundCaptions:
    n, start, length = batch.n_rows, ids.shape[1], ids.shape[1]
    beams = everything = _Beams.start(ids, n, config)
    width = max(2, 1 + len(_end_tokens(config))) * n
    while True:
        flat = beams.ids[..., :length].flatten(0, 1)
        logarithms = processor(flat, batch.logits(flat).log_softmax(-1)).view(*beams.scores.shape, -1)
        sums = logarithms + beams.scores[..., None]
        scores, places = sums.flatten(1).topk(width)
        origin, token = places // sums.shape[-1], places % sums.shape[-1]
        ids = _gathered(beams.ids, origin)
        ids[..., length] = token
        length += 1
        ends = stopping(ids[..., :length].flatten(0, 1), None).view_as(scores)
        # What has ended stays a candidate of the running beams only where nothing else is left.
        chosen = (scores + ends * _NEVER).topk(n)[1]
        beams.ids, beams.scores = _gathered(ids, chosen), (scores + ends * _NEVER).gather(1, chosen)
        _take_ended(beams, ids, scores, ends, length, start, config)
        # Rows are counted over the batch: row of beam j of image i is i * n + j.
        offset = torch.arange(len(scores), device=ids.device)[:, None] * n
        rows = (origin.gather(1, chosen) + offset).flatten()
        _reorder(batch, rows)
        closed = ~beams.open
        if config.early_stopping is True:
            closed |= beams.filled.all(1)
        if bool(closed.all()) or bool(ends.all()):
            break
        if _enough_ended(closed):
            _write_back(everything, beams, batch.images)
            staying = (~closed).nonzero()[:, 0]
            beams = beams.of(staying)
            batch.keep(staying)
    _write_back(everything, beams, batch.images)
    wanted = int(config.num_return_sequences or 1)
    longest = int(everything.best_lengths[:, :wanted].max())
    sequences = everything.best_ids[:, :wanted, :longest].flatten(0, 1)
    return FoundCaptions(sequences, everything.best_scores[:, :wanted].flatten())


def _take_ended(
    beams: _Beams,
    ids: torch.Tensor,
    scores: torch.Tensor,
    ends: torch.Tensor,
    length: int,
    start: int,
    config: GenerationConfig,
) -> None:
    """Put candidates that ended among the n best into the ended ones, and see whether anything can still get better.

    Args:
        ids: (A, width, L). scores: (A, width). ends: (A, width) bool.
    """
    n = beams.scores.shape[1]
    counts = ends & (torch.arange(ends.shape[1], device=ends.device) < n) & beams.open[:, None]
    if config.early_stopping is True:
        counts = counts & ~beams.filled.all(1, keepdim=True)
    penalised = scores / (length - start) ** config.length_penalty
    merged = torch.cat([beams.best_scores, penalised.masked_fill(~counts, 2 * _NEVER)], dim=1)
    beams.best_scores, places = merged.topk(n)
    beams.best_ids = _gathered(torch.cat([beams.best_ids, ids], dim=1), places)
    lengths = torch.cat([beams.best_lengths, torch.full_like(ends, length, dtype=torch.int64)], dim=1)
    beams.best_lengths = lengths.gather(1, places)
    beams.filled = torch.cat([beams.filled, counts], dim=1).gather(1, places)

    hoped = length - start
    if config.early_stopping == "never" and config.length_penalty > 0:
        hoped = int(config.max_length) - start
    reachable = beams.scores[:, :1] / hoped**config.length_penalty
    to_beat = torch.where(beams.filled, beams.best_scores.amin(1, keepdim=True), _NEVER)
    beams.open = beams.open & (reachable > to_beat).any(1)


def _reorder(batch: _Batch, rows: torch.Tensor) -> None:
    # Known by what it can do: releases of transformers call the argument differently.
    caches = [value for value in batch.kwargs.values() if hasattr(value, "reorder_cache")]
    assert caches, "beam search goes through a cache"
    for cache in caches:
        cache.reorder_cache(rows)


def _write_back(everything: _Beams, beams: _Beams, images: torch.Tensor) -> None:
    if beams is not everything:
        for name in ("best_ids", "best_scores", "best_lengths"):
            getattr(everything, name)[images.to(beams.ids.device)] = getattr(beams, name)


def _gathered(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(A, m, L) and (A, k) -> (A, k, L)."""
    return ids.gather(1, places[..., None].expand(-1, -1, ids.shape[-1]))


def _end_tokens(config: GenerationConfig) -> list[int]:
    ends = config.eos_token_id
    return [] if ends is None else [int(end) for end in (ends if isinstance(ends, Sequence) else [ends])]


def _padding(config: GenerationConfig) -> int:
    return int(config.pad_token_id) if config.pad_token_id is not None else [*_end_tokens(config), -1][0]
