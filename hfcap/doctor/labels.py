"""Which tokens are really in the loss: read off the loss's gradient, and counted over many batches.

The gradient of the loss by the logits is not zero exactly at the positions that count, and lowest at the token that
is the target there. So what is shown comes out of the objective itself and not out of the labels it was given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, cast

import torch

from hfcap.captioners.base import Captioner
from hfcap.data.loading import BatchLoader, CaptionBatch, CaptionDataset, Collate, ImageInputs, epoch_batches
from hfcap.doctor.findings import Findings, not_yours
from hfcap.recipe.blocks import Recipe
from hfcap.schema import IGNORED_LABEL, CaptionedImage, PackedCaptions
from hfcap.training.objectives.cross_entropy import CrossEntropy

MAX_COUNTED_BATCHES = 100


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """Positions of packed rows, by what the loss does with them; wrong ones must all be 0.

    Attributes:
        positions: row positions. padding: those that only fill a row. supervised: those in the loss.
        captions: captions announced by the batches. found: captions in the rows.
        ended: captions whose end token is a target exactly once, after the last word, or that were cut and have none.
        padding_in_loss, prompt_in_loss: padding and prompt positions in the loss.
        words_ignored: caption tokens that the loss leaves out. wrong_target: positions whose target is not the
            next one. wrong_start: captions that do not begin with start token and prompt.
    """

    positions: int = 0
    padding: int = 0
    supervised: int = 0
    captions: int = 0
    found: int = 0
    ended: int = 0
    padding_in_loss: int = 0
    prompt_in_loss: int = 0
    words_ignored: int = 0
    wrong_target: int = 0
    wrong_start: int = 0

    def plus(self, other: LabelCounts) -> LabelCounts:
        """Return the sums."""
        return LabelCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class ShownCaption:
    """One caption as training sees it: (token, whether it is in the loss) in order; padding of its row after it."""

    file_name: str
    tokens: list[tuple[str, bool]]


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """Labels of one training run.

    Attributes:
        counted: over up to MAX_COUNTED_BATCHES batches, as packed.
        measured: over the images shown, as the gradient of the loss says.
        loss: mean cross-entropy per supervised token before training, nats. uniform: that of guessing, ln(vocabulary).
    """

    counted: LabelCounts
    measured: LabelCounts
    shown: list[ShownCaption]
    loss: float | None
    uniform: float
    vocabulary: int


class WithoutImages:
    """Placeholder inputs when only captions are inspected."""

    encoded = False
    plan = None

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return a placeholder."""
        return torch.zeros(1)


class _LogitsWatch:
    """Passes a captioner's logits on to the objective and keeps them, so that their gradient can be read."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.model = captioner.model
        self.seen: torch.Tensor | None = None

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode as the captioner does."""
        with torch.no_grad():
            return self.captioner.encode(pixel_values)

    def decoder_states(self, image_states: torch.Tensor, packed: PackedCaptions) -> torch.Tensor:
        """Return the captioner's logits (B, P, V), which are kept."""
        # All logits stand in for the states, so that a gradient shows which of them the objective reads.
        with torch.no_grad():
            logits = self.captioner.head(self.captioner.decoder_states(image_states, packed))
        self.seen = logits.detach().float().requires_grad_()
        return self.seen

    def states_and_penalty(
        self, image_states: torch.Tensor, packed: PackedCaptions
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits alone."""
        # A penalty teaches no token.
        return self.decoder_states(image_states, packed), None

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Return what `decoder_states` gave: the logits."""
        return states


def collate_for(captioner: Captioner, inputs: ImageInputs) -> Collate:
    """Return the collate function that training uses."""
    return Collate(captioner.start_token_ids(), captioner.end_token_id, captioner.pad_token_id, inputs)


def shown_images(recipe: Recipe, lengths: Sequence[int]) -> list[int]:
    """Numbers of the images with the fewest, middling and most caption tokens in the first training batch."""
    batches = epoch_batches(lengths, recipe.train.per_device_train_batch_size, recipe.train.seed, 0)
    ordered = sorted(batches[0], key=lambda number: lengths[number])
    return list(dict.fromkeys([ordered[0], ordered[len(ordered) // 2], ordered[-1]]))


def examine_labels(
    recipe: Recipe,
    captioner: Captioner,
    tokens: Sequence[Sequence[Sequence[int]]],
    batch: CaptionBatch,
    names: Sequence[str],
    findings: Findings,
) -> LabelFacts:
    """Find out which tokens are targets of the loss.

    Args:
        tokens: token ids of every caption of every training image.
        batch: a small real batch with pixels, on the captioner's device; `names` are its images' file names.
    """
    limit = recipe.data.max_caption_tokens
    counted = _count_many(recipe, captioner, tokens)
    targets, loss, vocabulary = loss_targets(recipe, captioner, batch)
    measured = count_labels(batch.packed, targets, captioner, limit).plus(LabelCounts(captions=batch.n_captions))
    facts = LabelFacts(
        counted, measured, _shown(captioner, batch.packed, targets, names), loss, math.log(vocabulary), vocabulary
    )
    _report(facts, captioner, findings)
    return facts


def _count_many(recipe: Recipe, captioner: Captioner, tokens: Sequence[Sequence[Sequence[int]]]) -> LabelCounts:
    options = recipe.train
    limit, per_image = recipe.data.max_caption_tokens, recipe.data.captions_per_image
    dataset = CaptionDataset(WithoutImages(len(tokens)), tokens, per_image, options.seed, limit)
    lengths = [sum(map(len, captions)) for captions in tokens]
    batches = epoch_batches(lengths, options.per_device_train_batch_size, options.seed, 0)[:MAX_COUNTED_BATCHES]
    total = LabelCounts()
    for batch in BatchLoader(dataset, collate_for(captioner, dataset.inputs), 0).load(batches, 0):
        total = total.plus(count_labels(batch.packed, batch.packed.labels, captioner, limit))
        total = total.plus(LabelCounts(captions=batch.n_captions))
    return total


def count_labels(
    packed: PackedCaptions, targets: torch.Tensor, captioner: Captioner, max_tokens: int | None = None
) -> LabelCounts:
    """Compare the targets (B, P), IGNORED_LABEL elsewhere, with the words in the rows.

    Args:
        max_tokens: captions of that many tokens may have been cut, and then have no end.
    """
    start, end = captioner.start_token_ids(), captioner.end_token_id
    counts = LabelCounts(
        positions=targets.numel(),
        padding=int((packed.caption_index < 0).sum()),
        supervised=int((targets != IGNORED_LABEL).sum()),
        padding_in_loss=int(((packed.caption_index < 0) & (targets != IGNORED_LABEL)).sum()),
    )
    for image, (inputs, index, row) in enumerate(
        zip(packed.input_ids.tolist(), packed.caption_index.tolist(), targets.tolist(), strict=True)
    ):
        for number in sorted(set(index) - {-1}):
            if packed.prompts is not None:
                start = captioner.start_token_ids(packed.prompts[image][number])
            places = [place for place, owner in enumerate(index) if owner == number]
            counts = counts.plus(
                _count_one([inputs[p] for p in places], [row[p] for p in places], start, end, max_tokens)
            )
    return counts


def _count_one(inputs: list[int], labels: list[int], start: list[int], end: int, max_tokens: int | None) -> LabelCounts:
    """Count one caption: its inputs and the target at each of them."""
    words, targets = inputs[len(start) :], labels[len(start) - 1 :]
    cut = len(words) == max_tokens and targets[-1] == IGNORED_LABEL
    return LabelCounts(
        found=1,
        ended=int(labels.count(end) == 0 if cut else targets[-1] == end and labels.count(end) == 1),
        prompt_in_loss=sum(token != IGNORED_LABEL for token in labels[: len(start) - 1]),
        words_ignored=sum(token == IGNORED_LABEL for token in targets[:-1]),
        wrong_target=sum(token not in (IGNORED_LABEL, word) for token, word in zip(targets[:-1], words, strict=False)),
        wrong_start=int(inputs[: len(start)] != start),
    )


def loss_targets(recipe: Recipe, captioner: Captioner, batch: CaptionBatch) -> tuple[torch.Tensor, float | None, int]:
    """Return the target at each position (B, P), the mean loss before training, and the vocabulary's size."""
    watch = _LogitsWatch(captioner)
    objective = CrossEntropy(cast(Captioner, watch), recipe.train.label_smoothing_factor)
    objective.train()  # as in training, with label smoothing ...
    captioner.model.eval()  # ... but without dropout
    objective(batch).backward()
    assert watch.seen is not None and watch.seen.grad is not None
    gradient = watch.seen.grad
    targets = gradient.argmin(-1).masked_fill(gradient.abs().sum(-1) == 0, IGNORED_LABEL)
    objective.eval()
    count = int((targets != IGNORED_LABEL).sum())
    with torch.no_grad():
        loss = float(objective(batch)) / max(count, 1)
    return targets, loss if math.isfinite(loss) else None, gradient.shape[-1]


def _shown(
    captioner: Captioner, packed: PackedCaptions, targets: torch.Tensor, names: Sequence[str]
) -> list[ShownCaption]:
    shown = []
    for row, name in enumerate(names):
        inputs, index, labels = (t[row].tolist() for t in (packed.input_ids, packed.caption_index, targets))
        for number in sorted(set(index) - {-1}):
            places = [place for place, owner in enumerate(index) if owner == number]
            tokens = [(token_text(captioner.tokenizer, inputs[places[0]]), False)]
            for place, following in zip(places, [*places[1:], None], strict=True):
                if labels[place] != IGNORED_LABEL:
                    tokens.append((token_text(captioner.tokenizer, labels[place]), True))
                elif following is not None:
                    tokens.append((token_text(captioner.tokenizer, inputs[following]), False))
            shown.append(ShownCaption(name, tokens))
        padding = [
            (token_text(captioner.tokenizer, inputs[place]), labels[place] != IGNORED_LABEL)
            for place, owner in enumerate(index)
            if owner < 0
        ]
        if shown:
            shown[-1] = ShownCaption(name, [*shown[-1].tokens, *padding])
    return shown


def token_text(tokenizer: Any, token_id: int) -> str:
    """Return a token as a person reads it; one that is only part of a character as the tokenizer writes it."""
    text = tokenizer.decode([token_id]).strip()
    return text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token_id))


def _report(facts: LabelFacts, captioner: Captioner, findings: Findings) -> None:
    for what, counts in (("batches", facts.counted), ("loss", facts.measured)):
        wrong = {
            "padding positions are in the loss: the captioner learns to write padding": counts.padding_in_loss,
            "prompt positions are in the loss": counts.prompt_in_loss,
            "caption tokens are left out of the loss": counts.words_ignored,
            "positions have another target than the next token": counts.wrong_target,
            "captions do not begin with start token and prompt": counts.wrong_start,
            "captions have the end token in the loss not exactly once: the captioner never learns to stop": counts.found
            - counts.ended,
            "captions are missing in the rows": counts.captions - counts.found,
        }
        for message, count in wrong.items():
            if count:
                findings.error(
                    "captioner", f"{count:,} {message} (seen in the {what})", not_yours(captioner, "labels and packing")
                )
    if facts.loss is None:
        findings.error("train", "the loss is not a number before training", "check the base model's weights and dtype")
        return
    from_scratch = captioner.assembled and not captioner.base_models
    if facts.loss > facts.uniform + 1:
        findings.warning(
            "model",
            f"the loss before training is {facts.loss:.2f}, far above guessing ({facts.uniform:.2f})",
            "check that tokenizer and text model belong together"
            if not from_scratch
            else "the random weights start too large; lower the configuration's initializer_range",
        )
    if from_scratch and facts.loss < 0.5 * facts.uniform:
        findings.error(
            "captioner",
            f"random weights reach a loss of {facts.loss:.2f} (guessing: {facts.uniform:.2f}): they see the answer",
            not_yours(captioner, "attention mask"),
        )


def example_batch(
    captioner: Captioner, dataset: CaptionDataset, records: Sequence[CaptionedImage], numbers: Sequence[int]
) -> tuple[CaptionBatch, list[str]]:
    """Return the batch that training would make of these images, and their file names."""
    batch: CaptionBatch = collate_for(captioner, dataset.inputs)([dataset[(0, number)] for number in numbers])
    return batch.to(captioner.device), [records[number].file_name for number in numbers]
