"""The training stage of captioners without gradients: one pass over the data, then `model/` and what it cost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import describe_size
from hfcap.captioners.shared.nonparametric import FittingData, NonparametricCaptioner
from hfcap.data.loading import ImageInputs, image_loader, prepared
from hfcap.files import folder_being_written, write_json
from hfcap.progress import error_console, progress_bar
from hfcap.recipe.blocks import Recipe
from hfcap.run_directory.paths import RunDirectory
from hfcap.schema import CaptionedImage
from hfcap.training.assemble import image_inputs
from hfcap.training.build import build_captioner
from hfcap.training.records.log import peak_memory_bytes, restart_peak_memory
from hfcap.training.run_record import describe_run


def fit_stage(
    recipe: Recipe, run: RunDirectory, splits: Mapping[str, Sequence[CaptionedImage]], accelerator: Any
) -> None:
    """Fit the captioner and write model/, environment.json and training_summary.json.

    A killed run continues: images are in the feature store, and the family keeps its own unfinished work.
    """
    restart_peak_memory(accelerator.device)
    captioner = build_captioner(recipe, splits["train"])
    assert isinstance(captioner, NonparametricCaptioner)
    captioner.model.requires_grad_(False)
    captioner.model.to(accelerator.device).eval()
    if accelerator.is_main_process:
        write_json(run.environment, describe_run(recipe, captioner, splits))
    records, started = splits["train"], time.monotonic()
    inputs = None
    if captioner.fits_on_images:
        stored = captioner.keeps_features and recipe.data.may_store_features
        inputs = image_inputs(captioner, records, recipe, stored, accelerator)
    if accelerator.is_main_process:
        error_console.print(f"Fitting {recipe.captioner} to {len(records):,} images")
        states = None if inputs is None else _image_states(captioner, inputs, recipe)
        folder = run.checkpoints / "fitting"
        captioner.fit(FittingData(records, states, recipe.train.per_device_eval_batch_size, folder))
        shutil.rmtree(run.merged_model, ignore_errors=True)
        with folder_being_written(run.model) as temporary:
            captioner.save(temporary, recipe.generate)
        write_json(run.summary, _summary(captioner, records, time.monotonic() - started, accelerator))
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()


def _image_states(captioner: Captioner, inputs: ImageInputs, recipe: Recipe) -> Iterator[torch.Tensor]:
    size, workers = recipe.train.per_device_eval_batch_size, recipe.train.loading_workers
    numbers = range(len(inputs))
    batches = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    with progress_bar() as progress:
        task = progress.add_task("Training images", total=len(numbers))
        for batch, images in zip(batches, image_loader(inputs, batches, workers, captioner.device), strict=True):
            images = prepared(images, inputs.plan, captioner.device)
            with torch.inference_mode():
                yield images if inputs.encoded else captioner.encode(images)
            progress.advance(task, len(batch))


def _summary(
    captioner: NonparametricCaptioner, records: Sequence[CaptionedImage], seconds: float, accelerator: Any
) -> dict[str, Any]:
    seconds = max(seconds, 1e-9)
    n_captions = sum(len(record.captions) for record in records)
    return {
        "method": "fitted",
        "stopped": "finished",
        "steps": 0,
        "epochs": 1.0,
        "images_seen": len(records),
        "captions_seen": n_captions,
        "train_seconds": seconds,
        "images_per_second": len(records) / seconds,
        "captions_per_second": n_captions / seconds,
        "peak_memory_bytes": peak_memory_bytes(accelerator.device),
        **describe_size(captioner),
        "processes": accelerator.num_processes,
        "encoder_frozen": captioner.keeps_features,
        "best_step": None,
        "best_metric": None,
        **captioner.fitted_facts(),
    }
