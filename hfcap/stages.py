"""The stages of a run in order, each skipped when its output is there and belongs to this recipe."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner, save_merged
from hfcap.data.loading import BlankInputs, ImageInputs, PixelInputs
from hfcap.data.source import load_split
from hfcap.decoding import DecodingJob, read_captions, write_predictions
from hfcap.environment import describe_datasets
from hfcap.errors import UserError
from hfcap.files import read_json, write_json, write_json_lines, write_text
from hfcap.progress import console, error_console
from hfcap.publishing.card import write_card
from hfcap.publishing.push import publish
from hfcap.publishing.staging import stage
from hfcap.recipe import Recipe
from hfcap.recipe_loading import dump_recipe, load_recipe
from hfcap.run_directory import RunDirectory
from hfcap.schema import CaptionedImage, Prediction
from hfcap.score_table import score_table
from hfcap.scoring import read_scores, score_files
from hfcap.training.stage import image_inputs, train_stage

StageName = Literal["train", "caption", "score", "card", "publish"]
STAGES: tuple[StageName, ...] = ("train", "caption", "score", "card", "publish")
N_SAMPLES = 9

_DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "train": ("captioner", "model", "data", "lora", "train"),
    "caption": ("generate", "score.split", "score.baselines"),
    "score": ("score",),
}
"""Blocks of the recipe that a stage's output depends on, beside those of the stages before it."""


def make_accelerator(recipe: Recipe, run: RunDirectory) -> Any:
    """Create the Accelerator of a run; on CPU, denormal numbers are flushed to zero (they slow products 200 times)."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    torch.set_flush_denormal(True)
    accelerator = Accelerator(
        mixed_precision=recipe.train.mixed_precision,
        log_with=list(recipe.train.report_to) or None,
        project_dir=str(run.path),
        # Encoders carry heads that captioning does not use (poolers); their weights never get gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if recipe.train.report_to:
        accelerator.init_trackers("hfcap")
    return accelerator


class Run:
    """One recipe in its run directory; `execute` brings it up to a stage."""

    def __init__(self, recipe: Recipe, accelerator: Any | None = None) -> None:
        self.recipe = recipe
        self.directory = RunDirectory(Path(recipe.output_dir) / recipe.name)
        self._splits: dict[str, list[CaptionedImage]] = {}
        self._claim()
        self.accelerator = make_accelerator(recipe, self.directory) if accelerator is None else accelerator

    # ---- which recipe the directory belongs to -------------------------------------------------------------------

    def _claim(self) -> None:
        """Write the resolved recipe; refuse a directory that was trained with another one."""
        if self.directory.recipe.is_file():
            earlier = load_recipe(self.directory.recipe)
            changed = _differences(_part(earlier, "train"), _part(self.recipe, "train"))
            if changed:
                raise UserError(
                    f"{self.directory.path}: holds a run of a different recipe ({'; '.join(changed[:5])}); choose "
                    "another name (name=...), or delete that folder"
                )
        write_text(self.directory.recipe, dump_recipe(self.recipe))

    @property
    def _state_file(self) -> Path:
        return self.directory.path / "stages.json"

    def _is_done(self, name: str, output: Path) -> bool:
        if not output.exists() or not self._state_file.is_file():
            return False
        return read_json(self._state_file, "record of finished stages").get(name) == self._fingerprint(name)

    def _mark_done(self, name: str) -> None:
        if self.accelerator.is_main_process:
            known = read_json(self._state_file, "record of finished stages") if self._state_file.is_file() else {}
            write_json(self._state_file, {**known, name: self._fingerprint(name)})
        self.accelerator.wait_for_everyone()

    def _fingerprint(self, name: str) -> str:
        upto = list(_DEPENDS_ON)[: list(_DEPENDS_ON).index(name) + 1]
        values = [_part(self.recipe, stage_name) for stage_name in upto]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    # ---- stages ------------------------------------------------------------------------------------------------

    def execute(self, last: StageName, force: bool = False) -> None:
        """Run every stage up to and including `last`; `force` does the last one again."""
        for name in STAGES[: STAGES.index(last) + 1]:
            getattr(self, f"_{name}")(force and name == last)

    def records(self, split: Literal["train", "validation", "test"]) -> list[CaptionedImage]:
        """Checked records of one split."""
        if split not in self._splits:
            self._splits[split] = load_split(self.recipe.data, split)
        return self._splits[split]

    def _train(self, force: bool) -> None:
        if force and self.accelerator.is_main_process:
            for folder in (self.directory.model, self.directory.checkpoints):
                shutil.rmtree(folder, ignore_errors=True)
        if self._is_done("train", self.directory.summary) and self.directory.model.is_dir() and not force:
            return
        splits = {name: self.records(name) for name in ("train", "validation")}
        train_stage(self.recipe, self.directory, splits, self.accelerator)
        self._mark_done("train")

    def _caption(self, force: bool) -> None:
        split = self.recipe.score.split
        output = self.directory.predictions(split)
        if self._is_done("caption", output) and not force:
            return
        records = self.records(split)
        if self.accelerator.is_main_process:
            output.unlink(missing_ok=True)
            write_json(self.directory.references(split), _coco_references(records))
            self._record_split(split, records)
        captioner = self._trained_captioner()
        frozen = read_json(self.directory.summary, "training summary")["encoder_frozen"]
        stored = frozen and self.recipe.data.feature_store == "auto"
        inputs = image_inputs(captioner, records, self.recipe, stored, self.accelerator)
        self._write_predictions(captioner, records, inputs, split)
        for baseline in self.recipe.score.baselines:
            if baseline == "blank_images":
                blank = BlankInputs(PixelInputs(records, captioner.image_processor))
                self._write_predictions(captioner, records, blank, f"{split}.{baseline}")
            elif self.accelerator.is_main_process:
                caption = most_frequent_caption(self.records("train"))
                rows = (Prediction(record.image_id, record.file_name, caption).as_row() for record in records)
                write_json_lines(self.directory.predictions(f"{split}.{baseline}"), rows)
        self._mark_done("caption")

    def _trained_captioner(self) -> Captioner:
        captioner = load_captioner(
            str(self.directory.path), trust_remote_code=self.recipe.model.trust_remote_code
        )
        captioner.model.to(self.accelerator.device)
        return captioner

    def _write_predictions(
        self, captioner: Captioner, records: Sequence[CaptionedImage], inputs: ImageInputs, name: str
    ) -> None:
        options = self.recipe.train
        job = DecodingJob(
            records,
            inputs,
            self.recipe.generate,
            options.per_device_eval_batch_size,
            options.dataloader_num_workers,
        )
        write_predictions(captioner, job, self.directory.predictions(name), self.accelerator)

    def _record_split(self, split: str, records: Sequence[CaptionedImage]) -> None:
        environment = read_json(self.directory.environment, "environment record")
        environment["datasets"].update(describe_datasets({split: records}))
        write_json(self.directory.environment, environment)

    def _score(self, force: bool) -> None:
        options = self.recipe.score
        names = [options.split, *(f"{options.split}.{baseline}" for baseline in options.baselines)]
        if self._is_done("score", self.directory.scores(names[-1])) and not force:
            return
        if self.accelerator.is_main_process:
            for name in names:
                score_files(
                    self.directory.predictions(name),
                    self.directory.references(options.split),
                    metrics=options.metrics,
                    document_frequencies=options.document_frequencies,
                    output=self.directory.scores(name),
                    split=options.split,
                    confidence_level=options.confidence_level,
                    n_resamples=options.n_resamples,
                    seed=options.seed,
                    signature=self._decoding_signature(),
                )
            write_json(self.directory.samples, self._samples())
        self._mark_done("score")

    def _decoding_signature(self) -> dict[str, Any]:
        values = self.recipe.generate.model_dump(mode="json")
        size = read_json(self.directory.model / "processor_config.json", "processor configuration")
        image_size = size.get("image_processor", {}).get("size")
        return {"decoding": values, "prompt": self.recipe.model.prompt, "image_size": image_size}

    def _samples(self) -> list[dict[str, Any]]:
        """Pick captions for the card: best, middling and worst by the first per-image metric among CIDEr and others."""
        split = self.recipe.score.split
        predictions = read_captions(self.directory.predictions(split))
        per_image = read_scores(self.directory.scores(split)).per_image
        records = {record.image_id: record for record in self.records(split)}
        metric = "cider" if all("cider" in values for values in per_image.values()) else None
        ranked = sorted(predictions, key=lambda i: (-per_image[i]["cider"], i)) if metric else sorted(predictions)
        third = N_SAMPLES // 3
        middle = max(0, len(ranked) // 2 - third // 2)
        chosen = list(dict.fromkeys([*ranked[:third], *ranked[middle : middle + third], *ranked[-third:]]))
        return [
            {
                "image_id": image_id,
                "file_name": records[image_id].file_name,
                "caption": predictions[image_id],
                "references": list(records[image_id].captions),
                "score": per_image[image_id]["cider"] if metric else None,
            }
            for image_id in chosen
        ]

    def _card(self, force: bool) -> None:
        if self.accelerator.is_main_process:
            write_card(self.directory)

    def _publish(self, force: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        model = merged_model(self.directory, wanted=False)
        if self.recipe.publish.repo_id is not None:
            console.print(str(publish(self.directory, model=model)), markup=False)
        else:
            stage(self.directory, model=model)

    # ---- what the person sees at the end -------------------------------------------------------------------------

    def print_scores(self) -> None:
        """Print the scores beside those of the baselines."""
        options = self.recipe.score
        names = {"this captioner": options.split}
        names |= {baseline.replace("_", " "): f"{options.split}.{baseline}" for baseline in options.baselines}
        reports = {title: read_scores(self.directory.scores(name)) for title, name in names.items()}
        count = reports["this captioner"].n_images
        console.print(score_table(reports, f"Scores x 100 on {count:,} {options.split} pictures"))


def merged_model(directory: RunDirectory, wanted: bool) -> Path | None:
    """Return a folder with merged weights where a run must or should publish them, else None.

    An adapter on a captioner that was put together in the run itself has no base model that anyone else could load,
    so such runs always publish merged weights.
    """
    if not (directory.model / "adapter_config.json").is_file():
        if wanted:
            raise UserError(f"{directory.path}: --merged is for LoRA runs; this run trained all weights")
        return None
    if not wanted and not directory.base_model.is_dir():
        return None
    if not directory.merged_model.is_dir():
        trust = load_recipe(directory.recipe).model.trust_remote_code
        save_merged(str(directory.path), directory.merged_model, trust)
    return directory.merged_model


def most_frequent_caption(records: Sequence[CaptionedImage]) -> str:
    """Return the caption that occurs most often, first one first among equals; case and spacing are ignored."""
    counts = Counter(" ".join(caption.lower().split()) for record in records for caption in record.captions)
    return counts.most_common(1)[0][0]


def _part(recipe: Recipe, stage_name: str) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    part: dict[str, Any] = {}
    for key in _DEPENDS_ON[stage_name]:
        value: Any = values
        for step in key.split("."):
            value = value[step]
        part[key] = value
    return part


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} there, {after!r} here")
    return found


def _coco_references(records: Sequence[CaptionedImage]) -> dict[str, Any]:
    images = [{"id": record.image_id, "file_name": record.file_name} for record in records]
    annotations: list[dict[str, Any]] = []
    for record in records:
        for caption in record.captions:
            annotations.append({"id": len(annotations), "image_id": record.image_id, "caption": caption})
    return {"images": images, "annotations": annotations}
