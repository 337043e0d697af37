"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) on pairs of captions of one image."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.captioners.probe import evaluating
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.recipe.dpo import DpoOptions
from hfcap.schema import IGNORED_LABEL, CaptionedImage, PackedCaptions, sent
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.objectives.frozen import Start


class Pair(NamedTuple):
    """Two captions of one image, of which a person preferred the first."""

    chosen: str
    rejected: str


def read_pairs(path: Path) -> dict[str, list[Pair]]:
    """Return file name (or image id) -> pairs, each once, in the order of the file.

    Raises:
        UserError: a line lacks a text, or prefers a caption to itself.
    """
    found: dict[str, dict[Pair, None]] = {}
    for number, row in read_json_lines(path, "pairs of captions"):
        texts = [row.get(key) for key in ("file_name", "chosen", "rejected")]
        name, chosen, rejected = (text.strip() if isinstance(text, str) else "" for text in texts)
        if not (name and chosen and rejected):
            raise UserError(f"{path}: line {number} lacks file_name, chosen or rejected; delete the line")
        if chosen == rejected:
            raise UserError(f"{path}: line {number}: chosen and rejected are the same caption; delete the line")
        found.setdefault(name, {})[Pair(chosen, rejected)] = None
    if not found:
        raise UserError(f"{path}: holds no pairs of captions; write some with hfcap review")
    return {name: list(pairs) for name, pairs in found.items()}


def pairs_of_records(
    records: Sequence[CaptionedImage], pairs: Mapping[str, list[Pair]], where: str
) -> list[tuple[CaptionedImage, list[Pair]]]:
    """Return the records that pairs are about, with their pairs.

    Raises:
        UserError: no pair is about an image of these records.
    """
    found = [(record, pairs.get(record.file_name) or pairs.get(record.image_id) or []) for record in records]
    chosen = [(record, of_record) for record, of_record in found if of_record]
    if not chosen:
        raise UserError(
            f"{where}: none of its images ({next(iter(pairs))}, ...) is in the training split ({records[0].file_name}, "
            "...); name images as the data source does"
        )
    return chosen


class Preference(CrossEntropy):
    """Sum over pairs of -log sigmoid(beta * margin); in evaluation mode the cross-entropy.

    The margin is how much more the captioner prefers the chosen caption to the rejected one than the captioner that
    training started from does, in log-probabilities of whole captions, end token included (equation 7 of the paper).
    The loop divides by the number of pairs.

    Args:
        tokens: for each image of the training split, (chosen, rejected) token ids of its pairs.
        max_tokens: longer captions are cut, and the cut is no end.
    """

    def __init__(
        self,
        captioner: Captioner,
        options: DpoOptions,
        tokens: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
        max_tokens: int,
    ) -> None:
        super().__init__(captioner, 0.0)
        self.options, self.tokens, self.max_tokens = options, tokens, max_tokens
        object.__setattr__(self, "start", Start(captioner))

    start: Start

    def units(self, batch: CaptionBatch) -> int:
        """Number of pairs of the batch."""
        return sum(len(self.tokens[number]) for number in batch.numbers)

    def longest_row(self) -> int:
        """Return the length of the longest row of an image's pairs."""
        n_start = len(self.captioner.start_token_ids())
        rows = ([n_start + min(len(ids), self.max_tokens) for pair in pairs for ids in pair] for pairs in self.tokens)
        return max(map(sum, rows))

    def forward(self, batch: CaptionBatch) -> torch.Tensor:
        """Return the summed loss, a float32 scalar (in evaluation mode: summed cross-entropy)."""
        if not self.training:
            return super().forward(batch)
        groups = [[ids for pair in self.tokens[number] for ids in pair] for number in batch.numbers]
        packed = pack_captions(
            [[ids[: self.max_tokens] for ids in group] for group in groups],
            self.captioner.start_token_ids(),
            self.captioner.end_token_id,
            self.captioner.pad_token_id,
            [[len(ids) <= self.max_tokens for ids in group] for group in groups],
        ).to(batch.images.device)
        most = max(map(len, groups))
        with contextlib.nullcontext() if self.options.dropout else evaluating(self.model):
            states = batch.images if batch.encoded else self.captioner.encode(batch.images)
            ours = caption_log_probabilities(self.captioner.logits(states, packed), packed, most)
        with torch.no_grad():
            theirs = caption_log_probabilities(self.start(batch, packed), packed, most)
        # Where pairs stand among (B, most // 2): a mask as an index would be counted, for which the host waits.
        counts = [len(group) // 2 for group in groups]
        listed = [row * (most // 2) + pair for row, count in enumerate(counts) for pair in range(count)]
        places = sent(torch.tensor(listed, dtype=torch.long), ours.device)
        rewards = self.options.beta * (ours - theirs)
        chosen, rejected = rewards[:, 0::2], rewards[:, 1::2]
        margins = (chosen - rejected).flatten()[places]
        self._note(*(part.detach() for part in (chosen.flatten()[places], rejected.flatten()[places], margins)))
        return -nn.functional.logsigmoid(margins).sum()

    def _note(self, chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor) -> None:
        """Take in rewards and margins of pairs, each (N,), without waiting for them."""
        self._add(
            pairs=len(margins),
            reward_accuracy=(margins > 0).sum(),
            reward_margin=margins.sum(),
            reward_chosen=chosen.sum(),
            reward_rejected=rejected.sum(),
        )

    def report(self, sums: Mapping[str, float], processes: int) -> dict[str, float]:
        """Return means over the pairs since the last row of the log."""
        pairs = max(sums.get("pairs", 0.0), 1.0)
        return {name: total / pairs for name, total in sums.items() if name != "pairs"}


def caption_log_probabilities(logits: torch.Tensor, packed: PackedCaptions, n_captions: int) -> torch.Tensor:
    """Return the log-probability of each caption: (B, P, V) -> (B, K) float32, 0 where an image has fewer captions."""
    surprise = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), packed.labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    ).view_as(packed.labels)
    sums = torch.zeros(len(surprise), n_captions, device=surprise.device)
    return -sums.scatter_add(1, packed.caption_index.clamp(min=0), surprise)
