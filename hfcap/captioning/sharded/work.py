"""Captioning over shards, as one of any number of workers: take a shard, caption, write and note it, take the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from hfcap import __version__
from hfcap.captioners.adaptation.quantization import Weights
from hfcap.captioners.asking.asked import has_fields
from hfcap.captioners.base import Captioner
from hfcap.captioners.facts import shown_model
from hfcap.captioners.loading import local_folder
from hfcap.captioners.shared.room import require_room
from hfcap.captioning.batches import caption_records
from hfcap.captioning.images import Finishing, captioner_and_job
from hfcap.captioning.inputs import DatasetChoice, nothing_readable
from hfcap.captioning.partial_output import Result
from hfcap.captioning.sharded.claims import Claims, Worker
from hfcap.captioning.sharded.folder import OutputFolder, Tally
from hfcap.captioning.sharded.place import Place
from hfcap.captioning.sharded.plan import Asked, Plan, Shard, stamp_of
from hfcap.captioning.sharded.reading import ReadOnce, images_in
from hfcap.captioning.sharded.speed import Speed
from hfcap.captioning.sharded.writing import WRITERS
from hfcap.data.pixels import identity_of
from hfcap.decoding import DecodingJob, job_fingerprint
from hfcap.errors import StoppedError, UserError
from hfcap.files import file_being_written
from hfcap.recipe.blocks import GenerateOptions
from hfcap.schema import CaptionedImage, Prediction

ShardForm = Literal["parquet", "webdataset"]
_SHORTEST_WAIT, _LONGEST_WAIT = 0.25, 8.0
"""Seconds until claims are looked at again where others work on all that is left."""
_PLACES_PER_SHARD = 2**20
"""Samples are seeded by the place of an image; so many places are kept for a shard, however many images it has."""


@dataclass(frozen=True)
class ShardedJob:
    """What is captioned, with what, and where it is written.

    Attributes:
        model: see `caption_images`; so are overrides, prompt, batch_size, revision, weights and
            trust_remote_code.
        output: folder. form: of its files. finishing: words around captions and marks for review, nothing else.
    """

    model: str
    inputs: tuple[str, ...]
    output: Path
    form: ShardForm = "parquet"
    images_per_shard: int = 1000
    choice: DatasetChoice = field(default_factory=DatasetChoice)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    batch_size: int = 16
    revision: str | None = None
    weights: Weights = field(default_factory=Weights)
    trust_remote_code: bool = False
    finishing: Finishing = field(default_factory=Finishing)

    def asked(self) -> Asked:
        """Return what is to be captioned."""
        return Asked(self.inputs, self.choice, self.images_per_shard)


class _LostClaimError(Exception):
    """Another worker has taken a shard over."""


def begin(job: ShardedJob, launched: bool, again: bool) -> Plan | None:
    """Look at the inputs and at the output folder, before any model is loaded; see `OutputFolder.plan`.

    Args:
        launched: see `OutputFolder.plan`. again: delete what was begun before.

    Raises:
        UserError: wrong inputs, or a folder of something else.
    """
    folder = OutputFolder(job.output)
    folder.require_own()
    if launched and again:
        raise UserError(f"--force: would delete what the other processes write; delete {job.output} instead")
    with folder.locked():
        if again:
            folder.forget()
        if folder.is_complete:
            folder.clean()  # whoever completed it may have been killed then
        return folder.plan(job.asked(), launched)


def caption_shards(job: ShardedJob, place: Place | None = None, again: bool = False) -> Tally:
    """Caption what no other worker does, until everything is done; returns what the manifest says in the end.

    Args:
        place: among other processes, which do the same.

    Raises:
        UserError: wrong inputs or options, a folder that was begun with others, or no image can be read.
        StoppedError: Ctrl-C; finished shards are kept.
        WorkError: the Hub cannot be reached.
    """
    place = place or Place()
    plan = begin(job, place.launched, again)
    folder = OutputFolder(job.output)
    if plan is not None:
        captioner, decoding = _loaded(job, place)
        description = _description(job, plan, captioner, decoding)
        with folder.locked():
            folder.join(description)
        if not folder.is_complete:
            _Work(job, folder, plan, captioner, decoding, place).finish()
    tally = folder.tally()
    if not tally.images and not place.quiet:
        raise UserError(nothing_readable(tally.failures))
    return tally


def _loaded(job: ShardedJob, place: Place) -> tuple[Captioner, DecodingJob]:
    """Load the captioner and say how it captions.

    Raises:
        UserError: as `captioner_and_job`; or the prompt has fields.
    """
    captioner, decoding = captioner_and_job(
        job.model,
        job.revision,
        job.trust_remote_code,
        job.weights,
        job.prompt,
        job.batch_size,
        dict(job.overrides),
        job.finishing.gate.forbidden,
        _device(place),
    )
    job.finishing.gate.require_scores(decoding.options)
    if has_fields(captioner, decoding.prompt):
        template = captioner.template if decoding.prompt is None else decoding.prompt
        raise UserError(f"prompt {template!r}: fields are not filled with --to-shards; give a prompt without any")
    require_room(captioner, decoding.options, decoding.prompt)
    return captioner, decoding


def _device(place: Place) -> torch.device | None:
    """Return a GPU of its own where a machine has several."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", place.local_rank % n_gpus) if place.launched and n_gpus > 1 else None


def _description(job: ShardedJob, plan: Plan, captioner: Captioner, decoding: DecodingJob) -> dict[str, Any]:
    """Return what the output depends on, as `captioning.json` says it."""
    folder = local_folder(job.model, job.revision)
    plain = DecodingJob([], decoding.inputs, GenerateOptions(), 1, 0)
    seen = [type(captioner).__name__, identity_of(captioner.image_processor)]
    wording, gate = job.finishing.wording, job.finishing.gate
    return {
        "hfcap": __version__,
        "model": shown_model(job.model),
        "commit": folder.name if folder.parent.name == "snapshots" else None,
        "weights": job_fingerprint(captioner, plain, seen),
        "decoding": decoding.options.model_dump(mode="json"),
        "prompt": decoding.prompt,
        "batch_size": decoding.batch_size,
        **asdict(job.weights),
        **asdict(wording),
        "review": asdict(gate) | {"forbidden": list(gate.forbidden)},
        "form": job.form,
        "images": plan.identity,
        "shards": len(plan.shards),
    }


class _Work:
    """The work of one process on the shards of a folder."""

    def __init__(
        self,
        job: ShardedJob,
        folder: OutputFolder,
        plan: Plan,
        captioner: Captioner,
        decoding: DecodingJob,
        place: Place,
    ) -> None:
        self.job, self.folder, self.plan = job, folder, plan
        self.captioner, self.decoding, self.place = captioner, decoding, place
        self.writer = WRITERS[job.form]
        first = place.rank % place.count * len(plan.shards) // place.count
        # Each begins elsewhere, so that they do not look at the same claims.
        self.left = [*plan.shards[first:], *plan.shards[:first]]

    def finish(self) -> None:
        """Work until everything is done, by this worker or by others; what dead ones have begun is done again."""
        worker = Worker(self.folder.workers)
        with Speed(self.folder, len(self.plan.shards), self.place.quiet) as speed, worker.at_work():
            claims, wait = Claims(self.folder.claims, worker), _SHORTEST_WAIT
            while not self._is_complete():
                if (shard := self._next(claims)) is None:
                    time.sleep(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                else:
                    self._caption(shard, claims)
                    wait = _SHORTEST_WAIT
                speed.show()
        self.folder.clean()

    def _is_complete(self) -> bool:
        if self.left:
            return self.folder.is_complete
        with self.folder.locked():
            complete = self.folder.complete(self.plan)
        if not complete:  # an output is gone again
            self.left = list(self.plan.shards)
        return complete

    def _next(self, claims: Claims) -> Shard | None:
        for shard in list(self.left):
            try:
                if not self.folder.is_done(shard) and not claims.take(shard.name):
                    continue
            except FileNotFoundError:
                if self.folder.is_complete:  # since a moment ago
                    return None
                raise
            if not self.folder.is_done(shard):
                return shard
            self.left.remove(shard)
        return None

    def _caption(self, shard: Shard, claims: Claims) -> None:
        try:
            self._write(shard, claims)
        except _LostClaimError:
            return
        except KeyboardInterrupt:
            said = "the same command goes on there, and begins unfinished shards again"
            raise StoppedError(f"stopped in the midst of {shard.name}; {said}") from None
        finally:
            claims.release(shard.name)

    def _write(self, shard: Shard, claims: Claims) -> None:
        examined = bool(self.job.finishing.gate)
        counts = dict.fromkeys(("images", "cut", "marked"), 0)
        failures: list[dict[str, str]] = []
        output = self.folder.output_of(shard, self.writer.ending)
        with file_being_written(output) as handle:
            writer = self.writer(handle, shard.number, examined)
            for record, result in self._results(shard):
                writer.add(record, result)
                if isinstance(result, Prediction):
                    counts["images"] += 1
                    counts["cut"] += result.cut
                    counts["marked"] += bool(result.review)
                else:
                    failures.append({"image_id": result.image_id, "problem": result.problem})
            writer.end()
            if not claims.holds(shard.name):
                raise _LostClaimError
        self.folder.note(shard, output, {"source": shard.label, **counts, "failures": failures})

    def _results(self, shard: Shard) -> Iterator[tuple[CaptionedImage, Result]]:
        if shard.stamp is not None and stamp_of(Path(shard.source)) not in (shard.stamp, None):
            raise UserError(f"{shard.source}: was changed since the captioning began; start again with --force")
        records = images_in(self.plan, shard)
        if self.writer.with_images:
            records = (_read_once(record) for record in records)
        first = shard.number * _PLACES_PER_SHARD
        with closing(caption_records(self.captioner, self.decoding, records, place=first)) as batches:
            for batch in batches:
                yield from zip((record for record, _ in batch), self.job.finishing.finished(batch), strict=True)


def _read_once(record: CaptionedImage) -> CaptionedImage:
    return CaptionedImage(record.image_id, record.file_name, record.captions, ReadOnce(record.image))
