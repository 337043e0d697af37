"""The examination from recipe to report: cheap and certain checks first, measured training steps last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap import registry
from hfcap.captioners.base import Captioner
from hfcap.captioners.shared.room import takes_prompt
from hfcap.data.augmentation import AugmentedDataset
from hfcap.data.loading import CaptionDataset, PixelInputs
from hfcap.data.source import Split, load_split
from hfcap.doctor.console_report import print_report
from hfcap.doctor.cost import Memory, estimate_cost, plan_schedule, report_memory, report_no_room
from hfcap.doctor.dataset import examine_data, report_prompts
from hfcap.doctor.findings import not_yours
from hfcap.doctor.labels import examine_labels, example_batch, shown_images
from hfcap.doctor.measurement import measure, memory_of
from hfcap.doctor.pixels import examine_pixels, show_augmented
from hfcap.doctor.report import DoctorReport
from hfcap.doctor.tokens import examine_tokens
from hfcap.doctor.train_generate_parity import check_longest, examine_agreement
from hfcap.doctor.weights import examine_weights
from hfcap.environment import slow_bfloat16
from hfcap.errors import UserError
from hfcap.failures.memory import is_full_memory
from hfcap.files import write_json
from hfcap.progress import console, error_console
from hfcap.publishing.bases import adapter_without_base
from hfcap.recipe.blocks import Recipe
from hfcap.schema import CaptionedImage
from hfcap.scoring.verdict import few_images_problem
from hfcap.text import counted
from hfcap.training.accelerator import (
    PrecisionError,
    float32_products,
    new_accelerator,
    require_number_types,
    require_tf32,
)
from hfcap.training.assemble import asked_prompts, tokenised, train_dataset, uses_feature_store
from hfcap.training.build import build_captioner, make_trainable
from hfcap.training.zero import ZeroAccelerator

REPORT_FILE = "doctor.json"
SHEET_FILE = "contact_sheet.png"


def output_folder(recipe: Recipe) -> Path:
    """Return where the doctor writes when no folder is given: next to the run directory, which it never touches."""
    return Path(recipe.output_dir) / f"{recipe.name}.doctor"


def examine(recipe: Recipe, output: Path | None = None, steps: int = 3) -> bool:
    """Examine a recipe, print what was found, and write doctor.json and contact_sheet.png.

    Args:
        output: folder for the two files; default: `<output_dir>/<name>.doctor`.
        steps: updates to measure; 0 leaves memory and time out.

    Returns:
        True if no error was found (there may be warnings).

    Raises:
        UserError: the recipe cannot run at all (no such data, base model or LoRA target). What could be examined until
            then is printed and written first.
    """
    folder = output_folder(recipe) if output is None else output
    method = _method(recipe)
    report = DoctorReport(recipe.name, recipe.captioner, method)
    try:
        _Examination(recipe, report, folder).run(steps)
    except UserError as error:
        report.findings.error("recipe", str(error), "see the message")
        _finish(report, folder, complete=False)
        raise
    _finish(report, folder, complete=True)
    return report.healthy


def _method(recipe: Recipe) -> str:
    if not registry.load("captioners", recipe.captioner).REGISTERED.trains_by_gradients:
        return "fitted in one pass"
    return "full fine-tuning" if recipe.lora is None else "LoRA"


def _finish(report: DoctorReport, folder: Path, complete: bool) -> None:
    if report.data is None:
        return
    write_json(folder / REPORT_FILE, report.as_json())
    sheet = folder / SHEET_FILE
    console.print(f"Recipe {report.recipe}: {report.captioner}, {report.method}", style="bold", markup=False)
    if complete:
        print_verdict(report)
    print_report(console, report, sheet if sheet.is_file() and report.pixels else None)
    console.print(f"Report: {folder / REPORT_FILE}", markup=False, soft_wrap=True)


def print_verdict(report: DoctorReport) -> None:
    """Print one line: how many errors and warnings."""
    levels = [problem.level for problem in report.findings.problems]
    errors, warnings = levels.count("error"), levels.count("warning")
    if errors:
        verdict, style = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}: correct the errors first.", "red"
    elif warnings:
        verdict, style = f"No error, {counted(warnings, 'warning')}.", "yellow"
    else:
        verdict, style = "Nothing wrong.", "green"
    console.print(verdict, style=style)


@dataclass
class _Examination:
    recipe: Recipe
    report: DoctorReport
    folder: Path

    def run(self, steps: int) -> None:
        """Fill the report, in the order in which training meets what is examined; `steps` updates are measured."""
        recipe, report, findings = self.recipe, self.report, self.report.findings
        _say("Reading the dataset")
        splits = self._splits()
        train = splits["train"]
        report.data = examine_data(splits, findings, self.recipe.caption_language)
        split = recipe.score.split
        if (problem := few_images_problem(len(splits[split]), split)) is not None:
            findings.warning(f"data.{split}_split", problem, recipe.data.to_score_more(split))
        _say("Building the captioner")
        captioner = build_captioner(recipe, train)
        report_prompts(train, captioner.prompt, takes_prompt(captioner), captioner.answers_prompts, findings)
        if captioner.tokenizer is not None:
            report.tokens = examine_tokens(recipe, captioner, train, findings)
        sheet = self.folder / SHEET_FILE
        if captioner.sees_one_image:
            report.pixels = examine_pixels(train, captioner.image_processor, sheet, findings)
        if not captioner.trains_by_gradients:
            return  # no labels, no loss, no training steps
        assert report.tokens is not None, "what is trained reads tokens"
        if unpublishable := adapter_without_base(recipe):
            findings.warning(*unpublishable)
        make_trainable(captioner, recipe)
        report.weights = examine_weights(recipe, captioner, findings)
        _say("Looking at labels and generation")
        limit = recipe.data.max_caption_tokens
        tokens = tokenised(captioner, train, limit)
        inputs = PixelInputs(train, captioner.image_processor)
        asked, seed = asked_prompts(captioner, train), recipe.train.seed
        dataset = CaptionDataset(inputs, tokens, recipe.data.captions_per_image, seed, limit, asked)
        trained_on = train_dataset(captioner, train, inputs, tokens, recipe)
        if isinstance(trained_on, AugmentedDataset) and captioner.sees_one_image:
            show_augmented(trained_on, captioner.image_processor, sheet)
        lengths = [sum(map(len, captions)) for captions in tokens]
        batch, names = example_batch(captioner, dataset, train, shown_images(recipe, lengths))
        captioner.model.eval()
        if not check_longest(recipe, captioner, batch, report.tokens.tokens[2], findings):
            return
        report.labels = examine_labels(recipe, captioner, tokens, batch, names, findings)
        report.agreement = examine_agreement(recipe, captioner, batch, findings)
        if steps > 0:
            self._measure(captioner, trained_on, lengths, splits, steps)

    def _splits(self) -> dict[str, Sequence[CaptionedImage]]:
        names: list[Split] = ["train", "validation", self.recipe.score.split]
        return {name: load_split(self.recipe.data, name) for name in dict.fromkeys(names)}

    def _measure(
        self,
        captioner: Captioner,
        dataset: CaptionDataset,
        lengths: list[int],
        splits: dict[str, Sequence[CaptionedImage]],
        steps: int,
    ) -> None:
        recipe, report, findings = self.recipe, self.report, self.report.findings
        assert report.weights is not None
        schedule = plan_schedule(recipe, lengths, findings)
        accelerator = self._accelerator()
        require_number_types(captioner, accelerator.device)
        require_tf32(recipe.train.tf32, accelerator.device)
        available = memory_of(accelerator.device)
        trained = report.weights.trained * 4
        fixed = Memory(report.weights.weight_bytes, trained, 2 * trained, 0, 0, available)
        if schedule.updates == 0 or (available is not None and fixed.total > 0.9 * available):
            report_memory(recipe, fixed, findings)
            return
        _say(f"Measuring {steps} training steps")
        stored = uses_feature_store(captioner, recipe)
        try:
            with float32_products(recipe.train.tf32):
                report.measured = measure(recipe, captioner, dataset, stored, accelerator, steps)
        except RuntimeError as error:
            if not is_full_memory(error):
                raise
            report_no_room(accelerator.device, available, findings)
            return
        _report_untrained(report.measured.without_gradient, captioner, findings)
        if recipe.train.mixed_precision == "bf16" and (slow := slow_bfloat16(accelerator.device)):
            findings.warning("train.mixed_precision", slow, "set it to no")
        report.cost = estimate_cost(
            recipe, captioner, report.weights, schedule, report.measured, splits, accelerator, findings
        )

    def _accelerator(self) -> Any:
        precision = self.recipe.train.mixed_precision
        try:
            accelerator = new_accelerator(precision)
        except PrecisionError as error:
            self.report.findings.error("train.mixed_precision", f"{error.problem} (measured without it)", error.remedy)
            accelerator = new_accelerator("no")
        if isinstance(accelerator, ZeroAccelerator):
            raise UserError(
                "hfcap doctor: it measures updates of one process with whole weights, and the accelerate configuration "
                "asks for DeepSpeed; start hfcap doctor without accelerate launch"
            )
        return accelerator


def _report_untrained(names: Sequence[str], captioner: Captioner, findings: Any) -> None:
    """Weights that are trained on paper but get no gradient; an unused pooler is normal, more is not."""
    sizes = {name: weight.numel() for name, weight in captioner.model.named_parameters() if weight.requires_grad}
    lost = sum(sizes[name] for name in names)
    if lost > 0.05 * sum(sizes.values()):
        findings.warning(
            "train",
            f"{lost / sum(sizes.values()):.0%} of the trained weights get no gradient (first: {names[0]})",
            f"freeze that part (train.freeze); if it should learn, {not_yours(captioner, 'logits')}",
        )


def _say(what: str) -> None:
    if error_console.is_terminal:
        error_console.print(f"{what} ...", style="dim")
