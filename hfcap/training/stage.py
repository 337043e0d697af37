"""The training stage: from a recipe and its data to `model/` and what training cost."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import describe_size
from hfcap.captioners.lora import adapted_modules, save_adapter
from hfcap.data.features import FeatureStore, captioner_encoder
from hfcap.data.loading import CaptionDataset, ImageInputs, PixelInputs
from hfcap.decoding import DecodingJob
from hfcap.environment import describe_environment
from hfcap.files import folder_being_written, write_json
from hfcap.metrics.suite import CaptionSuite
from hfcap.progress import error_console
from hfcap.recipe import Recipe
from hfcap.run_directory import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.training.build import TrainableCaptioner, build_captioner, make_trainable
from hfcap.training.checkpoint import Progress
from hfcap.training.emissions import measured_emissions, total_emissions
from hfcap.training.loop import TrainingRun
from hfcap.training.objectives import CrossEntropy
from hfcap.training.optimization import encoder_is_frozen
from hfcap.training.records import peak_memory_bytes
from hfcap.training.self_critical import SelfCritical
from hfcap.training.validation import Validator


def tokenised(captioner: Captioner, records: Sequence[CaptionedImage], max_tokens: int) -> list[list[list[int]]]:
    """Token ids of every caption of every record."""
    flat = captioner.caption_token_ids([caption for record in records for caption in record.captions], max_tokens)
    remaining = iter(flat)
    return [[next(remaining) for _ in record.captions] for record in records]


def image_inputs(
    captioner: Captioner, records: Sequence[CaptionedImage], recipe: Recipe, stored: bool, accelerator: Any
) -> ImageInputs:
    """Pixels of the records, or with `stored` the frozen encoder's states from the feature store."""
    if not stored:
        return PixelInputs(records, captioner.image_processor)
    folder = recipe.data.feature_store_folder
    captioner.model.to(accelerator.device)
    encoder = captioner_encoder(captioner, accelerator.mixed_precision)
    store = FeatureStore(encoder, None if folder is None else Path(folder), accelerator)
    return store.inputs(records, recipe.train.per_device_eval_batch_size, recipe.train.dataloader_num_workers)


def uses_feature_store(captioner: Captioner, recipe: Recipe) -> bool:
    """Whether the encoder is frozen and its output may be kept."""
    return recipe.data.feature_store == "auto" and encoder_is_frozen(captioner)


def _caption_values(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    values = CaptionSuite(("cider", "bad_endings")).compute(candidates, references).values
    return {name: 0.0 if value is None else value for name, value in values.items()}


def _objective(recipe: Recipe, captioner: Captioner, train_records: Sequence[CaptionedImage]) -> CrossEntropy:
    if recipe.scst is None:
        return CrossEntropy(captioner, recipe.train.label_smoothing_factor)
    return SelfCritical(captioner, recipe.scst, train_records, recipe.generate.max_new_tokens)


def training_run(
    recipe: Recipe, run: RunDirectory, trainable: TrainableCaptioner, splits: Mapping[str, Any], accelerator: Any
) -> TrainingRun:
    """Put together data, validation and loop for a captioner that is ready to train."""
    captioner, options = trainable.captioner, recipe.train
    stored = uses_feature_store(captioner, recipe)
    datasets = {}
    for name in ("train", "validation"):
        inputs = image_inputs(captioner, splits[name], recipe, stored, accelerator)
        tokens = tokenised(captioner, splits[name], recipe.data.max_caption_tokens)
        per_image = recipe.data.captions_per_image if name == "train" else None
        datasets[name] = CaptionDataset(inputs, tokens, per_image, options.seed)
    job = DecodingJob(
        splits["validation"],
        datasets["validation"].inputs,
        recipe.generate.model_copy(update={"num_return_sequences": 1}),
        options.per_device_eval_batch_size,
        options.dataloader_num_workers,
    )
    scores = _caption_values if options.metric_for_best_model == "cider" else None
    validator = Validator(
        captioner, datasets["validation"], job, scores, accelerator, options.per_device_eval_batch_size
    )
    captioner.model.to(accelerator.device)
    objective = _objective(recipe, captioner, splits["train"])
    return TrainingRun(recipe, run, captioner, datasets["train"], validator, accelerator, objective)


def train_stage(
    recipe: Recipe, run: RunDirectory, splits: Mapping[str, Sequence[CaptionedImage]], accelerator: Any
) -> None:
    """Train (or continue) and write model/, environment.json and training_summary.json."""
    captioner = build_captioner(recipe, splits["train"])
    if recipe.lora is not None:
        adapted_modules(captioner, recipe.lora)
    if accelerator.is_main_process:
        write_json(run.environment, describe_environment(recipe.train.seed, captioner.base_models, splits))
        if recipe.lora is not None and captioner.assembled and not run.base_model.is_dir():
            with folder_being_written(run.base_model) as folder:
                captioner.save(folder, recipe.generate)
    accelerator.wait_for_everyone()
    trainable = make_trainable(captioner, recipe)
    size = describe_size(captioner)
    training = training_run(recipe, run, trainable, splits, accelerator)
    if recipe.train.report_to:
        accelerator.init_trackers("hfcap")
    if accelerator.is_main_process:
        share = size["trainable_parameters"] / size["parameters"]
        error_console.print(
            f"Training {size['trainable_parameters']:,} of {size['parameters']:,} parameters ({share:.2%}) on "
            f"{len(splits['train']):,} pictures"
        )
    with measured_emissions(recipe.train.report_to, run, accelerator.is_main_process):
        progress = training.train()
    for tracker in accelerator.trackers:
        tracker.finish()
    if accelerator.is_main_process:
        shutil.rmtree(run.merged_model, ignore_errors=True)
        _save_model(recipe, run, trainable)
        write_json(run.summary, _summary(recipe, training, progress, size) | {"co2_eq_emissions": total_emissions(run)})
    accelerator.wait_for_everyone()


def _save_model(recipe: Recipe, run: RunDirectory, trainable: TrainableCaptioner) -> None:
    with folder_being_written(run.model) as folder:
        if trainable.peft_model is None:
            trainable.captioner.save(folder, recipe.generate)
            return
        pretrained = recipe.model.pretrained
        base = str(run.base_model.absolute()) if pretrained is None else pretrained
        save_adapter(trainable.peft_model, base, folder)
        trainable.captioner.save_processor(folder)
        trainable.captioner.generation_config(recipe.generate).save_pretrained(folder)


def _summary(recipe: Recipe, training: TrainingRun, progress: Progress, size: Mapping[str, int]) -> dict[str, Any]:
    seconds = max(progress.train_seconds, 1e-9)
    best = progress.best_value
    return {
        "method": "full" if recipe.lora is None else "lora",
        "stopped": "early" if progress.stopped_early else "finished",
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
