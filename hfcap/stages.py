"""The stages of a run in order, each skipped when its output is there and belongs to this recipe."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

from hfcap import registry
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner, save_merged
from hfcap.data.loading import BlankInputs, ImageInputs, PixelInputs
from hfcap.data.source import load_split
from hfcap.decoding import DecodingJob, read_captions, write_predictions
from hfcap.environment import describe_datasets
from hfcap.errors import MissingPackageError, UserError
from hfcap.files import only_one, read_json, write_json, write_json_lines, write_text
from hfcap.progress import console
from hfcap.publishing.card import write_card
from hfcap.publishing.pictures import SAMPLES_FOLDER, record_pictures
from hfcap.publishing.push import check_may_publish, publish
from hfcap.publishing.samples import choose_samples
from hfcap.publishing.staging import stage
from hfcap.recipe import ExpectOptions, Recipe
from hfcap.recipe_loading import dump_recipe, load_recipe
from hfcap.run_directory import RunDirectory
from hfcap.schema import CaptionedImage, Prediction, ScoreReport
from hfcap.score_table import metric_name, score_table
from hfcap.scoring import read_scores
from hfcap.scoring.of_run import RunScoring
from hfcap.text import printable
from hfcap.training import emissions
from hfcap.training.accelerator import new_accelerator
from hfcap.training.fitting import fit_stage
from hfcap.training.stage import image_inputs, train_stage

StageName = Literal["train", "caption", "score", "card", "publish"]
STAGES: tuple[StageName, ...] = ("train", "caption", "score", "card", "publish")

_DEPENDS_ON: dict[str, tuple[str, ...]] = {
    "train": ("captioner", "model", "data", "lora", "augment", "train", "scst"),
    "caption": ("generate", "score.split", "score.baselines"),
    "score": ("score", "publish.samples_license"),
}
"""Blocks of the recipe that a stage's output depends on, beside those of the stages before it."""


def make_accelerator(recipe: Recipe, run: RunDirectory) -> Any:
    """Create the Accelerator of a run.

    Raises:
        MissingPackageError: a tracker in `train.report_to` is not installed.
        UserError: the precision, or the accelerate configuration, is nothing that hfcap can train with here.
    """
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, ProjectConfiguration

    for tracker in recipe.train.report_to:
        # Accelerate leaves trackers out without a word.
        if importlib.util.find_spec(tracker) is None:
            raise MissingPackageError(tracker, f"train.report_to: {tracker}")
    return new_accelerator(
        recipe.train.mixed_precision,
        log_with=[tracker for tracker in recipe.train.report_to if tracker != emissions.NAME] or None,
        project_config=ProjectConfiguration(project_dir=str(run.path), logging_dir=str(run.path / "trackers")),
        # The loop accumulates; a number in the user's accelerate configuration would divide the loss once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        # Encoders carry heads that captioning does not use (poolers); their weights never get gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class Run:
    """One recipe in its run directory; `execute` brings it up to a stage."""

    def __init__(self, recipe: Recipe, accelerator: Any | None = None) -> None:
        self.recipe = recipe
        self.directory = RunDirectory(Path(recipe.output_dir) / recipe.name)
        self._splits: dict[str, list[CaptionedImage]] = {}
        self._scoring = RunScoring(recipe, self.directory, self.records)
        self._captioner: Captioner | None = None
        self._check_directory()
        self.accelerator = make_accelerator(recipe, self.directory) if accelerator is None else accelerator

    # ---- which recipe the directory belongs to -------------------------------------------------------------------

    def _check_directory(self) -> None:
        """Refuse a directory that was trained with another recipe."""
        directory = self.directory
        if directory.recipe.is_file():
            earlier = load_recipe(directory.recipe)
            changed = _differences(_part(earlier, "train"), _part(self.recipe, "train"))
            if changed and not (directory.checkpoints.is_dir() or directory.model.is_dir()):
                # Stopped by a mistake in the recipe before anything was trained: only the start is out of date.
                shutil.rmtree(directory.base_model, ignore_errors=True)
            elif changed:
                raise UserError(
                    f"{directory.path}: holds a run of a different recipe ({'; '.join(changed[:5])}); choose "
                    "another name (name=...), or delete that folder"
                )

    @property
    def _state_file(self) -> Path:
        return self.directory.path / "stages.json"

    def _state(self) -> dict[str, str]:
        return read_json(self._state_file, "record of finished stages") if self._state_file.is_file() else {}

    def _is_finished(self, name: str, outputs: Sequence[Path]) -> bool:
        return self._state().get(name) == self._fingerprint(name) and all(output.exists() for output in outputs)

    def _begin(self, name: str, outputs: Sequence[Path], force: bool) -> bool:
        """Whether a stage must be done; if so, what was made from its earlier output is forgotten.

        A half-done stage may go on with what it has only where the recipe is still the one it began with.
        """
        state, fingerprint = self._state(), self._fingerprint(name)
        finished = self._is_finished(name, outputs)
        # Every process decides before one of them changes what the decision rests on.
        self.accelerator.wait_for_everyone()
        if finished and not force:
            return False
        if self.accelerator.is_main_process:
            if force or state.get(f"{name} begun") != fingerprint:
                self._discard(name)
            later = list(_DEPENDS_ON)[list(_DEPENDS_ON).index(name) :]
            kept = {key: value for key, value in state.items() if key.split()[0] not in later}
            write_json(self._state_file, {**kept, f"{name} begun": fingerprint})
        self.accelerator.wait_for_everyone()
        return True

    def _discard(self, name: str) -> None:
        """Delete what a stage that was begun differently, or shall be done again, left behind."""
        directory = self.directory
        if name == "train":
            for folder in (directory.model, directory.checkpoints, directory.base_model, directory.merged_model):
                shutil.rmtree(folder, ignore_errors=True)
            directory.emissions.unlink(missing_ok=True)
        if name == "caption":
            for part in directory.predictions("").parent.glob("*.part-*"):
                part.unlink()

    def _mark_done(self, name: str) -> None:
        if self.accelerator.is_main_process:
            write_json(self._state_file, {**self._state(), name: self._fingerprint(name)})
        self.accelerator.wait_for_everyone()

    def _fingerprint(self, name: str) -> str:
        """Hash what a stage and those before it depend on; keys at their defaults do not count.

        Otherwise a new version of hfcap with one more key would take every finished run for another one's.
        """
        upto = list(_DEPENDS_ON)[: list(_DEPENDS_ON).index(name) + 1]
        values = [_part(self.recipe, stage_name, exclude_defaults=True) for stage_name in upto]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    # ---- stages ------------------------------------------------------------------------------------------------

    def execute(self, last: StageName, force: bool = False) -> None:
        """Run every stage up to and including `last`; `force` does the last one again."""
        if last == "publish" and self.recipe.publish.repo_id is not None and self.accelerator.is_main_process:
            # Hours of training should not end at a token that may only read.
            check_may_publish(self.recipe.publish.repo_id)
        if not self._is_finished("train", self._trained) or (force and last == "train"):
            self._check_data(last)
        # Only now: a recipe whose data are not there leaves no run directory behind.
        with self._alone():
            write_text(self.directory.recipe, dump_recipe(self.recipe))
            for name in STAGES[: STAGES.index(last) + 1]:
                getattr(self, f"_{name}")(force and name == last)

    def _alone(self) -> AbstractContextManager[None]:
        """Keep other commands away from this run; its own processes follow the main one."""
        if not self.accelerator.is_main_process:
            return nullcontext()
        return only_one(
            self.directory.lock,
            f"{self.directory.path}: another hfcap is working on this run; wait until it is done, or choose another "
            "name (name=...)",
        )

    def records(self, split: Literal["train", "validation", "test"]) -> list[CaptionedImage]:
        """Checked records of one split."""
        if split not in self._splits:
            self._splits[split] = load_split(self.recipe.data, split)
        return self._splits[split]

    @property
    def _trained(self) -> list[Path]:
        return [self.directory.summary, self.directory.model]

    def _check_data(self, last: StageName) -> None:
        """Load what training and the stages up to `last` need: better known before the training than after it."""
        for split in ("train", "validation"):
            self.records(split)
        if last != "train":
            self.records(self.recipe.score.split)
        if last not in ("train", "caption"):
            self._scoring.check()

    def _train(self, force: bool) -> None:
        if not self._begin("train", self._trained, force):
            return
        splits = {name: self.records(name) for name in ("train", "validation")}
        family: type[Captioner] = registry.load("captioners", self.recipe.captioner).REGISTERED
        make = train_stage if family.trains_by_gradients else fit_stage
        make(self.recipe, self.directory, splits, self.accelerator)
        self._mark_done("train")

    def _caption(self, force: bool) -> None:
        split = self.recipe.score.split
        names = self._scored_names()
        if not self._begin("caption", [self.directory.predictions(name) for name in names], force):
            return
        records = self.records(split)
        if self.accelerator.is_main_process:
            write_json(self.directory.references(split), _coco_references(records))
            self._record_split(split, records)
        captioner = self._trained_captioner()
        frozen = read_json(self.directory.summary, "training summary")["encoder_frozen"]
        stored = frozen and self.recipe.data.may_store_features
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
        if self._captioner is None:
            trust = self.recipe.model.trust_remote_code
            self._captioner = load_captioner(str(self.directory.path), trust_remote_code=trust)
            self._captioner.model.to(self.accelerator.device)
        return self._captioner

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
        environment["datasets"].update(describe_datasets(self.recipe.data, {split: records}))
        write_json(self.directory.environment, environment)

    def _scored_names(self) -> list[str]:
        """The split and the baselines on it: names of prediction and score files."""
        split = self.recipe.score.split
        return [split, *(f"{split}.{baseline}" for baseline in self.recipe.score.baselines)]

    def _score(self, force: bool) -> None:
        names = self._scored_names()
        if not self._begin("score", [self.directory.scores(name) for name in names], force):
            return
        if self.accelerator.is_main_process:
            self._scoring.score(names, self._decoding_signature())
            self._record_samples()
        self._mark_done("score")

    def _decoding_signature(self) -> dict[str, Any]:
        values = self.recipe.generate.model_dump(mode="json")
        size = read_json(self.directory.model / "processor_config.json", "processor configuration")
        image_size = size.get("image_processor", {}).get("size")
        return {"decoding": values, "prompt": self.recipe.model.prompt, "image_size": image_size}

    def _record_samples(self) -> None:
        """Choose the captions that the card shows, and record captions of the pictures that are published."""
        split, options = self.recipe.score.split, self.recipe.publish
        predictions = read_captions(self.directory.predictions(split))
        per_image = read_scores(self.directory.scores(split)).per_image
        ciders = {image_id: row.get("cider") for image_id, row in per_image.items()}
        records = {record.image_id: record for record in self.records(split)}
        samples = choose_samples(predictions, ciders, list(records.values()))
        published = [records[sample["image_id"]] for sample in samples] if options.samples_license else []
        for number in range(len(published)):
            samples[number]["picture"] = f"{SAMPLES_FOLDER}/{number + 1}.jpg"
        record_pictures(self.directory, self._trained_captioner(), self.recipe.generate, published)
        write_json(self.directory.samples, samples)

    def _card(self, force: bool) -> None:
        if self.accelerator.is_main_process:
            write_card(self.directory)

    def _publish(self, force: bool) -> None:
        if not self.accelerator.is_main_process:
            return
        trust = self.recipe.model.trust_remote_code
        model = merged_model(self.directory, wanted=False, trust_remote_code=trust)
        if self.recipe.publish.repo_id is not None:
            console.print(str(publish(self.directory, model=model, trust_remote_code=trust)), markup=False)
        else:
            stage(self.directory, model=model, trust_remote_code=trust)

    # ---- what the person sees at the end -------------------------------------------------------------------------

    def print_scores(self) -> None:
        """Print the scores beside those of the baselines."""
        options = self.recipe.score
        titles = ["this captioner", *(baseline.replace("_", " ") for baseline in options.baselines)]
        files = map(self.directory.scores, self._scored_names())
        reports = dict(zip(titles, map(read_scores, files), strict=True))
        ours = reports["this captioner"]
        console.print(score_table(reports, f"Scores x 100 on {ours.n_images:,} {options.split} pictures"))
        if self.recipe.expect is not None:
            self._print_target(self.recipe.expect, ours)

    def _print_target(self, expect: ExpectOptions, ours: ScoreReport) -> None:
        """Say whether the published values were met."""
        for name, enough in expect.reached(ours.metrics).items():
            value, target = 100 * (ours.metrics[name] or 0.0), 100 * expect.metrics[name]
            verdict = f"reached within {100 * expect.tolerance:g} %" if enough else "not reached"
            text = f"Published {metric_name(name)} {target:.1f} ({expect.source}): {value:.1f} here, {verdict}"
            console.print(printable(text), markup=False, soft_wrap=True)


def merged_model(directory: RunDirectory, wanted: bool, trust_remote_code: bool = False) -> Path | None:
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
        save_merged(str(directory.path), directory.merged_model, trust_remote_code)
    return directory.merged_model


def most_frequent_caption(records: Sequence[CaptionedImage]) -> str:
    """Return the caption that occurs most often, first one first among equals; case and spacing are ignored."""
    counts = Counter(" ".join(caption.lower().split()) for record in records for caption in record.captions)
    return counts.most_common(1)[0][0]


def _part(recipe: Recipe, stage_name: str, exclude_defaults: bool = False) -> dict[str, Any]:
    values = recipe.model_dump(mode="json", exclude_defaults=exclude_defaults)
    part: dict[str, Any] = {}
    for key in _DEPENDS_ON[stage_name]:
        value: Any = values
        for step in key.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
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
