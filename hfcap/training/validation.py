"""Validation during training: loss on the validation split and, where asked for, CIDEr-D of generated captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from hfcap.captioners.base import Captioner
from hfcap.data.loading import BatchLoader, CaptionBatch, CaptionDataset, Collate
from hfcap.decoding import DecodingJob, caption_batches
from hfcap.failures.memory import is_full_memory, parts_of, smaller_batch
from hfcap.generation.random_state import own_randomness
from hfcap.progress import error_console
from hfcap.text import printable
from hfcap.training.processes import summed

ScoreCaptions = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], dict[str, float]]


class Validator:
    """Computes the values that choose the best checkpoint; no augmentation, every caption of every image.

    Attributes:
        n_samples: of so many images, always the first ones, captions are shown and logged.
        samples: image_id and caption of each, as of the last validation; of the main process.
    """

    def __init__(
        self,
        captioner: Captioner,
        dataset: CaptionDataset,
        decoding: DecodingJob,
        scores: ScoreCaptions | None,
        accelerator: Any,
        batch_size: int,
    ) -> None:
        self.captioner = captioner
        self.dataset = dataset
        self.decoding = decoding
        self.scores = scores
        self.accelerator = accelerator
        self.n_samples = 0
        self.samples: list[dict[str, str]] = []
        numbers = sorted(range(len(dataset)), key=lambda number: sum(map(len, dataset.tokens[number])))
        batches = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
        self.batches = batches[accelerator.process_index :: accelerator.num_processes]

    def values(self, objective: torch.nn.Module, collate: Collate) -> dict[str, float]:
        """Return "loss" (mean over supervised tokens) and, with a scorer, its values for generated captions."""
        objective.eval()
        self.captioner.model.eval()
        device = self.accelerator.device
        # How often one validates must not change the random numbers that training draws.
        with own_randomness(device):
            values = {"loss": self._loss(objective, collate)}
            if self.scores is not None:
                values |= self._caption_values(self.scores)
            elif self.n_samples and self.accelerator.is_main_process:
                numbers = range(min(self.n_samples, len(self.decoding.records)))
                batches = caption_batches(self.captioner, self.decoding, numbers)
                self._note_samples({row.image_id: row.caption for batch in batches for row in batch})
        return values

    def _note_samples(self, captions: Mapping[str, str]) -> None:
        shown = self.decoding.records[: self.n_samples]
        self.samples = [{"image_id": one.image_id, "caption": captions[one.image_id]} for one in shown]

    def say(self, step: int, values: Mapping[str, float], improved: bool) -> None:
        """Show values and samples on the screen of the main process."""
        if self.accelerator.is_main_process:
            shown = ", ".join(f"{key} {number:.4f}" for key, number in values.items())
            error_console.print(f"Step {step}: validation {shown}{' (best so far)' if improved else ''}")
            for one in self.samples:
                line = printable(f"{one['image_id']}: {one['caption']}")
                error_console.print(f"  {line}", markup=False, soft_wrap=True)

    @torch.no_grad()
    def _loss(self, objective: torch.nn.Module, collate: Collate) -> float:
        loss, tokens = 0.0, 0
        # The module after Accelerate's wrapper: processes may have different numbers of batches.
        module = self.accelerator.unwrap_model(objective, keep_fp32_wrapper=True)
        loader = BatchLoader(self.dataset, collate, self.decoding.num_workers, self.accelerator.device)
        left: Sequence[Sequence[int]] = self.batches
        while left:
            done = 0
            for batch in loader.load(left, 0):
                found = self._loss_in_memory(module, batch)
                if found is None:
                    break
                loss += found
                tokens += batch.packed.n_labels
                done += 1
            left = left[done:]
            if left:
                smaller_batch(len(left[0]), "for the validation loss of", "train.per_device_eval_batch_size")
                left, self.batches = parts_of(left, 2), parts_of(self.batches, 2)
                clear_device_cache(garbage_collection=True)
        total_loss, total_tokens = summed(self.accelerator, loss, tokens)
        return total_loss / total_tokens

    def _loss_in_memory(self, module: torch.nn.Module, batch: CaptionBatch) -> float | None:
        """Return the summed loss of a batch; None where the memory does not hold its images at once."""
        try:
            moved = batch.to(self.accelerator.device)
            with self.accelerator.autocast():
                return float(module(moved))
        except RuntimeError as error:
            if len(batch.images) == 1 or not is_full_memory(error):
                raise
        return None

    def _caption_values(self, score: ScoreCaptions) -> dict[str, float]:
        numbers = list(range(len(self.decoding.records)))
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        batches = caption_batches(self.captioner, self.decoding, mine)
        pairs = [(prediction.image_id, prediction.caption) for batch in batches for prediction in batch]
        captions = dict(gather_object(pairs))
        self._note_samples(captions)
        references = {record.image_id: record.captions for record in self.decoding.records}
        return score(captions, references)
