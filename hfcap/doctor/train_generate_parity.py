"""Whether training and generation are the same captioner: start token, predictions, masks, and whether it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.doctor.findings import Findings, not_yours
from hfcap.doctor.labels import token_text
from hfcap.recipe.blocks import Recipe
from hfcap.schema import PackedCaptions
from hfcap.training.build import text_without_room

N_COMPARED_TOKENS = 4
_TOLERANCE = {torch.float32: 1e-3}
_HALF_TOLERANCE = 5e-2
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class AgreementFacts:
    """Training compared with generation.

    Attributes:
        start_in_training: first token of the training rows, as text.
        start_in_generation: first token of the sequences that the captioner generates.
        start_in_transformers: the same for `model.generate(pixel_values=...)`, which users of the published model
            call; None where that call failed.
        prediction_difference: largest difference between the logits of training and of generation for the same words,
            relative to their size; None where generation does not give its logits.
        leak: largest change of a prediction, relative to its size, by a later word or by another caption; 0 is right.
        image_effect: largest change of a prediction, relative to its size, by another image; None with one image.
    """

    start_in_training: str
    start_in_generation: str
    start_in_transformers: str | None
    prediction_difference: float | None
    leak: float | None
    image_effect: float | None


@torch.no_grad()
def examine_agreement(recipe: Recipe, captioner: Captioner, batch: CaptionBatch, findings: Findings) -> AgreementFacts:
    """Compare on a small real batch with pixels; the captioner's model is put into evaluation mode."""
    captioner.model.eval()
    if captioner.own_shapes:  # one image: others may have another number of tokens
        batch = replace(batch, images=batch.images[:1], packed=batch.packed.rows([0]))
        with captioner.images_of(batch.images.sizes[0]):
            whole = replace(batch, images=torch.stack(list(batch.images.values)))
            return _examined(recipe, captioner, whole, findings)
    return _examined(recipe, captioner, batch, findings)


def _examined(recipe: Recipe, captioner: Captioner, batch: CaptionBatch, findings: Findings) -> AgreementFacts:
    states = captioner.encode(batch.images)
    first = int(batch.packed.input_ids[0, 0])
    output = _generate(recipe, captioner, states)
    generated = int(output.sequences[0, 0])
    plain = _plain_start(recipe, captioner, batch.images, findings)
    logits = captioner.logits(states, batch.packed)
    facts = AgreementFacts(
        token_text(captioner.tokenizer, first),
        token_text(captioner.tokenizer, generated),
        None if plain is None else token_text(captioner.tokenizer, plain),
        _prediction_difference(captioner, states, output),
        _leak(captioner, states, batch.packed, logits),
        _image_effect(captioner, states, batch.packed, logits),
    )
    _report_start(captioner, (first, generated, plain), findings)
    _report(facts, captioner, findings)
    return facts


def _greedy_config(recipe: Recipe, captioner: Captioner, max_new_tokens: int) -> Any:
    changes = {"num_beams": 1, "do_sample": False, "num_return_sequences": 1, "min_new_tokens": 0}
    options = recipe.generate.model_copy(update={**changes, "max_new_tokens": max_new_tokens})
    config = captioner.generation_config(options)
    config.return_dict_in_generate = True
    return config


def _generate(recipe: Recipe, captioner: Captioner, states: torch.Tensor) -> Any:
    config = _greedy_config(recipe, captioner, N_COMPARED_TOKENS)
    config.output_logits = True
    start = torch.tensor([captioner.start_token_ids()], device=states.device)
    return captioner.generate(states, start.expand(states.shape[0], -1), config)


def _plain_start(recipe: Recipe, captioner: Captioner, pixels: torch.Tensor, findings: Findings) -> int | None:
    """First token of what plain transformers generates; users of the published model call it this way."""
    try:
        return captioner.transformers_start_token(pixels, _greedy_config(recipe, captioner, max_new_tokens=1))
    except (TypeError, ValueError, RuntimeError) as error:
        findings.warning(
            "captioner",
            f"model.generate(pixel_values=...) of plain transformers fails: {str(error).splitlines()[0]}",
            "the published model would need another call; see its card",
        )
        return None


def _relative(difference: torch.Tensor, logits: torch.Tensor) -> float:
    return float(difference.abs().max() / logits.abs().max().clamp_min(1e-6)) if difference.numel() else 0.0


def _prediction_difference(captioner: Captioner, states: torch.Tensor, output: Any) -> float | None:
    """Give the generated words to the training path and compare its logits with those that generation had."""
    scores: Sequence[torch.Tensor] | None = getattr(output, "logits", None)
    if not scores:
        return None
    start = captioner.start_token_ids()
    new = output.sequences[:, len(start) :].tolist()
    end = captioner.end_token_id
    words = [row[: row.index(end)] if end in row else row[:-1] for row in new]
    packed = pack_captions([[row] for row in words], start, end, captioner.pad_token_id).to(states.device)
    trained = captioner.logits(states, packed)
    worst = 0.0
    for row, row_words in enumerate(words):
        for step in range(len(row_words) + 1):
            there, here = scores[step][row].float(), trained[row, len(start) - 1 + step].float()
            worst = max(worst, _relative(there - here, here))
    return worst


def _leak(captioner: Captioner, states: torch.Tensor, packed: PackedCaptions, logits: torch.Tensor) -> float | None:
    """Change the last word of each row's first caption: only the prediction after that word may change."""
    changed = packed.input_ids.clone()
    compared = packed.caption_index >= 0
    for row, index in enumerate(packed.caption_index.tolist()):
        last = max((place for place, owner in enumerate(index) if owner == 0), default=None)
        if last is None:
            return None
        changed[row, last] = (changed[row, last] + 1) % logits.shape[-1]
        compared[row, last] = False
    difference = captioner.logits(states, replace(packed, input_ids=changed)) - logits
    return _relative(difference[compared], logits[packed.caption_index >= 0])


def _image_effect(
    captioner: Captioner, states: torch.Tensor, packed: PackedCaptions, logits: torch.Tensor
) -> float | None:
    if states.shape[0] < 2:
        return None
    difference = captioner.logits(states.roll(1, 0), packed) - logits
    inside = packed.caption_index >= 0
    return _relative(difference[inside], logits[inside])


def _report_start(captioner: Captioner, starts: tuple[int, int, int | None], findings: Findings) -> None:
    training, generation, plain = starts
    texts = [None if token is None else token_text(captioner.tokenizer, token) for token in starts]
    if generation != training:
        findings.error(
            "captioner",
            f"training starts from {texts[0]!r} (token {training}) but generation from {texts[1]!r} "
            f"(token {generation})",
            not_yours(captioner, "start_token_id or generate"),
        )
    if plain not in (None, training):
        findings.error(
            "captioner",
            f"training starts from {texts[0]!r} (token {training}) but model.generate of plain transformers, as "
            f"users of the published model call it, from {texts[2]!r} (token {plain})",
            "set decoder_start_token_id in the base model's configuration; where it is right, "
            + not_yours(captioner, "start_token_id"),
        )


def _report(facts: AgreementFacts, captioner: Captioner, findings: Findings) -> None:
    dtype = next(captioner.model.parameters()).dtype
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    if facts.prediction_difference is not None and not facts.prediction_difference <= tolerance:
        findings.error(
            "captioner",
            f"for the same words, training and generation predict differently (by {facts.prediction_difference:.1%} of "
            "the largest logit): masks, positions or prompt differ",
            not_yours(captioner, "logits or generate"),
        )
    if facts.leak is not None and not facts.leak <= tolerance:
        findings.error(
            "captioner",
            f"predictions depend on later words or on other captions of the image (by {facts.leak:.1%}): the "
            "captioner can copy the answer",
            not_yours(captioner, "attention mask in logits"),
        )
    # A path that starts with a zero gate may be closed; that is worth knowing, not wrong.
    if facts.image_effect is not None and facts.image_effect < _ROUNDING:
        remedy = f"look at the contact sheet; where it shows the images, {not_yours(captioner, 'encode and logits')}"
        if captioner.assembled:
            # transformers' BLIP, for one, starts its vision model from 1e-10.
            remedy += "; random weights may start too small: see initializer_range in the model's configuration"
        findings.warning("model", "another image does not change any prediction: the captioner does not look", remedy)


@torch.no_grad()
def check_longest(recipe: Recipe, captioner: Captioner, batch: CaptionBatch, longest: int, findings: Findings) -> bool:
    """Run the longest caption that training or generation can meet; report and return False if it does not fit.

    Args:
        longest: tokens of the longest training caption, not yet cut.
    """
    without_room = text_without_room(captioner, recipe)
    if without_room is not None:
        findings.error(*without_room)
        return False
    trained = min(longest, recipe.data.max_caption_tokens)
    length = max(trained, recipe.generate.max_new_tokens - 1)
    word = captioner.end_token_id
    packed = pack_captions(
        [[[word] * length]], captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id
    ).to(captioner.device)
    states = captioner.encode(batch.images[:1])
    try:
        captioner.logits(states, packed)
    except (IndexError, RuntimeError) as error:
        key = "data.max_caption_tokens" if length == trained else "generate.max_new_tokens"
        findings.error(
            key,
            f"a caption of {length} tokens does not fit into the text model ({str(error).splitlines()[0]})",
            "lower it, shorten model.prompt, or give the text model more positions",
        )
        return False
    return True
