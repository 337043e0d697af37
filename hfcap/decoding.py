"""From a captioner and images to predictions/<split>.jsonl; a killed run continues after its last line."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hfcap.caption_batch import generate_captions
from hfcap.captioners.asking.asked import Prompts, prompts_of
from hfcap.captioners.base import Captioner, GeneratedCaption
from hfcap.data.loading import ImageInputs, image_loader, sizes_of
from hfcap.errors import UserError
from hfcap.files import parse_json, read_json_lines, write_bytes, write_json_lines
from hfcap.progress import error_console, progress_bar
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage, Images, Prediction


@dataclass(frozen=True, slots=True)
class DecodingJob:
    """What is captioned and how.

    Attributes:
        records: images, in the order of `inputs`.
        inputs: pixels or stored image states of the records.
        prompt: text every caption starts with, perhaps with fields; None = the captioner's own.
    """

    records: Sequence[CaptionedImage]
    inputs: ImageInputs
    options: GenerateOptions
    batch_size: int
    num_workers: int
    prompt: str | None = None


def caption_batches(captioner: Captioner, job: DecodingJob, numbers: Sequence[int]) -> Iterator[list[Prediction]]:
    """Caption the records with these numbers, batch by batch."""
    batches = [numbers[first : first + job.batch_size] for first in range(0, len(numbers), job.batch_size)]
    captioner.model.eval()
    loader = image_loader(job.inputs, batches, job.num_workers, captioner.device)
    for batch, images in zip(batches, loader, strict=True):
        yield caption_batch(captioner, job, [job.records[number] for number in batch], images, batch[0])


def _order(job: DecodingJob, asked: Prompts) -> list[int]:
    """Return the numbers of the images in the order of their batches: those of one shape and prompt together."""
    sizes, prompts = sizes_of(job.inputs) or [], asked if isinstance(asked, list) else []
    return sorted(
        range(len(job.records)), key=lambda number: (sizes[number : number + 1], prompts[number : number + 1])
    )


def caption_batch(
    captioner: Captioner, job: DecodingJob, records: Sequence[CaptionedImage], images: Images, place: int
) -> list[Prediction]:
    """Caption one batch.

    Args:
        images: what `job.inputs` gave for these records, put together.
        place: number of the first image in the whole job.
    """
    inputs = job.inputs
    asked = prompts_of(captioner, job.prompt, records)
    found = generate_captions(
        captioner, images, job.options, asked, plan=inputs.plan, encoded=inputs.encoded, place=place
    )
    return [as_prediction(record, captions) for record, captions in zip(records, found, strict=True)]


def as_prediction(record: CaptionedImage, captions: Sequence[GeneratedCaption]) -> Prediction:
    """Return the line of a predictions file for one image and its captions, best first."""
    return Prediction(
        image_id=record.image_id,
        file_name=record.file_name,
        caption=captions[0].text,
        score=captions[0].score,
        candidates=tuple(caption.text for caption in captions),
        cut=captions[0].cut,
        usage=captions[0].usage,
    )


def say_cut(n_cut: int, total: int, limit: int) -> None:
    """Say how many captions ended at the length limit, in the middle of a sentence perhaps."""
    if n_cut:
        said = f"{n_cut:,} of {total:,} captions were cut at {limit} tokens; raise max_new_tokens"
        error_console.print(said, style="yellow", markup=False, soft_wrap=True)


def say_usage(usages: Iterable[dict[str, int] | None]) -> None:
    """Say how many tokens a server read and wrote, where one counted."""
    known = [usage for usage in usages if usage]
    if known:
        read, written = (sum(usage[name] for usage in known) for name in ("prompt_tokens", "completion_tokens"))
        error_console.print(f"{read:,} tokens read, {written:,} written by the server", markup=False, soft_wrap=True)


def write_predictions(captioner: Captioner, job: DecodingJob, path: Path, accelerator: Any) -> None:
    """Caption all records into `path`; every process takes its share of the batches.

    Finished batches are kept in `<path>.part-<job>-<rank>` until all are there; a batch that was cut off is done again
    as a whole, so that it draws the same samples. Another job (other options, images or weights) starts again.

    Raises:
        UserError: an image has no value for a field of the prompt.
    """
    asked = prompts_of(captioner, job.prompt, job.records)
    ids = [record.image_id for record in job.records]
    job_name = job_fingerprint(captioner, job, [ids, asked] if isinstance(asked, list) else ids)
    part = path.with_name(f"{path.name}.part-{job_name}-{accelerator.process_index}")
    part.parent.mkdir(parents=True, exist_ok=True)
    done = _finished_ids(part)
    size, world, rank = job.batch_size, accelerator.num_processes, accelerator.process_index
    total = len(job.records)
    order = _order(job, asked)
    batches = [order[first : first + size] for first in range(rank * size, total, world * size)]
    todo = [
        number
        for batch in batches
        if not done.issuperset(job.records[number].image_id for number in batch)
        for number in batch
    ]
    n_mine = sum(map(len, batches))
    with progress_bar() as progress, part.open("a", encoding="utf-8") as handle:
        task = progress.add_task("Captioning", total=n_mine, completed=n_mine - len(todo), visible=rank == 0)
        for predictions in caption_batches(captioner, job, todo):
            handle.writelines(json.dumps(row.as_row(), ensure_ascii=False) + "\n" for row in predictions)
            handle.flush()
            progress.advance(task, len(predictions))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        rows = _merge_parts(path, job_name, [record.image_id for record in job.records])
        say_cut(sum(bool(row.get("cut")) for row in rows), total, job.options.max_new_tokens)
        say_usage(row.get("usage") for row in rows)
    accelerator.wait_for_everyone()


def job_fingerprint(captioner: Captioner, job: DecodingJob, images: Any) -> str:
    """Return 16 hexadecimal digits that change with anything the captions depend on.

    Args:
        images: what tells these images from others, as JSON has it.
    """
    prompt = captioner.template if job.prompt is None else job.prompt
    values = [type(job.inputs).__name__, job.options.model_dump(mode="json"), job.batch_size, prompt, images]
    values += [identity] if (identity := captioner.identity()) else []
    digest = hashlib.sha256(json.dumps(values).encode())
    for name, weight in captioner.model.state_dict().items():
        for tensor in _plain_tensors(weight):
            # A sum of whole numbers: exact on every device, and it reads the weights only once.
            digest.update(f"{name} {int(tensor.detach().contiguous().view(-1).view(torch.uint8).sum())}".encode())
    return digest.hexdigest()[:16]


def _plain_tensors(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return what a weight is made of: itself, or of a quantised one whole numbers, scales and offsets."""
    # torch's protocol for tensors that wrap others.
    flatten = getattr(weight, "__tensor_flatten__", None)
    return [weight] if flatten is None else [getattr(weight, name) for name in flatten()[0]]


def _finished_ids(part: Path) -> set[str]:
    """Ids in a part file; lines that a kill cut off or a disk damaged are removed from the file."""
    if not part.is_file():
        return set()
    lines = part.read_bytes().splitlines(keepends=True)
    rows = [_finished_row(line) for line in lines]
    if None in rows:
        write_bytes(part, b"".join(line for line, row in zip(lines, rows, strict=True) if row is not None))
    return {row["image_id"] for row in rows if row is not None}


def _finished_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line.decode(), "line", finite=True) if line.endswith(b"\n") else None
    except ValueError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("image_id"), str) and isinstance(row.get("caption"), str)
    return row if whole else None


def _merge_parts(path: Path, job_name: str, order: Sequence[str]) -> list[dict[str, Any]]:
    """Write the whole file in order; return its rows."""
    parts = sorted(path.parent.glob(f"{glob.escape(path.name)}.part-{job_name}-*"))
    rows = {row["image_id"]: row for part in parts for _, row in read_json_lines(part, "unfinished predictions")}
    missing = [image_id for image_id in order if image_id not in rows]
    assert not missing, f"{len(missing)} images were not captioned"
    write_json_lines(path, (rows[image_id] for image_id in order))
    for part in path.parent.glob(f"{glob.escape(path.name)}.part-*"):
        part.unlink()
    return list(rows.values())


def read_captions(path: Path) -> dict[str, str]:
    """Return image id -> caption of a predictions file that hfcap wrote.

    Raises:
        UserError: a line lacks image_id or caption.
    """
    captions: dict[str, str] = {}
    for number, row in read_json_lines(path, "predictions"):
        if not isinstance(row.get("image_id"), str) or not isinstance(row.get("caption"), str):
            raise UserError(f"{path}: line {number} lacks image_id or caption; caption again")
        captions[row["image_id"]] = row["caption"]
    return captions
