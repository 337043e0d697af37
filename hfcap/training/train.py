"""The training of a run from its recipe: note what it begins with, train or resume, write model and summary."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.captioners.adaptation.lora import save_adapter
from hfcap.captioners.adaptation.targets import adapted_modules, lora_coverage
from hfcap.captioners.asking.asked import longest_of_captions
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import describe_size
from hfcap.captioners.shared.round_trip import round_trip
from hfcap.environment import loaded_revision
from hfcap.errors import UserError
from hfcap.files import folder_being_written, write_json
from hfcap.progress import error_console
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.text import printable
from hfcap.training.accelerator import float32_products, require_number_types, require_tf32, used_precision
from hfcap.training.assemble import training_run
from hfcap.training.build import TrainableCaptioner, build_captioner, make_trainable, require_room_for_captions
from hfcap.training.checkpoint import Progress, checkpoint_steps
from hfcap.training.loop import TrainingRun
from hfcap.training.optimization import encoder_is_frozen, require_optimization
from hfcap.training.records.emissions import measured_emissions, total_emissions
from hfcap.training.records.log import peak_memory_bytes, restart_peak_memory
from hfcap.training.run_record import (
    describe_run,
    note_changes,
    read_environment,
    refuse_changes,
    require_same_words,
    start_changes,
    version_changes,
)
from hfcap.training.sharding import is_sharded, require_shardable, require_shardable_weights
from hfcap.training.zero import ZeroAccelerator, require_zero


def _note_start(
    recipe: Recipe,
    run: RunDirectory,
    captioner: Captioner,
    splits: Mapping[str, Sequence[CaptionedImage]],
    accept_changes: bool,
) -> None:
    """Write environment.json; where a training goes on, compare with what it began with first.

    Raises:
        UserError: base model, tokenizer or image processor are others.
    """
    described = describe_run(recipe, captioner, splits)
    changes: list[str] = []
    earlier: dict[str, Any] = {}
    if checkpoint_steps(run.checkpoints):
        try:
            earlier = read_environment(run)
        except UserError:
            if not accept_changes:
                raise
        require_same_words(run, earlier, described)
        changes = start_changes(earlier, described)
        remedy = (
            f"Put it back as it was (model.revision names a commit), or train again: hfcap train {run.path} --force, "
            "or go on from the last checkpoint with what is there now: --accept-changes."
        )
        refuse_changes(run, "train", changes, remedy, accept_changes)
        if versions := version_changes(earlier, described):
            changes += versions
            said = f"warning: the training goes on with other versions than it began with: {', '.join(versions)}"
            error_console.print(said, markup=False, soft_wrap=True)
    kept = {key: earlier[key] for key in ("changes", "hub_revisions") if key in earlier}
    write_json(run.environment, {**described, **kept})
    note_changes(run, "train", changes)


def _require_machine(recipe: Recipe, accelerator: Any) -> None:
    """Refuse what the machine lacks, and what cannot be trained in pieces where the configuration asks for them."""
    require_optimization(recipe.train, accelerator.device)
    require_tf32(recipe.train.tf32, accelerator.device)
    by_zero = isinstance(accelerator, ZeroAccelerator)
    if by_zero:
        require_zero(recipe, accelerator)
    if by_zero or is_sharded(accelerator):
        require_shardable(recipe, whole_weights=by_zero)


def _require_weights(captioner: Captioner, accelerator: Any) -> None:
    by_zero = isinstance(accelerator, ZeroAccelerator)
    if by_zero or is_sharded(accelerator):
        require_shardable_weights(captioner, whole_weights=by_zero)


def _note_precision(run: RunDirectory, training: TrainingRun) -> None:
    """Add what training computes in to environment.json; pieces of 4-bit weights are stored as bfloat16 numbers."""
    captioner = training.captioner if training.whole is None else training.whole.trainable.captioner
    with float32_products(training.options.tf32):
        precision = used_precision(captioner, training.accelerator)
    write_json(run.environment, {**read_environment(run), "precision": precision})


def train_stage(
    recipe: Recipe,
    run: RunDirectory,
    splits: Mapping[str, Sequence[CaptionedImage]],
    accelerator: Any,
    accept_changes: bool = False,
    finish: bool = False,
) -> None:
    """Train (or continue) and write model/, environment.json and training_summary.json.

    Args:
        accept_changes: continue although base model or keys of the recipe are not those that the training began with.
        finish: end a training that was begun at its last checkpoint.

    Raises:
        UserError: they are not, and nobody accepted it.
    """
    restart_peak_memory(accelerator.device)
    _require_machine(recipe, accelerator)
    captioner = build_captioner(recipe, splits["train"])
    require_room_for_captions(captioner, recipe, longest_of_captions(captioner, splits.values()))
    require_number_types(captioner, accelerator.device)
    _require_weights(captioner, accelerator)
    if recipe.lora is not None:
        adapted_modules(captioner, recipe.lora)
    if accelerator.is_main_process:
        _note_start(recipe, run, captioner, splits, accept_changes)
        if recipe.lora is not None and captioner.assembled and not run.base_model.is_dir():
            with folder_being_written(run.base_model) as folder:
                captioner.save(folder, recipe.generate)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _warn_of_lost_characters(captioner, splits["train"])
    trainable = make_trainable(captioner, recipe)
    size = describe_size(captioner)
    training = training_run(recipe, run, trainable, splits, accelerator, accept_changes)
    if recipe.train.report_to:
        accelerator.init_trackers("hfcap")
    if accelerator.is_main_process:
        _note_precision(run, training)
        share = size["trainable_parameters"] / size["parameters"]
        error_console.print(
            f"Training {size['trainable_parameters']:,} of {size['parameters']:,} parameters ({share:.2%}) on "
            f"{len(splits['train']):,} images"
        )
        if recipe.lora is not None:
            _say_coverage(captioner)
    # Only what is trained is rounded so: stored features and captions of other commands stay what they are.
    emissions = measured_emissions(recipe.train.report_to, run, accelerator.is_main_process)
    with emissions, float32_products(recipe.train.tf32):
        progress = training.end_here() if finish else training.train()
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        shutil.rmtree(run.merged_model, ignore_errors=True)
        with folder_being_written(run.model) as folder:
            save_model(recipe, run, trainable if training.whole is None else training.whole.trainable, folder)
        write_json(run.summary, _summary(recipe, training, progress, size) | {"co2_eq_emissions": total_emissions(run)})
    accelerator.wait_for_everyone()


def _say_coverage(captioner: Captioner) -> None:
    coverage = lora_coverage(captioner)
    said = coverage.sentence() if coverage.enough else f"warning: {coverage.sentence()}; {coverage.remedy()}"
    error_console.print(said, markup=False, soft_wrap=True)


def _warn_of_lost_characters(captioner: Captioner, records: Sequence[CaptionedImage]) -> None:
    survived = round_trip(captioner, [caption for record in records for caption in record.captions])
    if survived.changed:
        error_console.print(f"warning: {printable(survived.problem())}", markup=False, soft_wrap=True)


def save_model(recipe: Recipe, run: RunDirectory, trainable: TrainableCaptioner, folder: Path) -> None:
    """Write a captioner as it is now into a folder: whole, or its adapter to the base model that the run names."""
    if trainable.peft_model is None:
        trainable.captioner.save(folder, recipe.generate)
        return
    pretrained = recipe.model.pretrained
    base = str(run.base_model.absolute()) if pretrained is None else pretrained
    # The commit that was trained on: the adapter says nothing on another one.
    commits = [loaded_revision(model) for model in trainable.captioner.base_models if model.id == pretrained]
    save_adapter(trainable.peft_model, base, folder, commits[0] if commits else None)
    trainable.captioner.save_processor(folder)
    trainable.captioner.generation_config(recipe.generate).save_pretrained(folder)


def _end_of(training: TrainingRun, progress: Progress) -> str:
    if progress.stopped_early:
        return "early"
    return "finished" if progress.step >= training.total_steps else "on request"


def _summary(recipe: Recipe, training: TrainingRun, progress: Progress, size: Mapping[str, int]) -> dict[str, Any]:
    seconds = max(progress.train_seconds, 1e-9)
    best = progress.best_value
    return {
        "method": "full" if recipe.lora is None else "lora",
        "stopped": _end_of(training, progress),
        "steps": progress.step,
        "epochs": round(progress.step / training.steps_per_epoch, 3),
        "images_seen": progress.images_seen,
        "captions_seen": progress.captions_seen,
        "train_seconds": progress.train_seconds,
        "images_per_second": progress.images_seen / seconds,
        "captions_per_second": progress.captions_seen / seconds,
        "peak_memory_bytes": peak_memory_bytes(training.accelerator.device),
        **size,
        "processes": training.accelerator.num_processes,
        "encoder_frozen": encoder_is_frozen(training.captioner),
        "best_step": progress.best_step,
        "best_metric": None
        if best is None or not math.isfinite(best)
        else {"name": recipe.train.metric_for_best_model, "value": best},
    }
