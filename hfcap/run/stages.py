"""The stages of a run in order, each skipped when its output is there and belongs to this recipe."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

from hfcap import registry
from hfcap.captioners.asking.asked import longest, prompts_of, require_askable
from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import load_captioner, save_merged
from hfcap.captioners.shared.room import require_room
from hfcap.card.example_images import SAMPLES_FOLDER, record_images
from hfcap.card.render import write_card
from hfcap.card.samples import choose_samples
from hfcap.data.loading import BlankInputs, ImageInputs, PixelInputs
from hfcap.data.source import Split, load_split
from hfcap.decoding import DecodingJob, read_captions, write_predictions
from hfcap.errors import UserError
from hfcap.failures.system import failures_of_the_system
from hfcap.files import read_json_object, write_json, write_json_lines
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.progress import console, error_console
from hfcap.publishing.bases import adapter_without_base, say_of_missing_base
from hfcap.publishing.push import check_may_publish, publish
from hfcap.publishing.staging import stage_files
from hfcap.recipe.blocks import ExpectOptions, Recipe
from hfcap.run.from_checkpoint import require_checkpoint
from hfcap.run.processes import ended_together
from hfcap.run.processes import make_accelerator as make_accelerator
from hfcap.run.watch import Watch
from hfcap.run_directory.paths import RunDirectory, alone, remove_unfinished
from hfcap.run_directory.recipe import with_absolute_places
from hfcap.run_directory.stage_record import StageRecord
from hfcap.schema import CaptionedImage, Prediction, ScoreReport
from hfcap.scoring import read_scores
from hfcap.scoring.of_run import RunScoring
from hfcap.scoring.score_table import metric_name, print_slices, score_table, shown_score
from hfcap.scoring.verdict import Values, baseline_problem, few_images_problem, main_score
from hfcap.text import printable
from hfcap.training.assemble import image_inputs
from hfcap.training.fitting import fit_stage
from hfcap.training.run_record import weight_hashes
from hfcap.training.train import train_stage

StageName = Literal["train", "caption", "score", "card", "publish"]
STAGES: tuple[StageName, ...] = ("train", "caption", "score", "card", "publish")


class Run:
    """One recipe in its run directory; `execute` brings it up to a stage.

    Args:
        directory: where the run stands; None = `<output_dir>/<name>` of the recipe.
        accept_changes: go on although data, base model or keys of the training are not those that the run began with.
        finish: end a training that was begun at its last checkpoint.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Any | None = None,
        directory: RunDirectory | None = None,
        accept_changes: bool = False,
        finish: bool = False,
    ) -> None:
        self._finish = finish
        self.recipe = with_absolute_places(recipe)
        self.directory = RunDirectory(Path(recipe.output_dir) / recipe.name) if directory is None else directory
        self.record = StageRecord(self.directory, self.recipe)
        self._splits: dict[str, Sequence[CaptionedImage]] = {}
        self._scoring = RunScoring(self.recipe, self.directory, self.records)
        self._captioner: Captioner | None = None
        self.accelerator = make_accelerator(self.recipe, self.directory) if accelerator is None else accelerator
        self.watch = Watch(
            self.recipe, self.directory, self.record, self.records, accept_changes, self.accelerator.is_main_process
        )

    # ---- what is done, and what has to be done ---------------------------------------------------------------------

    def _is_finished(self, name: str, outputs: Sequence[Path]) -> bool:
        changed = self.watch.training_goes_on() if name == "train" else bool(self.record.changed(name))
        return self.record.is_done(name) and not changed and all(output.exists() for output in outputs)

    def _begin(self, name: str, force: bool) -> None:
        """Forget what was made from a stage's earlier output; half-done work of the same recipe stays."""
        # Every process has decided before one of them changes what the decision rests on.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            # A training goes on with a changed recipe where `watch` lets it.
            begun_otherwise = name != "train" and (self.record.earlier(name) is None or self.record.changed(name))
            if force or begun_otherwise:
                self._discard(name)
            self.record.begin(name)
        self.accelerator.wait_for_everyone()

    def _discard(self, name: str) -> None:
        """Delete the leftovers of a stage that was started with another recipe or is being forced."""
        directory = self.directory
        if name == "train":
            for folder in (directory.model, directory.checkpoints, directory.base_model, directory.merged_model):
                shutil.rmtree(folder, ignore_errors=True)
            for file in (directory.summary, directory.emissions, directory.environment):
                file.unlink(missing_ok=True)
        if name == "caption":
            for part in directory.predictions("").parent.glob("*.part-*"):
                part.unlink()

    def _mark_done(self, name: str, facts: Mapping[str, Any] | None = None) -> None:
        if self.accelerator.is_main_process:
            self.record.note_done(name, facts or {})
        self.accelerator.wait_for_everyone()

    # ---- stages ------------------------------------------------------------------------------------------------

    def execute(self, last: StageName, force: bool = False) -> None:
        """Run every stage up to and including `last`; `force` does the last one again."""
        if last == "publish" and self.accelerator.is_main_process:
            self._check_publishing()
        again = force and last == "train"
        if self._finish and not self._is_finished("train", self._trained):
            require_checkpoint(self.directory)
        if not again:
            self.watch.require_same_recipe()
        if again or not self._is_finished("train", self._trained):
            self._check_data(last)
        # Only now: a recipe whose data are not there leaves no run directory behind.
        lock = alone(self.directory) if self.accelerator.is_main_process else nullcontext()
        with ended_together(self.directory, self.accelerator), lock:
            if self.accelerator.is_main_process:
                self.directory.cut_off.unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            if not again:
                self.watch.require_same_recipe()  # what another command did until now counts
                if not self._is_finished("train", self._trained):
                    self.watch.require_same_data("train", "train", "validation")
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                remove_unfinished(self.directory)
                self.watch.take_over_recipe()
            self.accelerator.wait_for_everyone()
            for name in STAGES[: STAGES.index(last) + 1]:
                with failures_of_the_system(lambda name=name: f"stage {name!r} of {self.directory.path}"):  # type: ignore[misc]
                    getattr(self, f"_{name}")(force and name == last)
            self.watch.say_skipped(last)

    def _check_publishing(self) -> None:
        """Hours of training should not end at what could have been known before."""
        say_of_missing_base(self.recipe)
        if self.recipe.publish.repo_id is not None:
            if reason := self._never_published:
                raise UserError(f"publish.repo_id: this captioner cannot be published: {reason}; remove the key")
            check_may_publish(self.recipe.publish.repo_id)

    @property
    def _never_published(self) -> str | None:
        """Why captioners of this family cannot be published; None where they can."""
        return self._family.publishing_limits.get("publish")

    @property
    def _family(self) -> type[Captioner]:
        family: type[Captioner] = registry.load("captioners", self.recipe.captioner).REGISTERED
        return family

    def records(self, split: Split) -> Sequence[CaptionedImage]:
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
        for name, records in self._splits.items():
            require_askable(self._family, self.recipe.captioner, self.recipe.model.prompt, records, name)
        if last not in ("train", "caption"):
            self._scoring.check()
            split = self.recipe.score.split
            problem = few_images_problem(len(self.records(split)), split)
            if problem is not None and self.accelerator.is_main_process:
                warn_on_terminal(f"{problem}; {self.recipe.data.to_score_more(split)}")

    def _train(self, force: bool) -> None:
        if not force and self._is_finished("train", self._trained):
            return self.watch.skip("train")
        self._begin("train", force)
        splits = {name: self.records(name) for name in ("train", "validation")}
        if self._family.trains_by_gradients:
            accept = self.watch.accept_changes
            train_stage(self.recipe, self.directory, splits, self.accelerator, accept, self._finish)
        else:
            fit_stage(self.recipe, self.directory, splits, self.accelerator)
        self._mark_done("train", {"weights": weight_hashes(self.directory)})

    def _caption(self, force: bool) -> None:
        split = self.recipe.score.split
        names = self._scored_names()
        outputs = [self.directory.predictions(name) for name in names]
        if not force and self._is_finished("caption", outputs):
            return self.watch.skip("caption")
        self.watch.require_whole_model()
        begun = self.record.earlier("caption") is not None and not self.record.changed("caption")
        read: list[Split] = [split] if begun and not force else []
        read += ["train"] if "most_frequent_caption" in self.recipe.score.baselines else []
        self.watch.require_same_data("caption", *read)
        self._begin("caption", force)
        records = self.records(split)
        if self.accelerator.is_main_process:
            write_json(self.directory.references(split), _coco_references(records))
            self.watch.note_split(split, records)
        captioner = self._trained_captioner()
        # Training looked as well, but the recipe may have changed.
        require_room(captioner, self.recipe.generate, longest(captioner, prompts_of(captioner, None, records)))
        frozen = read_json_object(self.directory.summary, "training summary").get("encoder_frozen")
        stored = bool(frozen) and self.recipe.data.may_store_features
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
            options.loading_workers,
            captioner.prompt_for(self.recipe.generate.style, None),
        )
        write_predictions(captioner, job, self.directory.predictions(name), self.accelerator)

    def _scored_names(self) -> list[str]:
        """The split and the baselines on it: names of prediction and score files."""
        split = self.recipe.score.split
        return [split, *(f"{split}.{baseline}" for baseline in self.recipe.score.baselines)]

    def _score(self, force: bool) -> None:
        names = self._scored_names()
        if not force and self._is_finished("score", [self.directory.scores(name) for name in names]):
            return self.watch.skip("score")
        self.watch.require_same_data("score", self.recipe.score.split, *self._scoring.other_splits)
        self._begin("score", force)
        if self.accelerator.is_main_process:
            self._scoring.score(names, self._decoding_signature())
            self._record_samples()
        self._mark_done("score")

    def _decoding_signature(self) -> dict[str, Any]:
        values = self.recipe.generate.model_dump(mode="json")
        processor = read_json_object(self.directory.model / "processor_config.json", "processor configuration")
        images = processor.get("image_processor")
        image_size = images.get("size") if isinstance(images, dict) else None
        own = any(record.asked for record in self.records(self.recipe.score.split))
        prompt = "data.own_prompts" if own else self.recipe.model.prompt
        return {"decoding": values, "prompt": prompt, "image_size": image_size}

    def _record_samples(self) -> None:
        """Choose the captions that the card shows, and record captions of the images that are published."""
        split, options = self.recipe.score.split, self.recipe.publish
        predictions = read_captions(self.directory.predictions(split))
        per_image = read_scores(self.directory.scores(split)).per_image
        ciders = {image_id: row.get("cider") for image_id, row in per_image.items()}
        records = {record.image_id: record for record in self.records(split)}
        samples = choose_samples(predictions, ciders, list(records.values()))
        published = [records[sample["image_id"]] for sample in samples] if options.samples_license else []
        for number in range(len(published)):
            samples[number]["image"] = f"{SAMPLES_FOLDER}/{number + 1}.jpg"
        record_images(self.directory, self._trained_captioner(), self.recipe.generate, published)
        write_json(self.directory.samples, samples)

    def _card(self, force: bool) -> None:
        if self.accelerator.is_main_process:
            if self.recipe.publish.merged:
                merged_model(self.directory, wanted=True, trust_remote_code=self.recipe.model.trust_remote_code)
            write_card(self.directory)

    def _publish(self, force: bool) -> None:
        if not self.accelerator.is_main_process or adapter_without_base(self.recipe) is not None:
            return
        if reason := self._never_published:
            error_console.print(f"Nothing is packaged for the Hub: {reason}", markup=False, soft_wrap=True)
            return
        trust = self.recipe.model.trust_remote_code
        model = merged_model(self.directory, wanted=self.recipe.publish.merged, trust_remote_code=trust)
        if self.recipe.publish.repo_id is not None:
            console.print(str(publish(self.directory, model=model, trust_remote_code=trust)), markup=False)
        else:
            stage_files(self.directory, model=model, trust_remote_code=trust)

    # ---- what the person sees at the end -------------------------------------------------------------------------

    def print_scores(self) -> None:
        """Print what the scores mean, and the scores with those of the baselines."""
        options = self.recipe.score
        titles = ["this captioner", *(baseline.replace("_", " ") for baseline in options.baselines)]
        files = map(self.directory.scores, self._scored_names())
        reports = dict(zip(titles, map(read_scores, files), strict=True))
        ours = reports["this captioner"]
        print_verdict(ours, {name: reports[name.replace("_", " ")].metrics for name in options.baselines})
        if self.recipe.expect is not None:
            self._print_target(self.recipe.expect, ours)
        console.print(score_table(reports, f"Scores x 100 on {ours.n_images:,} {options.split} images"))
        print_slices(ours)

    def _print_target(self, expect: ExpectOptions, ours: ScoreReport) -> None:
        """Say whether the published values were met."""
        for name, enough in expect.reached(ours.metrics).items():
            value, target = shown_score(name, ours.metrics[name]), shown_score(name, expect.metrics[name])
            verdict = f"reached within {100 * expect.tolerance:g} %" if enough else "not reached"
            text = f"Published {metric_name(name)} {target} ({expect.source}): {value} here, {verdict}"
            console.print(printable(text), markup=False, soft_wrap=True)


def print_verdict(report: ScoreReport, baselines: Mapping[str, Values]) -> None:
    """Print the main score, and in yellow that a baseline is as good."""
    if (score := main_score(report)) is not None:
        console.print(f"{score}.", style="bold", markup=False, soft_wrap=True)
    if (problem := baseline_problem(report.metrics, baselines)) is not None:
        console.print(f"warning: this captioner scores {problem}", style="yellow", markup=False, soft_wrap=True)


def merged_model(directory: RunDirectory, wanted: bool, trust_remote_code: bool = False) -> Path | None:
    """Return a folder with merged weights where a run must or should publish them, else None.

    An adapter on a captioner that was put together in the run itself has no base model that anyone else could load,
    so such runs always publish merged weights.
    """
    if not (directory.model / "adapter_config.json").is_file():
        if wanted:
            raise UserError(
                f"{directory.path}: --merged is for LoRA runs, and this run trained all weights; leave it out"
            )
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


def _coco_references(records: Sequence[CaptionedImage]) -> dict[str, Any]:
    images = [
        {"id": record.image_id, "file_name": record.file_name, **({"group": record.group} if record.group else {})}
        for record in records
    ]
    annotations: list[dict[str, Any]] = []
    for record in records:
        for caption in record.captions:
            annotations.append({"id": len(annotations), "image_id": record.image_id, "caption": caption})
    return {"images": images, "annotations": annotations}
