"""What the whole recipe will need: memory, time and disk, from measured steps and counted weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap.captioners.base import Captioner
from hfcap.data.features import FeatureStore, captioner_encoder
from hfcap.data.loading import epoch_batches
from hfcap.doctor.findings import Findings
from hfcap.doctor.measurement import Measurement, memory_of
from hfcap.doctor.weights import WeightFacts
from hfcap.recipe import Recipe

_ADAM_BYTES = 8
_FLOAT_BYTES = 4


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
class Disk:
    """Bytes on disk. `feature_store_folder` is None without a feature store."""

    checkpoint: int
    checkpoints: int
    model: int
    feature_store: int
    feature_store_folder: str | None
    run_free: int
    feature_store_free: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Everything the recipe needs on this machine."""

    schedule: Schedule
    memory: Memory
    time: Time
    disk: Disk


def plan_schedule(recipe: Recipe, lengths: list[int], findings: Findings) -> Schedule:
    """Count steps, updates and validations; `lengths` are caption tokens per training picture."""
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
    elif options.warmup_steps >= updates:
        findings.warning(
            "train.warmup_steps",
            f"the warm-up of {options.warmup_steps:,} updates never ends: training has {updates:,}",
            "lower it, or use train.warmup_ratio",
        )
    return Schedule(steps, per_epoch, updates, math.ceil(updates / every))


def estimate_cost(
    recipe: Recipe,
    captioner: Captioner,
    weights: WeightFacts,
    schedule: Schedule,
    measured: Measurement,
    n_pictures: Mapping[str, int],
    accelerator: Any,
    findings: Findings,
) -> Cost:
    """Scale what was measured up to the recipe; `n_pictures` counts the pictures of each split that the run reads."""
    float_bytes = weights.trained * _FLOAT_BYTES
    memory = Memory(
        weights=weights.weight_bytes,
        gradients=float_bytes,
        optimizer=weights.trained * _ADAM_BYTES,
        average=0 if recipe.train.ema_decay is None else float_bytes,
        activations=measured.activation_bytes,
        available=memory_of(accelerator.device),
    )
    cost = Cost(
        schedule,
        memory,
        _time(recipe, schedule, measured, n_pictures),
        _disk(recipe, captioner, weights, measured, sum(n_pictures.values()), accelerator),
    )
    _report(recipe, cost, measured, findings)
    return cost


def _time(recipe: Recipe, schedule: Schedule, measured: Measurement, n_pictures: Mapping[str, int]) -> Time:
    options = recipe.train
    stored = measured.state_bytes_per_picture > 0
    loading = measured.load_seconds / max(1, options.dataloader_num_workers)
    on_gpu = measured.device.startswith("cuda")

    def with_loading(seconds: float) -> float:
        if stored:
            return seconds
        # Beside a GPU, worker processes load ahead; on CPU they take the cores from the model.
        return max(seconds, loading) if on_gpu else seconds + measured.load_seconds

    pictures = schedule.epochs * n_pictures["train"]
    scored = n_pictures[recipe.score.split]
    captioning = scored * with_loading(measured.caption_seconds)
    blank = "blank_images" in recipe.score.baselines
    validation = schedule.validations * n_pictures["validation"] * with_loading(measured.forward_seconds)
    if options.metric_for_best_model == "cider":
        validation += schedule.validations * n_pictures["validation"] * with_loading(measured.caption_seconds)
    encoded = sum(n_pictures.values()) if stored else 0
    per_encoded = max(measured.encode_seconds, loading) if on_gpu else measured.encode_seconds + measured.load_seconds
    return Time(
        encoding=encoded * per_encoded,
        training=pictures * with_loading(measured.step_seconds) + schedule.updates * measured.update_seconds,
        validation=validation,
        captioning=captioning + blank * scored * (measured.caption_seconds + measured.encode_seconds),
    )


def _disk(
    recipe: Recipe,
    captioner: Captioner,
    weights: WeightFacts,
    measured: Measurement,
    n_pictures: int,
    accelerator: Any,
) -> Disk:
    options = recipe.train
    copies = 1 if options.ema_decay is None else 2
    checkpoint = weights.trained * (_FLOAT_BYTES * copies + _ADAM_BYTES) + weights.buffer_bytes
    lora = recipe.lora is not None
    # A LoRA run on a captioner put together here also keeps the captioner itself and, to publish, the merged one.
    kept = 2 * weights.weight_bytes if captioner.assembled else 0
    model = weights.trained * _FLOAT_BYTES + kept if lora else weights.weight_bytes
    stored = measured.state_bytes_per_picture > 0
    folder = recipe.data.feature_store_folder
    store = None
    if stored:
        encoder = captioner_encoder(captioner, accelerator.mixed_precision)
        store = FeatureStore(encoder, None if folder is None else Path(folder), accelerator).folder
    return Disk(
        checkpoint=checkpoint,
        # The newest ones, the best one, and one being written before an old one goes.
        checkpoints=checkpoint * (options.save_total_limit + 2),
        model=model,
        feature_store=n_pictures * measured.state_bytes_per_picture,
        feature_store_folder=None if store is None else str(store),
        run_free=_free(Path(recipe.output_dir)),
        feature_store_free=None if store is None else _free(store),
    )


def _free(folder: Path) -> int:
    existing = folder.absolute()
    while not existing.is_dir():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _report(recipe: Recipe, cost: Cost, measured: Measurement, findings: Findings) -> None:
    memory, disk = cost.memory, cost.disk
    report_memory(recipe, memory, findings)
    if disk.checkpoints + disk.model > disk.run_free:
        findings.error(
            "output_dir",
            f"checkpoints and model need up to {gigabytes(disk.checkpoints + disk.model)}, but only "
            f"{gigabytes(disk.run_free)} are free",
            "choose another disk with output_dir, or a lower train.save_total_limit",
        )
    if disk.feature_store_free is not None and disk.feature_store > disk.feature_store_free:
        findings.error(
            "data.feature_store_folder",
            f"the feature store needs up to {gigabytes(disk.feature_store)}, but only "
            f"{gigabytes(disk.feature_store_free)} are free",
            "choose another disk with data.feature_store_folder, or set data.feature_store: off",
        )
    if not all(map(math.isfinite, measured.losses)):
        findings.error(
            "train.learning_rate", "the loss is not a number after a few steps", "lower it, or change mixed_precision"
        )


def report_memory(recipe: Recipe, memory: Memory, findings: Findings) -> None:
    """Add a problem where training does not fit into the device's memory."""
    if memory.available is None or memory.total < 0.9 * memory.available:
        return
    message = (
        f"training needs about {gigabytes(memory.total)} of memory; this machine has {gigabytes(memory.available)}"
    )
    size = recipe.train.per_device_train_batch_size
    remedy = (
        f"lower it (now {size}) and raise train.gradient_accumulation_steps by the same factor, set "
        "train.gradient_checkpointing: true, freeze vision, or use lora"
    )
    add = findings.error if memory.total > memory.available else findings.warning
    add("train.per_device_train_batch_size", message, remedy)


def gigabytes(size: float) -> str:
    """Return a size for people: 3.2 GB, 14 MB."""
    for unit, amount in (("GB", 1e9), ("MB", 1e6)):
        if size >= amount:
            return f"{size / amount:.3g} {unit}" if size < 1000 * amount else f"{size / amount:,.0f} {unit}"
    return f"{size / 1e3:.3g} kB"
