"""Caption a person's own pictures: files, folders and patterns -> a table on screen, JSON lines or CSV."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from hfcap.captioners.base import Captioner
from hfcap.captioners.loading import generation_defaults, load_captioner, local_folder
from hfcap.data.images import IMAGE_SUFFIXES, FileImage, UnreadableImageError, decode_image
from hfcap.data.loading import PixelInputs
from hfcap.decoding import DecodingJob, caption_batches
from hfcap.errors import UserError
from hfcap.files import write_json_lines, write_text
from hfcap.progress import console, error_console, progress_bar
from hfcap.recipe import GenerateOptions
from hfcap.schema import CaptionedImage, Prediction
from hfcap.text import inert, printable

OUTPUT_SUFFIXES = (".jsonl", ".csv")


def find_pictures(inputs: Sequence[str]) -> list[CaptionedImage]:
    """Collect the pictures of files, folders (with their subfolders) and glob patterns, without repetition.

    Raises:
        UserError: an input matches nothing.
    """
    paths: dict[Path, str] = {}
    for text in inputs:
        if "://" in text:
            raise UserError(f"{text}: pictures are not fetched from the web; save it and give the file")
        found = list(_expand(text))
        if not found:
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{text}: no picture there; give image files, folders with {endings} files, or a pattern")
        # Names that are not UTF-8 could be neither printed nor written.
        paths |= {path: os.fsencode(path).decode("utf-8", "replace") for path in found}
    return [CaptionedImage(name, name, (), FileImage(path)) for path, name in paths.items()]


def _expand(text: str) -> Iterable[Path]:
    path = Path(text)
    if path.is_dir():
        return sorted(item for item in path.rglob("*") if item.is_file() and item.suffix.lower() in IMAGE_SUFFIXES)
    if path.exists() or not glob.has_magic(text):
        return [path]
    # pathlib's own patterns cannot start at an absolute path or '..'.
    matches = glob.glob(text, recursive=True)  # noqa: PTH207
    return sorted(Path(match) for match in matches if Path(match).is_file())


def readable(records: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    """Drop pictures that cannot be decoded, each named on standard error; a single unreadable one is an error.

    Raises:
        UserError: none can be read.
    """
    kept, problems = [], []
    for record in records:
        try:
            decode_image(record.image, draft_size=1)
        except UnreadableImageError as error:
            problems.append(printable(str(error)))
        else:
            kept.append(record)
    if not kept:
        raise UserError(problems[0] if len(problems) == 1 else "no picture can be read:\n" + "\n".join(problems[:10]))
    for problem in problems:
        error_console.print(f"skipped: {problem}", style="yellow", markup=False)
    return kept


def caption_pictures(
    model: str,
    inputs: Sequence[str],
    output: Path | None = None,
    *,
    overrides: dict[str, Any] | None = None,
    prompt: str | None = None,
    batch_size: int = 16,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> list[Prediction]:
    """Caption pictures with a run directory, a model folder or a Hub model; print a table or write `output`.

    Args:
        output: .jsonl (rows as in predictions/<split>.jsonl) or .csv; without it a table is printed.
        overrides: decoding options that replace the ones saved with the model.
        prompt: text every caption starts with; None = the model's own.
    """
    if output is not None and output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{output}: give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    records = readable(find_pictures(inputs))
    torch.set_flush_denormal(True)
    folder = local_folder(model, revision)
    options = decoding_options({**generation_defaults(folder), **(overrides or {})})
    captioner = load_captioner(model, revision, trust_remote_code)
    if torch.cuda.is_available():
        captioner.model.to("cuda")
    predictions = _caption(captioner, records, options, prompt, batch_size)
    if output is None:
        console.print(_table(predictions))
    elif output.suffix.lower() == ".csv":
        write_text(output, _csv(predictions))
    else:
        write_json_lines(output, (prediction.as_row() for prediction in predictions))
    return predictions


def decoding_options(values: dict[str, Any]) -> GenerateOptions:
    """Check decoding options that a person gave.

    Raises:
        UserError: one is unknown or out of its range.
    """
    try:
        return GenerateOptions(**values)
    except ValidationError as error:
        problems = [
            ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
            for problem in error.errors()
        ]
        raise UserError(f"decoding options: {'; '.join(problems)}") from None


def _caption(
    captioner: Captioner,
    records: Sequence[CaptionedImage],
    options: GenerateOptions,
    prompt: str | None,
    batch_size: int,
) -> list[Prediction]:
    # Worker processes cost a second to start: not worth it for a handful of pictures.
    workers = 2 if len(records) > 4 * batch_size else 0
    inputs = PixelInputs(records, captioner.image_processor)
    job = DecodingJob(records, inputs, options, batch_size, workers, prompt)
    predictions: list[Prediction] = []
    with progress_bar() as progress:
        task = progress.add_task("Captioning", total=len(records))
        for batch in caption_batches(captioner, job, range(len(records))):
            predictions += batch
            progress.advance(task, len(batch))
    return predictions


def _table(predictions: Sequence[Prediction]) -> Table:
    table = Table("picture", "caption")
    for prediction in predictions:
        # Text, not str: file names and captions may contain rich's markup.
        table.add_row(Text(printable(prediction.file_name)), Text("\n".join(map(printable, prediction.candidates))))
    return table


def _csv(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file_name", "caption", "score"])
    for prediction in predictions:
        writer.writerow([inert(prediction.file_name), inert(prediction.caption), prediction.score])
    return text.getvalue()
