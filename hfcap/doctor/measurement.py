"""Real training steps on this machine: seconds of every part of a step and bytes kept for the backward pass.

Weights of the captioner given are changed; nothing is written to disk.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from hfcap.caption_batch import generate_captions
from hfcap.captioners.base import Captioner
from hfcap.data.loading import CaptionBatch, CaptionDataset, epoch_batches
from hfcap.doctor.labels import collate_for
from hfcap.environment import bfloat16_gain, hardware
from hfcap.failures.memory import is_full_memory
from hfcap.recipe.blocks import Recipe
from hfcap.training.objectives.cross_entropy import CrossEntropy
from hfcap.training.optimization import build_optimizer, frozen_modules, trained_parameters
from hfcap.training.records.log import peak_memory_bytes, restart_peak_memory

SECONDS_PER_STEP = 15.0
"""Batches that would take longer are measured with fewer images and scaled up."""

_MEMORY_SHARE = 0.5
_MAX_CAPTIONED = 8


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured.

    Attributes:
        images: images per measured batch, at most train.per_device_train_batch_size.
        batches: measured batches.
        load_seconds: per image, reading and processing. encode_seconds: per image, image encoder alone (only with
            a feature store; otherwise it is part of step_seconds).
        step_seconds: per image, forward and backward pass. forward_seconds: per image, forward pass alone.
        update_seconds: one step of the optimiser.
        caption_seconds: per image, generating with the recipe's decoding.
        activation_bytes: kept for the backward pass by the batch with the longest captions, scaled up to the recipe's
            batch size.
        state_bytes_per_image: encoded image in the feature store (half precision), 0 without one.
        peak_bytes: peak memory of the measurement (`training.records.peak_memory_bytes`).
        too_many: images that the memory did not hold at once; None where it held all that were tried.
        without_gradient: trained weights that got no gradient.
        losses: mean loss of each measured batch.
        bfloat16_gain: how many times as fast products in bfloat16 are as in float32; None where no CPU computes.
        load: programs per core that wanted to run before the measurement (0 where the system does not say).
    """

    device: str
    images: int
    batches: int
    load_seconds: float
    encode_seconds: float
    step_seconds: float
    forward_seconds: float
    update_seconds: float
    caption_seconds: float
    activation_bytes: int
    state_bytes_per_image: int
    peak_bytes: int
    too_many: int | None
    without_gradient: list[str]
    losses: list[float]
    bfloat16_gain: float | None
    load: float


@dataclass
class _Clock:
    """Seconds summed up by name; waits for the device before each reading."""

    device: torch.device
    started: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._wait()
        self.started = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last reading."""
        self._wait()
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        return seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class StepMeasurement:
    """Prepares model, objective and optimiser as training does and runs single batches."""

    def __init__(
        self, recipe: Recipe, captioner: Captioner, dataset: CaptionDataset, stored: bool, accelerator: Any
    ) -> None:
        self.recipe, self.captioner, self.dataset, self.stored = recipe, captioner, dataset, stored
        self.accelerator = accelerator
        captioner.model.to(accelerator.device)
        self.objective = accelerator.prepare(CrossEntropy(captioner, recipe.train.label_smoothing_factor))
        self.optimizer = accelerator.prepare(build_optimizer(captioner, recipe.train))
        self.collate = collate_for(captioner, dataset.inputs)
        self.clock = _Clock(accelerator.device)
        self._training_mode()

    def _training_mode(self) -> None:
        self.objective.train()
        self.captioner.model.train()
        for module in frozen_modules(self.captioner):
            module.eval()

    def batch(self, numbers: Sequence[int]) -> tuple[CaptionBatch, float, float]:
        """Return a batch on the device, with seconds of loading and of encoding (0 without feature store)."""
        self.clock.start()
        batch = self.collate([self.dataset[(0, number)] for number in numbers]).to(self.accelerator.device)
        loading = self.clock.lap()
        if not self.stored:
            return batch, loading, 0.0
        with torch.no_grad():  # as the feature store does it: without mixed precision
            states = self.captioner.encode(batch.images).float()
        return replace(batch, images=states, encoded=True), loading, self.clock.lap()

    def step(self, batch: CaptionBatch) -> tuple[float, float, float]:
        """Run one update; return seconds of forward and backward pass, seconds of the update, and the mean loss."""
        tokens = batch.packed.n_labels
        self.clock.start()
        loss = self.objective(batch)
        self.accelerator.backward(loss / tokens)
        passes = self.clock.lap()
        self.accelerator.clip_grad_norm_(
            trained_parameters(self.captioner.model).values(), self.recipe.train.max_grad_norm or math.inf
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return passes, self.clock.lap(), float(loss.detach()) / tokens

    def activation_bytes(self, batch: CaptionBatch) -> tuple[int, list[str]]:
        """Return the bytes that a forward pass keeps for the backward pass, and trained weights without a gradient."""
        own = {parameter.untyped_storage().data_ptr() for parameter in self.captioner.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.objective(batch)
        self.accelerator.backward(loss / batch.packed.n_labels)
        missing = [name for name, weight in trained_parameters(self.captioner.model).items() if weight.grad is None]
        self.optimizer.zero_grad()
        return sum(kept.values()), missing

    def forward_seconds(self, batch: CaptionBatch) -> float:
        """Return the seconds of a forward pass without gradients, as in validation."""
        self.objective.eval()
        self.captioner.model.eval()
        self.clock.start()
        with torch.no_grad(), self.accelerator.autocast():
            self.objective(batch)
        seconds = self.clock.lap()
        self._training_mode()
        return seconds

    def caption_seconds(self, batch: CaptionBatch) -> float:
        """Return the seconds of captioning one image, image encoder included unless its output is stored."""
        self.captioner.model.eval()
        images = batch.images[:_MAX_CAPTIONED]
        self.clock.start()
        # Decoding runs in the weights' own precision.
        generate_captions(self.captioner, images, self.recipe.generate, encoded=batch.encoded)
        seconds = self.clock.lap()
        self._training_mode()
        return seconds / len(images)


def measure(
    recipe: Recipe, captioner: Captioner, dataset: CaptionDataset, stored: bool, accelerator: Any, steps: int
) -> Measurement:
    """Run `steps` updates on batches of the first epoch (and a few more passes to warm up and to size them).

    Args:
        dataset: training images as pixels. stored: whether training will read encoded images.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    lengths = [sum(map(len, captions)) for captions in dataset.tokens]
    size = recipe.train.per_device_train_batch_size
    batches = epoch_batches(lengths, size, recipe.train.seed, 0)
    longest = sorted(range(len(lengths)), key=lambda number: -lengths[number])[:size]
    restart_peak_memory(accelerator.device)
    run = StepMeasurement(recipe, captioner, dataset, stored, accelerator)
    first, _, _ = run.batch(longest[:1])
    one_bytes, without_gradient = run.activation_bytes(first)
    n, too_many = _measurable_images(run, longest, one_bytes)
    many, _, _ = run.batch(longest[:n])
    many_bytes = run.activation_bytes(many)[0] if n > 1 else one_bytes
    per_image = (many_bytes - one_bytes) / (n - 1) if n > 1 else one_bytes
    sums = [0.0] * 4
    losses = []
    numbers = [batches[len(batches) * number // steps][:n] for number in range(steps)]
    last = many
    for chosen in numbers:
        last, loading, encoding = run.batch(chosen)
        passes, update, loss = run.step(last)
        sums = [total + value for total, value in zip(sums, (loading, encoding, passes, update), strict=True)]
        losses.append(loss)
    images = sum(map(len, numbers))
    return Measurement(
        device=_device_name(accelerator.device),
        images=n,
        batches=steps,
        load_seconds=sums[0] / images,
        encode_seconds=sums[1] / images,
        step_seconds=sums[2] / images,
        forward_seconds=run.forward_seconds(last) / len(last.images),
        update_seconds=sums[3] / steps,
        caption_seconds=run.caption_seconds(last),
        activation_bytes=round(many_bytes + per_image * (size - n)),
        state_bytes_per_image=last.images[0].numel() * 2 if stored else 0,
        peak_bytes=peak_memory_bytes(accelerator.device),
        too_many=too_many,
        without_gradient=without_gradient,
        losses=losses,
        bfloat16_gain=bfloat16_gain() if accelerator.device.type == "cpu" else None,
        load=load,
    )


def memory_of(device: torch.device) -> int | None:
    """Memory of the GPU, or of the machine, in bytes; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory: int | None = hardware()["memory_bytes"]
    return memory


def _measurable_images(run: StepMeasurement, longest: Sequence[int], bytes_of_one: int) -> tuple[int, int | None]:
    """Return how many images a measured batch may have, and how many the memory did not hold (None: nothing failed).

    As many as take neither too long nor too much memory, found by growing: a single image says little about many,
    because every step has a fixed cost too.
    """
    memory = memory_of(run.accelerator.device)
    by_memory = math.inf if memory is None else _MEMORY_SHARE * memory / max(bytes_of_one, 1)
    largest = max(1, int(min(len(longest), by_memory)))
    n, too_many = 1, None
    run.step(run.batch(longest[:1])[0])
    seconds = run.step(run.batch(longest[:1])[0])[0]
    while n < largest and seconds * 4 <= SECONDS_PER_STEP:
        more = min(largest, n * 4)
        found = _seconds_in_memory(run, longest[:more])
        if found is None:
            too_many, largest = more, -(-more // 2) if more > 2 * n else n
        else:
            n, seconds = more, found
    return n, too_many


def _seconds_in_memory(run: StepMeasurement, numbers: Sequence[int]) -> float | None:
    """Return the seconds of a forward and backward pass over these images; None where the memory does not hold them."""
    try:
        return run.step(run.batch(numbers)[0])[0]
    except RuntimeError as error:
        if not is_full_memory(error):
            raise
    # The error, which held what the batch had computed, is gone here.
    run.optimizer.zero_grad()
    clear_device_cache(garbage_collection=True)
    return None


def _device_name(device: torch.device) -> str:
    found = hardware()
    name = found["gpu"] if device.type == "cuda" else f"{found['cpu']}, {found['cores']} cores"
    return f"{device.type} ({name})"
