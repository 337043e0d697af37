"""From a model and images to captions; with an output file, a stopped captioning goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hfcap.captioners.adaptation.quantization import Weights
from hfcap.captioners.asking.asked import prompts_of
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioners.loading import generation_defaults, local_folder
from hfcap.captioning.alt_text import AltText
from hfcap.captioning.batches import CaptionedRecord, caption_records
from hfcap.captioning.captioner import ready_captioner
from hfcap.captioning.columns import prepared_for
from hfcap.captioning.forbidden import bad_words_ids
from hfcap.captioning.gate import QualityGate
from hfcap.captioning.inputs import DatasetChoice, images_of, nothing_readable, require_one_readable
from hfcap.captioning.options import decoding_options
from hfcap.captioning.output import caption_table, check_output, write_captions
from hfcap.captioning.partial_output import PartialOutput, Result, Skipped, only_writer
from hfcap.captioning.with_images.sidecar_output import ImageOutput
from hfcap.captioning.wording import Wording
from hfcap.data.loading import PixelInputs
from hfcap.data.pixels import identity_of
from hfcap.data.web.image_stream import ImageStream
from hfcap.decoding import DecodingJob, as_prediction, job_fingerprint, say_cut, say_usage
from hfcap.errors import StoppedError, UserError
from hfcap.progress import console, error_console, progress_bar
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.styles import with_room_for_style
from hfcap.schema import CaptionedImage, Prediction
from hfcap.text import counted


@dataclass(frozen=True)
class Finishing:
    """What happens to captions between the captioner and the file, and where they go besides a file.

    Attributes:
        wording: text around them. gate: what is marked for review. sidecars: captions that stay with their images, next
            to them or inside; None = none do.
        page: whose copy gets them as alternative texts; None = no page.
        shown: print a table where nothing is written.
    """

    wording: Wording = field(default_factory=Wording)
    gate: QualityGate = field(default_factory=QualityGate)
    sidecars: ImageOutput | None = None
    page: AltText | None = field(default=None, repr=False)
    shown: bool = True

    def finished(self, batch: Sequence[CaptionedRecord]) -> list[Result]:
        """Return the results of one batch, in order."""
        results: list[Result] = [_result(record, found) for record, found in batch]
        captioned = [number for number, result in enumerate(results) if isinstance(result, Prediction)]
        records = [batch[number][0] for number in captioned]
        examined = self.gate.examined(records, [r for r in results if isinstance(r, Prediction)])
        for number, prediction in zip(captioned, self.wording.around(examined), strict=True):
            results[number] = prediction
        return results

    def deliver(self, predictions: Sequence[Prediction], images: ImageStream, output: Path | None) -> None:
        """Write what is written at the end, or print a table where nothing is written at all."""
        if self.page is not None and output is not None:
            self.page.write(output, {one.image_id: one.caption for one in predictions})
        elif output is not None:
            write_captions(predictions, output, images)
        elif self.sidecars is None and self.shown:
            console.print(caption_table(predictions))


def caption_images(
    model: str,
    inputs: list[str] | ImageStream,
    output: Path | None = None,
    *,
    overrides: dict[str, Any] | None = None,
    prompt: str | None = None,
    batch_size: int = 16,
    revision: str | None = None,
    trust_remote_code: bool = False,
    weights: Weights | None = None,
    dataset: DatasetChoice | None = None,
    again: bool = False,
    finishing: Finishing | None = None,
) -> list[Prediction]:
    """Caption images with a run directory, a model folder or a Hub model; print a table, or write files.

    Images that cannot be read are named on standard error and left out. What Ctrl-C interrupts is kept beside `output`.

    Args:
        inputs: files, folders, patterns, web addresses; or one dataset; or what `images_of` made of them.
        output: file, in the form that its name's ending asks for (`captioning.output.OUTPUT_FORMS`); without it and
            without sidecars a table is printed.
        overrides: decoding options that replace the ones saved with the model.
        prompt: text every caption starts with; None = the model's own.
        weights: number type and quantisation; None = as they are stored. dataset: which images of a dataset.
        again: forget what a stopped captioning into `output` has done.
        finishing: words around captions, marks for review, sidecars.

    Raises:
        UserError: wrong inputs or options, no image can be read, or another captioning writes `output`.
        WorkError: the Hub cannot be reached, or a dataset's stream breaks.
    """
    finishing = finishing or Finishing()
    if output is not None and finishing.page is None:
        check_output(output)
    images = inputs if isinstance(inputs, ImageStream) else images_of(inputs, dataset)
    kept = output
    if (sidecars := finishing.sidecars) is not None:
        images = sidecars.wanted(images)
        kept = sidecars.journal(images)
        if images.total == 0:
            return []
    if images.listed is not None:
        # Better known before the model is fetched.
        require_one_readable(images.listed)
    loading = (model, revision, trust_remote_code, weights)
    captioner, job = captioner_and_job(*loading, prompt, batch_size, overrides or {}, finishing.gate.forbidden)
    images = prepared_for(captioner, job, images)
    finishing.gate.require_scores(job.options)
    unfinished = None if kept is None else PartialOutput(kept, _fingerprint(captioner, job, images, finishing))
    with only_writer(kept):
        predictions = _Captioning(captioner, job, images, unfinished, again, finishing).finish()
        say_cut(sum(one.cut for one in predictions), len(predictions), job.options.max_new_tokens)
        say_usage(one.usage for one in predictions)
        finishing.deliver(predictions, images, output)
        if unfinished is not None:
            unfinished.remove()
    return predictions


def captioner_and_job(
    model: str,
    revision: str | None,
    trust_remote_code: bool,
    weights: Weights | None,
    prompt: str | None,
    batch_size: int,
    overrides: dict[str, Any],
    forbidden: Sequence[str],
    device: torch.device | None = None,
) -> tuple[Captioner, DecodingJob]:
    """Load a captioner and say how it captions; for the arguments see `caption_images`.

    Args:
        forbidden: words that captions must not hold. device: None = the machine's accelerator, or the CPU.

    Raises:
        UserError: there is no such captioner, or an option is unknown, out of its range, or without effect.
    """
    defaults = generation_defaults(local_folder(model, revision))
    options = decoding_options({**defaults, **with_room_for_style(overrides)})
    _require_effect(overrides, options)
    captioner = ready_captioner(model, revision, trust_remote_code, device, weights)
    prompt = captioner.prompt_for(options.style, prompt)
    if forbidden:
        ids = [*(options.bad_words_ids or []), *bad_words_ids(captioner, forbidden)]
        options = options.model_copy(update={"bad_words_ids": ids})
    return captioner, DecodingJob([], PixelInputs([], captioner.image_processor), options, batch_size, 0, prompt)


def _require_effect(given: dict[str, Any], options: GenerateOptions) -> None:
    """Refuse options of sampling where nothing is sampled: they would be ignored."""
    if idle := options.without_effect(given):
        raise UserError(f"--{idle[0].replace('_', '-')}: has no effect without --sample; give it, or leave this out")


def _fingerprint(captioner: Captioner, job: DecodingJob, images: ImageStream, finishing: Finishing) -> str:
    # Unlike in a run directory, models with the same weights may see images in different ways.
    processor = identity_of(captioner.image_processor)
    asked = prompts_of(captioner, job.prompt, images.listed) if images.listed is not None else None
    told = [asked] if isinstance(asked, list) else []
    identity = [type(captioner).__name__, processor, images.identity, repr(finishing), *told]
    return job_fingerprint(captioner, job, identity)


class _Captioning:
    """One captioning of a stream of images, continued from what is in `unfinished`.

    Args:
        job: options and pixels; its records are not used.
        unfinished: where finished batches are kept; None = nowhere.
    """

    def __init__(
        self,
        captioner: Captioner,
        job: DecodingJob,
        images: ImageStream,
        unfinished: PartialOutput | None,
        again: bool,
        finishing: Finishing,
    ) -> None:
        self.captioner, self.job, self.images, self.unfinished = captioner, job, images, unfinished
        self.finishing, self.sidecars = finishing, finishing.sidecars
        self.predictions: list[Prediction] = []
        self.problems: list[str] = []
        self.last: str | None = None
        if unfinished is not None:
            if again:
                unfinished.remove()
            self._continue(unfinished)

    @property
    def done(self) -> int:
        """Images that are captioned or skipped."""
        return len(self.predictions) + len(self.problems)

    def _continue(self, unfinished: PartialOutput) -> None:
        done, others = unfinished.results(), unfinished.others()
        if done:
            error_console.print(f"Resuming after {counted(len(done), 'image')}", markup=False)
        elif others:
            begun = "what was begun there had another model, other options or other images"
            error_console.print(f"{unfinished.output}: begins again, because {begun}", style="yellow", markup=False)
        self._take(done)
        if self.sidecars is not None:
            # A batch may have been noted and its sidecars not yet written.
            self.sidecars.write(zip(self.images.listed or [], done, strict=False))

    def _take(self, results: list[Result]) -> None:
        for result in results:
            self.last = result.image_id
            if isinstance(result, Skipped):
                self.problems.append(result.problem)
                error_console.print(f"skipped: {result.problem}", style="yellow", markup=False)
            else:
                self.predictions.append(result)

    def finish(self) -> list[Prediction]:
        """Caption what is left and return everything, in the order of the images."""
        try:
            self._caption()
        except KeyboardInterrupt:
            lasting = self.unfinished is not None or self.sidecars is not None
            kept = "the same command continues there" if lasting else "only with -o FILE would that be kept"
            raise StoppedError(f"stopped after {counted(self.done, 'image')}; {kept}") from None
        if not self.predictions:
            if self.unfinished is not None:
                self.unfinished.remove()
            raise UserError(
                nothing_readable(self.problems)
                if self.problems
                else "the inputs: there is no image in them; give others"
            )
        return self.predictions

    def _caption(self) -> None:
        images = self.images.open(self.done, self.last)
        with progress_bar() as progress:
            task = progress.add_task("Captioning", total=self.images.total, completed=self.done)
            advance = partial(progress.advance, task)
            captioned = caption_records(self.captioner, self.job, images, len(self.predictions), advance)
            with closing(captioned) as batches:
                for batch in batches:
                    results = self.finishing.finished(batch)
                    if self.unfinished is not None:
                        self.unfinished.add(results)
                    if self.sidecars is not None:
                        self.sidecars.write(zip((record for record, _ in batch), results, strict=True))
                    self._take(results)


def _result(record: CaptionedImage, found: list[GeneratedCaption] | str) -> Result:
    return Skipped(record.image_id, found) if isinstance(found, str) else as_prediction(record, found)
