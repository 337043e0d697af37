"""Checks on a tiny input: fast generation against plain `generate`, packed captions against the model's own forward.

Both are asked on first use (verdicts.py) of a captioner with its own weights, and decide what is computed from then on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from hfcap.generation.random_state import own_randomness, random_states, restore_random_states
from hfcap.generation.rows import as_rows
from hfcap.generation.verdicts import LIBRARY_CHANGES, described, holds, say_plain
from hfcap.schema import IGNORED_LABEL, PackedCaptions, SizedImages

if TYPE_CHECKING:
    from hfcap.captioners.base import Captioner
    from hfcap.recipe.blocks import GenerateOptions

_GENERATION, _PLAIN_GENERATION = "faster generation", "plain generate"
_STEPS, _QUESTIONS = 5, 6
_TINY_ROW, _MOST_CAPTIONS = 16, 8
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 5e-2
"""Largest difference of a logit or score, in spreads (standard deviations) of the logits: rounding alone."""


def may_generate_fast(
    captioner: Captioner, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig
) -> bool:
    """Return whether `fast_generate` gives the captions and scores of `plain_generate` for this kind of search.

    Args:
        image_states: (B, S, D), or one for each image. input_ids: (B, T), as generation is about to be called with.
    """
    if int(config.max_new_tokens or 0) < 3:
        return False  # nothing to gain
    trial = _trial(config)
    kind = {
        "beams": trial.num_beams,
        "returned": trial.num_return_sequences,
        "sampled": bool(trial.do_sample),
        "early_stopping": trial.early_stopping,
        "logits": bool(trial.output_logits),
        "repetitions": penalises_repetition(trial),
        **({"bad_words": True} if trial.bad_words_ids else {}),
        **({"padded": True} if isinstance(image_states, SizedImages) else {}),
    }

    def check() -> bool | None:
        with evaluating(captioner.model), own_randomness(image_states.device), torch.no_grad():
            for question in range(_QUESTIONS):
                states, starts = _three(image_states, question), _starts(captioner, input_ids, question)
                alike = _generates_alike(captioner, states, starts, trial)
                if alike is not None:
                    return alike
        return None

    return _decided(captioner, _GENERATION, kind, check, _PLAIN_GENERATION)


def generated(
    captioner: Captioner, image_states: torch.Tensor, input_ids: torch.Tensor, config: GenerationConfig
) -> Any:
    """Generate the fast way where that gives the same as the plain one, else, or if it fails in the middle, plainly."""
    if not (captioner.generates_fast and may_generate_fast(captioner, image_states, input_ids, config)):
        return captioner.plain_generate(image_states, input_ids, config)
    device = image_states.device
    states = random_states(device) if config.do_sample else None
    try:
        return captioner.fast_generate(image_states, input_ids, config)
    except torch.OutOfMemoryError:
        raise
    except LIBRARY_CHANGES as error:
        # What is wrong with the input itself, plain generation says as well.
        if states is not None:
            restore_random_states(states, device)
        output = captioner.plain_generate(image_states, input_ids, config)
        captioner.verdicts = dict.fromkeys(captioner.verdicts, False)
        say_plain(_purpose(_GENERATION, captioner), described(error), _PLAIN_GENERATION)
        return output


def may_pack(captioner: Captioner, image_states: torch.Tensor, length: int) -> bool:
    """Return whether `packed_states` and `packed_head` give the logits of the model's own forward.

    Asked with tiny rows, and again with rows of about the length that is needed: a language model whose attention
    reaches back a limited way (Mistral, Gemma, Qwen) packs rightly until a caption is longer than that.

    Args:
        image_states: (B, S, D) that captions are about to be packed behind.
        length: P of the rows.
    """

    def agrees(rows: PackedCaptions) -> bool:
        device = image_states.device
        autocast = torch.autocast(device.type, enabled=False)
        states = _three(image_states.to(captioner.states_dtype))[: len(rows.input_ids)]
        with evaluating(captioner.model), own_randomness(device), torch.no_grad(), autocast:
            return _packs_alike(captioner, states, rows.to(device))

    plain = "one row for each caption"
    if not _decided(captioner, "packing of captions", {}, lambda: agrees(_two_rows(captioner)), plain):
        return False
    if length <= _TINY_ROW:
        return True
    # Powers of two: a handful of checks whatever lengths come, and the same answer for a batch in every process.
    longest = 1 << (length - 1).bit_length()
    what = f"packing of captions into rows of {longest} tokens"
    return _decided(captioner, what, {"row": longest}, lambda: agrees(_long_row(captioner, longest)), plain)


def may_pad(captioner: Captioner, images: SizedImages, options: GenerateOptions) -> bool:
    """Return whether prompts of different lengths can be padded to one batch, for this kind of search.

    Greedy search alone: beams share prefixes of one length, and what forbids repetition would count the padding.
    """
    config = captioner.generation_config(options)
    greedy = options.num_beams == 1 and not options.do_sample and options.num_return_sequences == 1
    if not greedy or penalises_repetition(config) or options.max_new_tokens < 3:
        return False

    plain = "a batch for each length of prompts"
    return _decided(captioner, "padding of prompts", {}, lambda: _pads_alike(captioner, images, config), plain)


def penalises_repetition(config: GenerationConfig) -> bool:
    """Whether generation forbids repetitions: of what, depends on how the published model is given prefix and text."""
    return config.repetition_penalty not in (None, 1.0) or bool(config.no_repeat_ngram_size)


def _decided(captioner: Captioner, what: str, kind: dict[str, Any], check: Any, plain: str) -> bool:
    key = f"{what} {sorted(kind.items())}"
    if key not in captioner.verdicts:
        if captioner.settled:
            return False
        purpose = _purpose(what, captioner)
        captioner.verdicts[key] = holds(purpose, {**kind, **_facts(captioner)}, check, plain)
    return captioner.verdicts[key]


def _purpose(what: str, captioner: Captioner) -> str:
    return f"{what} of {type(captioner.model).__name__}"


def _facts(captioner: Captioner) -> dict[str, Any]:
    """What the code that runs depends on, whatever the weights."""
    model = captioner.model
    parameter = next(model.parameters())
    return {
        "family": captioner.family,
        "config": repr(model.config.to_diff_dict()),
        "modules": sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()}),
        "attention": sorted({str(config._attn_implementation) for config in _configs(model)}),
        "dtype": str(parameter.dtype),
        "device": parameter.device.type,
        **({"shapes": "own"} if captioner.own_shapes else {}),
        **({"weights": kinds} if (kinds := _kinds_of_weights(model)) else {}),
    }


def _kinds_of_weights(model: Any) -> list[str]:
    """Return the types of quantised weights, which their layers do not tell."""
    return sorted({type(weight).__name__ for weight in model.parameters()} - {"Parameter"})


def _configs(model: Any) -> Iterator[Any]:
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            yield module.config


# ---- the tiny input --------------------------------------------------------------------------------------------


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off for the block, and leave every module as it was: frozen ones may be in evaluation already."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _three(image_states: Any, question: int = 0) -> Any:
    """Return states of three images that nobody saw, shaped as the given ones: (3, S, D), or one of each shape.

    The answer must not hang on which image came first: the faster way differs from the plain one in the last digits,
    and a captioning that goes on after a stop has to give those of one that was never stopped.
    """
    noise = torch.Generator().manual_seed(question)

    def drawn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=noise).to(like)

    if isinstance(image_states, SizedImages):
        return image_states[[0, len(image_states) // 2, len(image_states) - 1]].mapped(drawn)
    return drawn(image_states[:1].expand(3, *image_states.shape[1:]))


def _ordinary_tokens(captioner: Captioner, count: int) -> list[int]:
    """Return some tokens of the vocabulary that are not special, far from one another."""
    tokenizer = captioner.tokenizer
    special = {*tokenizer.all_special_ids, captioner.start_token_id, captioner.end_token_id, captioner.pad_token_id}
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    return [ordinary[(2 * number + 1) * len(ordinary) // (2 * count)] for number in range(count)]


def _starts(captioner: Captioner, input_ids: torch.Tensor, question: int = 0) -> torch.Tensor:
    """Return another beginning for each of three images, so that their captions differ."""
    words = torch.tensor(_ordinary_tokens(captioner, 3 * (1 + question))[-3:], device=input_ids.device)
    return captioner.started_with(input_ids[:1].expand(3, -1), words)


def _trial(config: GenerationConfig) -> GenerationConfig:
    trial = copy.deepcopy(config)
    # One position less than the real search takes: the beginning may be one token longer.
    trial.max_new_tokens = min(_STEPS, int(config.max_new_tokens or 0) - 1)
    trial.min_new_tokens = None
    trial.num_beams = min(3, config.num_beams)
    trial.num_return_sequences = trial.num_beams if trial.num_beams > 1 else min(2, config.num_return_sequences)
    trial.return_dict_in_generate = True
    trial.output_scores = trial.num_beams > 1
    return trial


# ---- generation ------------------------------------------------------------------------------------------------


def _generates_alike(
    captioner: Captioner, states: torch.Tensor, ids: torch.Tensor, trial: GenerationConfig
) -> bool | None:
    plain = _same_of_both(captioner, states, ids, trial)
    if plain is None:
        return False
    ends = _ends_of_first(plain.sequences[:, ids.shape[1] :].tolist(), len(plain.sequences) // len(states))
    if not ends:
        return None
    # Images that end at different times: what has ended may leave the batch.
    uneven = copy.deepcopy(trial)
    own = _as_list(trial.eos_token_id)
    uneven.eos_token_id = [*own, *ends]
    if uneven.num_beams > 1:
        uneven.early_stopping = True
    left: list[int] = []
    return None if _same_of_both(captioner, states, ids, uneven, left) is not None and left == [0] else bool(left)


def _same_of_both(
    captioner: Captioner,
    states: torch.Tensor,
    ids: torch.Tensor,
    trial: GenerationConfig,
    left: list[int] | None = None,
) -> Any:
    """Generate both ways; the plain output, or None where the fast one differs.

    Args:
        left: takes how often images left the batch; 1 where the fast way lets none leave.
    """
    watched = copy.deepcopy(trial)
    watched.output_scores = True
    torch.manual_seed(0)
    plain = captioner.plain_generate(states, ids, watched)
    torch.manual_seed(0)
    fast = captioner.fast_generate(states, ids, trial)
    if not _same(plain, fast, ids.shape[1], trial, _allowed(captioner)):
        return None
    if left is not None:
        left.append(getattr(fast, "left", 1))
    return plain


def _ends_of_first(rows: list[list[int]], per_image: int) -> list[int]:
    """Tokens that only the first image says, in its first steps: as end tokens they end it before the others."""
    others = {token for row in rows[per_image:] for token in row}
    return sorted({token for row in rows[:per_image] for token in row[:3]} - others)


def _as_list(ends: Any) -> list[int]:
    return [] if ends is None else [*ends] if isinstance(ends, Sequence) else [ends]


def _same(plain: Any, fast: Any, first: int, trial: GenerationConfig, allowed: float) -> bool:
    """Compare two outputs of `generate`; `allowed` is the largest difference of a score, in spreads."""
    ends = _as_list(trial.eos_token_id)
    ours, theirs = ([_up_to_end(row, ends) for row in output.sequences[:, first:].tolist()] for output in (fast, plain))
    steps = plain.scores
    finite = torch.cat([step[step.isfinite()] for step in steps])
    # A damaged model may score every word as no number.
    tolerance = allowed * float(finite.float().std(correction=0)) if len(finite) else 0.0
    if trial.num_beams > 1:
        difference = (fast.sequences_scores.float() - plain.sequences_scores.float()).abs()
        # Different words with the same score are a tie.
        return len(ours) == len(theirs) and bool((difference <= tolerance).all())
    if trial.do_sample or len(ours) != len(theirs):
        return ours == theirs
    before = plain.sequences.shape[1] - len(steps)
    for row, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if our == their:
            continue
        place = next(n for n, (a, b) in enumerate(zip([*our, -1], [*their, -1], strict=False)) if a != b)
        if place >= min(len(our), len(their)):
            return False
        scores = steps[place + first - before][row].float()
        # The first word that differs must be as likely, up to rounding.
        if not float((scores[our[place]] - scores[their[place]]).abs()) <= tolerance:
            return False
    return True


def _up_to_end(row: list[int], ends: Sequence[int]) -> list[int]:
    """The words of a row and the token that ended it; what fills it up differs."""
    last = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[: last + 1]


def _allowed(captioner: Captioner) -> float:
    half = torch.is_autocast_enabled(captioner.device.type)
    return _HALF_TOLERANCE if half else _TOLERANCE.get(captioner.states_dtype, _HALF_TOLERANCE)


@torch.no_grad()
def _pads_alike(captioner: Any, images: SizedImages, config: GenerationConfig) -> bool:
    """Compare the logits of the smallest and the largest image in one batch with those of each by itself."""
    order = sorted(range(len(images)), key=lambda number: images.values[number].numel())
    images, trial = images[[order[0], order[-1]]], _trial(config)
    trial.output_logits = True
    ids = _starts(captioner, torch.tensor([captioner.start_token_ids()], device=images.device))[:2]
    together = captioner.plain_generate(images, ids, trial)
    for row, (states, size) in enumerate(zip(images.values, images.sizes, strict=True)):
        with captioner.images_of(size):
            alone = captioner.plain_generate(states[None], ids[row : row + 1], trial)
        words = zip(*(output.sequences[n, ids.shape[1] :] for output, n in ((together, row), (alone, 0))), strict=False)
        for ours, theirs, (our, their) in zip(together.logits, alone.logits, words, strict=False):
            tolerance = _allowed(captioner) * float(theirs.float().std())
            if not torch.allclose(ours[row].float(), theirs[0].float(), rtol=0, atol=tolerance):
                return False
            if our != their:
                break
    return True


# ---- packed captions -------------------------------------------------------------------------------------------


def _two_rows(captioner: Captioner) -> PackedCaptions:
    words = _ordinary_tokens(captioner, 6)
    captions = [[words[:3], words[3:5]], [words[2:6]]]
    return _tiny_rows(captioner.start_token_ids(), captions, captioner.pad_token_id)


def _long_row(captioner: Captioner, length: int) -> PackedCaptions:
    """Return a row of one image: a caption as long as row and text model allow, and what else fits after it."""
    start, words = captioner.start_token_ids(), _ordinary_tokens(captioner, 6)
    most = min(length - len(start) - 3, captioner.max_text_tokens or length)
    first = [words[number % 6] for number in range(max(1, most - len(start)))]
    captions, room = [first], length - len(first) - 2 * len(start)
    while room > 0 and len(captions) < _MOST_CAPTIONS:
        captions.append(first[1 : 1 + room] or words[:1])
        room -= len(captions[-1]) + len(start)
    return _tiny_rows(start, [captions], captioner.pad_token_id)


def _packs_alike(captioner: Captioner, states: torch.Tensor, packed: PackedCaptions) -> bool:
    inside = packed.caption_index >= 0
    found = captioner.packed_head(captioner.packed_states(states, packed))[inside].float()
    rows = as_rows(packed)
    expected = captioner.plain_logits(states.repeat_interleave(rows.per_image, 0), rows.input_ids)
    expected = rows.packed(expected)[inside].float()
    return bool((found - expected).abs().max() <= _allowed(captioner) * expected.std())


def _tiny_rows(start: list[int], captions: list[list[list[int]]], pad: int) -> PackedCaptions:
    """Pack captions without labels; data/packing.py is above this module."""
    rows = [
        [
            (token, place, number)
            for number, words in enumerate(of_image)
            for place, token in enumerate([*start, *words])
        ]
        for of_image in captions
    ]
    length = max(map(len, rows))
    filled = torch.tensor([row + [(pad, 0, -1)] * (length - len(row)) for row in rows])
    ids, positions, index = (part.contiguous() for part in filled.unbind(-1))
    return PackedCaptions(ids, positions, index, torch.full_like(ids, IGNORED_LABEL))
