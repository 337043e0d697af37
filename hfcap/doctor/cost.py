"""What the whole recipe will need: memory, time and disk, from measured steps and counted weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hfcap.captioners.base import Captioner
from hfcap.data.loading import epoch_batches
from hfcap.doctor.disk import Disk, disk_needs
from hfcap.doctor.findings import Findings
from hfcap.doctor.measurement import Measurement, memory_of
from hfcap.doctor.weights import WeightFacts
from hfcap.recipe.blocks import Recipe
from hfcap.schema import CaptionedImage
from hfcap.text import gigabytes

_ADAM_BYTES = 8
_FLOAT_BYTES = 4
_IN_PARTS = "a training in one process goes on with fewer at a time, one in several ends with an error"


@dataclass(frozen=True, slots=True)
class Schedule:
    """How much training the recipe asks for; a step is one micro-batch, an update one step of the optimiser."""

    steps_per_epoch: int
    updates_per_epoch: int
    updates: int
    validations: int

    @property
    def epochs(self) -> float:
        """Passes over the training split."""
        return self.updates / self.updates_per_epoch


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes during training, on the device that trains."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    available: int | None

    @property
    def total(self) -> int:
        """Sum of all, without what the framework itself takes."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds on this machine with one process."""

    encoding: float
    training: float
    validation: float
    captioning: float

    @property
    def total(self) -> float:
        """All stages."""
        return self.encoding + self.training + self.validation + self.captioning


@dataclass(frozen=True, slots=True)
class Cost:
    """Everything the recipe needs on this machine."""

    schedule: Schedule
    memory: Memory
    time: Time
    disk: Disk


def plan_schedule(recipe: Recipe, lengths: list[int], findings: Findings) -> Schedule:
    """Count steps, updates and validations; `lengths` are caption tokens per training image."""
    options = recipe.train
    steps = len(epoch_batches(lengths, options.per_device_train_batch_size, options.seed, 0))
    per_epoch = math.ceil(steps / options.gradient_accumulation_steps)
    updates = options.max_steps or round((options.num_train_epochs or 0) * per_epoch)
    every = options.eval_steps or per_epoch
    if updates == 0:
        findings.error(
            "train.num_train_epochs",
            f"{options.num_train_epochs} epochs of {per_epoch} updates are less than one update",
            "raise it, or give train.max_steps",
        )
    elif options.warmup_steps >= max(updates, 1):
        findings.warning(
            "train.warmup_steps",
            f"the warm-up of {int(options.warmup_steps):,} updates never ends: training has {updates:,}",
            "lower it, or give a share of all updates, such as 0.05",
        )
    return Schedule(steps, per_epoch, updates, math.ceil(updates / every))


def estimate_cost(
    recipe: Recipe,
    captioner: Captioner,
    weights: WeightFacts,
    schedule: Schedule,
    measured: Measurement,
    splits: Mapping[str, Sequence[CaptionedImage]],
    accelerator: Any,
    findings: Findings,
) -> Cost:
    """Scale what was measured up to the recipe; `splits` are those that the run reads."""
    float_bytes = weights.trained * _FLOAT_BYTES
    memory = Memory(
        weights=weights.weight_bytes,
        gradients=float_bytes,
        optimizer=weights.trained * _ADAM_BYTES,
        average=0 if recipe.train.ema_decay is None else float_bytes,
        activations=measured.activation_bytes,
        available=memory_of(accelerator.device),
    )
    everything = [record for records in splits.values() for record in records]
    disk = disk_needs(recipe, captioner, weights, measured.state_bytes_per_image, everything, accelerator)
    counts = {name: len(records) for name, records in splits.items()}
    to_encode = disk.feature_store.images if disk.feature_store is not None else 0
    cost = Cost(schedule, memory, _time(recipe, schedule, measured, counts, to_encode), disk)
    _report(recipe, cost, measured, findings)
    return cost


def _time(
    recipe: Recipe, schedule: Schedule, measured: Measurement, n_images: Mapping[str, int], to_encode: int
) -> Time:
    options = recipe.train
    stored = measured.state_bytes_per_image > 0
    loading = measured.load_seconds / max(1, options.loading_workers)
    on_gpu = measured.device.startswith("cuda")

    def with_loading(seconds: float) -> float:
        if stored:
            return seconds
        # Beside a GPU, worker processes load ahead; on CPU they take the cores from the model.
        return max(seconds, loading) if on_gpu else seconds + measured.load_seconds

    images = schedule.epochs * n_images["train"]
    scored = n_images[recipe.score.split]
    captioning = scored * with_loading(measured.caption_seconds)
    blank = "blank_images" in recipe.score.baselines
    validation = schedule.validations * n_images["validation"] * with_loading(measured.forward_seconds)
    if options.metric_for_best_model == "cider":
        validation += schedule.validations * n_images["validation"] * with_loading(measured.caption_seconds)
    per_encoded = max(measured.encode_seconds, loading) if on_gpu else measured.encode_seconds + measured.load_seconds
    return Time(
        encoding=to_encode * per_encoded,
        training=images * with_loading(measured.step_seconds) + schedule.updates * measured.update_seconds,
        validation=validation,
        captioning=captioning + blank * scored * (measured.caption_seconds + measured.encode_seconds),
    )


def _report(recipe: Recipe, cost: Cost, measured: Measurement, findings: Findings) -> None:
    memory, disk = cost.memory, cost.disk
    if measured.too_many is None:
        # A CPU's system ends a process whose memory is too large; other devices raise an error, and batches are cut.
        report_memory(recipe, memory, findings, cuts_batches=not measured.device.startswith("cpu"))
    else:
        size, options = measured.images, recipe.train
        findings.warning(
            "train.per_device_train_batch_size",
            f"the memory does not hold {measured.too_many} images at once; {_IN_PARTS}",
            f"lower it (now {options.per_device_train_batch_size}) to {size}, which it holds, and raise "
            "train.gradient_accumulation_steps by the same factor, or set train.gradient_checkpointing: true",
        )
    store = disk.store
    beside = store.bytes if store is not None and disk.shared else 0
    if disk.checkpoints + disk.model + beside > disk.run_free:
        findings.error(
            "output_dir",
            f"checkpoints and model need up to {gigabytes(disk.checkpoints + disk.model)}"
            + (f" and {store.key} on the same disk {gigabytes(beside)}" if store is not None and beside else "")
            + f", but only {gigabytes(disk.run_free)} are free",
            "choose another disk with output_dir, or a lower train.save_total_limit",
        )
    if store is not None and store.bytes > store.free:
        off = "data.feature_store: off" if disk.feature_store is not None else "data.image_cache: false"
        findings.error(
            store.key,
            f"{store.images:,} images that are not kept yet need {gigabytes(store.bytes)}, but only "
            f"{gigabytes(store.free)} are free",
            f"choose another disk with {store.key}, or set {off}",
        )
    if not all(map(math.isfinite, measured.losses)):
        findings.error(
            "train.learning_rate", "the loss is not a number after a few steps", "lower it, or change mixed_precision"
        )


def report_no_room(device: torch.device, available: int | None, findings: Findings) -> None:
    """Add the error that not even one image can be trained on."""
    of = "" if available is None else f" ({gigabytes(available)})"
    findings.error(
        "train",
        f"the memory of the device ({device.type}{of}) is too small for a training step with one image",
        "set train.gradient_checkpointing: true or train.mixed_precision: bf16, choose smaller images "
        "(model.image_size), freeze vision, or use lora",
    )


def report_memory(recipe: Recipe, memory: Memory, findings: Findings, cuts_batches: bool = False) -> None:
    """Add a problem where training does not fit into the device's memory.

    Args:
        cuts_batches: training computes a batch that the memory does not hold in parts.
    """
    if memory.available is None or memory.total < 0.9 * memory.available:
        return
    message = (
        f"training needs about {gigabytes(memory.total)} of memory; this machine has {gigabytes(memory.available)}"
    )
    size = recipe.train.per_device_train_batch_size
    with_one_image = memory.total - memory.activations + memory.activations // size
    if cuts_batches and with_one_image <= memory.available < memory.total:
        message += f"; {_IN_PARTS}"
    remedy = (
        f"lower it (now {size}) and raise train.gradient_accumulation_steps by the same factor, set "
        "train.gradient_checkpointing: true, freeze vision, or use lora"
    )
    fits = with_one_image if cuts_batches else memory.total
    add = findings.error if fits > memory.available else findings.warning
    add("train.per_device_train_batch_size", message, remedy)
