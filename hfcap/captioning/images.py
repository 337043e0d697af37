"""From a model and images to captions; with an output file, a stopped captioning goes on where it was."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.captioners.loading import generation_defaults, local_folder
from hfcap.captioning.batches import caption_records
from hfcap.captioning.captioner import ready_captioner
from hfcap.captioning.inputs import DatasetChoice, images_of, nothing_readable, require_one_readable
from hfcap.captioning.options import decoding_options
from hfcap.captioning.output import OUTPUT_SUFFIXES, caption_table, write_captions
from hfcap.captioning.partial_output import PartialOutput, Result, Skipped, only_writer
from hfcap.data.loading import PixelInputs
from hfcap.data.pixels import identity_of
from hfcap.data.web.image_stream import ImageStream
from hfcap.decoding import DecodingJob, as_prediction, job_fingerprint
from hfcap.errors import StoppedError, UserError
from hfcap.progress import console, error_console, progress_bar
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage, Prediction


def caption_images(
    model: str,
    inputs: list[str],
    output: Path | None = None,
    *,
    overrides: dict[str, Any] | None = None,
    prompt: str | None = None,
    batch_size: int = 16,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dataset: DatasetChoice | None = None,
    again: bool = False,
) -> list[Prediction]:
    """Caption images with a run directory, a model folder or a Hub model; print a table or write `output`.

    Images that cannot be read are named on standard error and left out.

    Args:
        inputs: files, folders, patterns, web addresses; or one dataset.
        output: .jsonl (rows as in predictions/<split>.jsonl) or .csv; without it a table is printed.
        overrides: decoding options that replace the ones saved with the model.
        prompt: text every caption starts with; None = the model's own.
        dataset: which images of a dataset.
        again: forget what a stopped captioning into `output` has done.

    Raises:
        UserError: wrong inputs or options, no image can be read, or another captioning writes `output`.
        StoppedError: Ctrl-C; what is finished is kept beside `output`.
        WorkError: the Hub cannot be reached, or a dataset's stream breaks.
    """
    if output is not None and output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{output}: give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    images = images_of(inputs, dataset)
    if images.listed is not None:
        # Better known before the model is fetched.
        require_one_readable(images.listed)
    options = decoding_options({**generation_defaults(local_folder(model, revision)), **(overrides or {})})
    _require_effect(overrides or {}, options)
    captioner = ready_captioner(model, revision, trust_remote_code)
    job = DecodingJob([], PixelInputs([], captioner.image_processor), options, batch_size, 0, prompt)
    unfinished = None if output is None else PartialOutput(output, _fingerprint(captioner, job, images))
    with only_writer(output):
        predictions = _Captioning(captioner, job, images, unfinished, again).finish()
        if output is None:
            console.print(caption_table(predictions))
        else:
            write_captions(predictions, output)
        if unfinished is not None:
            unfinished.remove()
    return predictions


def _require_effect(given: dict[str, Any], options: GenerateOptions) -> None:
    """Refuse options of sampling where nothing is sampled: they would be ignored."""
    if idle := options.without_effect(given):
        raise UserError(f"--{idle[0].replace('_', '-')}: has no effect without --sample; give it, or leave this out")


def _fingerprint(captioner: Captioner, job: DecodingJob, images: ImageStream) -> str:
    # Unlike in a run directory, models with the same weights may see images in different ways.
    processor = identity_of(captioner.image_processor)
    return job_fingerprint(captioner, job, [type(captioner).__name__, processor, images.identity])


class _Captioning:
    """One captioning of a stream of images, continued from what is in `unfinished`.

    Args:
        job: options and pixels; its records are not used.
        unfinished: where finished batches are kept; None = nowhere.
    """

    def __init__(
        self, captioner: Captioner, job: DecodingJob, images: ImageStream, unfinished: PartialOutput | None, again: bool
    ) -> None:
        self.captioner, self.job, self.images, self.unfinished = captioner, job, images, unfinished
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
            error_console.print(f"Resuming after {len(done):,} images", markup=False)
        elif others:
            begun = "what was begun there had another model, other options or other images"
            error_console.print(f"{unfinished.output}: begins again, because {begun}", style="yellow", markup=False)
        self._take(done)

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
            kept = "the same command continues there" if self.unfinished else "only with -o FILE would that be kept"
            raise StoppedError(f"stopped after {self.done:,} images; {kept}") from None
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
        captioned = caption_records(self.captioner, self.job, images, place=len(self.predictions))
        with closing(captioned) as batches, progress_bar() as progress:
            task = progress.add_task("Captioning", total=self.images.total, completed=self.done)
            for batch in batches:
                results = [_result(record, found) for record, found in batch]
                if self.unfinished is not None:
                    self.unfinished.add(results)
                self._take(results)
                progress.advance(task, len(batch))


def _result(record: CaptionedImage, found: list[GeneratedCaption] | str) -> Result:
    return Skipped(record.image_id, found) if isinstance(found, str) else as_prediction(record, found)
