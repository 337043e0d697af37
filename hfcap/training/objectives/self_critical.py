"""Self-critical sequence training (Rennie et al. 2017, arXiv:1612.00563): REINFORCE with a caption metric as reward.

Shape letters: B images, K samples of an image, L generated tokens, P positions of a packed row, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hfcap.captioners.base import Captioner
from hfcap.captioners.probe import evaluating
from hfcap.data.loading import CaptionBatch
from hfcap.data.packing import pack_captions
from hfcap.errors import WorkError
from hfcap.metrics.bad_endings import ends_badly
from hfcap.metrics.shared.images import Images
from hfcap.metrics.shared.tokenizer import tokenize
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.scst import ScstOptions
from hfcap.schema import IGNORED_LABEL, CaptionedImage, PackedCaptions, sent
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.objectives.frozen import Start
from hfcap.training.objectives.reward import CaptionReward


@dataclass(frozen=True, slots=True)
class SampledCaptions:
    """K generated captions of each of B images.

    Attributes:
        tokens: B lists of K captions as token ids after the prompt, without the end token.
        texts: the same as text.
        ended: (B, K) whether the end token was chosen before the length limit.
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    ended: NDArray[np.bool_]


class Writer(Protocol):
    """A captioner with whole weights, for a training whose own are in pieces."""

    def take(self, trained: nn.Module) -> None:
        """Take the weights of the model that is trained; every process calls this."""

    def placed(self, device: torch.device) -> contextlib.AbstractContextManager[Captioner]:
        """Give the captioner, on a device while the block lasts."""


class SelfCritical(CrossEntropy):
    """Minus the sum over sampled captions of advantage x log-probability; in evaluation mode the cross-entropy.

    A caption's advantage is its reward minus the image's baseline: the mean reward of the image's other samples (Luo
    2020, arXiv:2003.09971) or the reward of its greedy caption (Rennie et al. 2017). The loop divides by the number
    of samples, which makes the gradient the unbiased REINFORCE estimate: a sum over the words of a caption, a mean
    over captions.

    Captions are drawn from the whole distribution (no top-k; sharpened by `temperature`, and then it is the sharpened
    one that is trained) in evaluation mode, as in generation. Their log-probabilities come from one ordinary packed
    pass, in evaluation mode too unless `dropout` is set (the reference implementation of Luo 2020 has dropout on in
    both). Random numbers are torch's global ones, which checkpoints hold: a resumed run draws the same captions.

    Args:
        records: the training split, in the order of the numbers in a batch.
        max_new_tokens: length limit of the samples.
        image_source: of the records, where CLIPScore is part of the reward.
        words: puts spaces between the words of captions that are not English, for the rewards that compare words.
    """

    def __init__(
        self,
        captioner: Captioner,
        options: ScstOptions,
        records: Sequence[CaptionedImage],
        max_new_tokens: int,
        image_source: Images | None = None,
        words: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(captioner, 0.0)
        self.options = options
        self.image_ids = [record.image_id for record in records]
        self.reward = CaptionReward(records, options, image_source, captioner.device.type, words)
        self.sampling = GenerateOptions(
            num_beams=1,
            do_sample=True,
            top_k=0,
            temperature=options.temperature,
            num_return_sequences=options.num_samples,
            max_new_tokens=max_new_tokens,
        )
        self.greedy = GenerateOptions(num_beams=1, max_new_tokens=max_new_tokens)
        object.__setattr__(self, "start", Start(captioner) if options.kl_weight else None)
        self.whole: Writer | None = None
        self._writing = captioner

    def units(self, batch: CaptionBatch) -> int:
        """Number of captions that will be sampled for the batch."""
        return len(batch.images) * self.options.num_samples

    def longest_row(self) -> int:
        """Return the length of a row of samples that all reach the limit."""
        return self.options.num_samples * (len(self.captioner.start_token_ids()) + int(self.sampling.max_new_tokens))

    def before_update(self) -> None:
        """Let the captioner that draws have the weights as they are now."""
        if self.whole is not None:
            self.whole.take(self.model)

    def forward(self, batch: CaptionBatch) -> torch.Tensor:
        """Sample, reward, and return the summed loss, a float32 scalar (in evaluation mode: summed cross-entropy)."""
        if not self.training:
            return super().forward(batch)
        states = batch.images if batch.encoded else self.captioner.encode(batch.images)
        samples, advantages = self._judged(batch, states.detach())
        packed = pack_captions(
            samples.tokens,
            self.captioner.start_token_ids(),
            self.captioner.end_token_id,
            self.captioner.pad_token_id,
            samples.ended.tolist(),
        ).to(states.device)
        with contextlib.nullcontext() if self.options.dropout else evaluating(self.model):
            # The logits of the distribution that was sampled from.
            logits = self.captioner.logits(states, packed) / self.options.temperature
        surprise = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), packed.labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
        ).view_as(packed.labels)
        # (B, K) -> (B, P): every word carries the advantage of its caption.
        weights = sent(torch.as_tensor(advantages, dtype=torch.float32), states.device)
        loss = (surprise * weights.gather(1, packed.caption_index.clamp(min=0))).sum()
        if self.start is not None:
            divergence = self._divergence(self.start, batch, packed, logits)
            self._add(divergence=divergence)
            loss = loss + self.options.kl_weight * divergence
        return loss

    # ---- samples and their advantages --------------------------------------------------------------------------

    def _judged(self, batch: CaptionBatch, states: torch.Tensor) -> tuple[SampledCaptions, NDArray[np.float64]]:
        """Sample K captions of each image; return them with their advantages, (B, K)."""
        began = time.perf_counter()
        with evaluating(self.model), torch.no_grad(), self._writer(states.device) as self._writing:
            samples = self._generated(states, self.sampling)
            greedy = self._generated(states, self.greedy) if self.options.baseline == "greedy" else None
        # What autocast has cast without gradients would be used again in the pass that needs them.
        torch.clear_autocast_cache()
        sampled = time.perf_counter()
        image_ids = [self.image_ids[number] for number in batch.numbers]
        values = self.reward.scores(image_ids, samples.texts, samples.ended)
        rewards = values["reward"]
        if greedy is None:
            baseline = leave_one_out_means(rewards)
        else:
            baseline = self.reward.scores(image_ids, greedy.texts, greedy.ended)["reward"]
        advantages = rewards - baseline
        bad = [ends_badly(tokenize(text)) for group in samples.texts for text in group]
        self._add(
            samples=rewards.size,
            advantage=float(np.abs(advantages).sum()),
            bad_endings=sum(bad),
            unfinished=int((~samples.ended).sum()),
            words=sum(len(caption) for group in samples.tokens for caption in group),
            sampling_seconds=sampled - began,
            reward_seconds=time.perf_counter() - sampled,
            **{name: float(scores.sum()) for name, scores in values.items()},
        )
        return samples, advantages

    def _writer(self, device: torch.device) -> contextlib.AbstractContextManager[Captioner]:
        """Give the captioner that draws: processes end at different words, which weights in pieces do not allow."""
        return contextlib.nullcontext(self.captioner) if self.whole is None else self.whole.placed(device)

    def _generated(self, states: torch.Tensor, options: GenerateOptions) -> SampledCaptions:
        start = torch.tensor([self.captioner.start_token_ids()], device=states.device)
        config = self.captioner.generation_config(options)
        config.return_dict_in_generate = True
        output = self._writing.generate(states, start.expand(len(states), -1), config)
        # A reward is made of words, so here, and in training nowhere else, the host waits for the device.
        tokens, ended = [], []
        for row in output.sequences[:, start.shape[1] :].tolist():
            has_end = self.captioner.end_token_id in row
            tokens.append(row[: row.index(self.captioner.end_token_id)] if has_end else row)
            ended.append(has_end)
        texts = self.captioner.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        n = options.num_return_sequences
        firsts = range(0, len(tokens), n)
        return SampledCaptions(
            [tokens[first : first + n] for first in firsts],
            [texts[first : first + n] for first in firsts],
            np.array(ended).reshape(-1, n),
        )

    def _divergence(
        self,
        start: Start,
        batch: CaptionBatch,
        packed: PackedCaptions,
        logits: torch.Tensor,
    ) -> torch.Tensor:
        """Kullback-Leibler divergence from the start captioner, summed over the sampled words."""
        with torch.no_grad():
            start_logits = start(batch, packed) / self.options.temperature
        assert packed.label_places is not None  # it was packed on the host
        ours, theirs = (
            of_all.flatten(0, 1)[packed.label_places].float().log_softmax(-1) for of_all in (logits, start_logits)
        )
        return nn.functional.kl_div(theirs, ours, reduction="sum", log_target=True)

    # ---- records -----------------------------------------------------------------------------------------------

    def report(self, sums: Mapping[str, float], processes: int) -> dict[str, float]:
        """Return means over the samples since the last row of the log, and the throughput of sampling."""
        samples = max(sums.get("samples", 0.0), 1.0)
        rates = {name: total / samples for name, total in sums.items() if not name.endswith(("samples", "_seconds"))}
        # Processes sample side by side; their seconds were added up.
        seconds = {name: max(sums.get(name, 0.0) / processes, 1e-9) for name in ("sampling_seconds", "reward_seconds")}
        return {
            **rates,
            "samples_per_second": samples / seconds["sampling_seconds"],
            "rewards_per_second": samples / seconds["reward_seconds"],
        }

    def check(self, row: Mapping[str, Any]) -> None:
        """Stop a training that has learnt to please the metric with unfinished captions.

        Raises:
            WorkError: more captions than `scst.max_bad_endings` end in the middle of a phrase.
        """
        limit = self.options.max_bad_endings
        for name in ("bad_endings", "validation_bad_endings"):
            if row.get(name, 0.0) > limit:
                remedy = "lower train.learning_rate, set scst.kl_weight, or raise the limit"
                if not self.options.end_token:
                    remedy = "set scst.end_token: true"
                raise WorkError(
                    f"step {row['step']}: {row[name]:.0%} of the captions end in the middle of a phrase ('a man on a'; "
                    f"scst.max_bad_endings: {limit}); {remedy}"
                )


def leave_one_out_means(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each of K rewards of an image the mean of the other K - 1: (B, K) -> (B, K)."""
    n_samples = rewards.shape[1]
    return (rewards.sum(axis=1, keepdims=True) - rewards) / (n_samples - 1)
