"""Captioning over shards, as one of any number of workers: take a shard, caption, write and note it, take the next."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hfcap import __version__
from hfcap.captioners.adaptation.quantization import Weights
from hfcap.captioners.asking.asked import prompt_of
from hfcap.captioners.base import Captioner
from hfcap.captioners.facts import shown_model
from hfcap.captioners.loading import local_folder
from hfcap.captioners.shared.room import require_room
from hfcap.captioning.batches import caption_records
from hfcap.captioning.columns import Tables
from hfcap.captioning.images import Finishing, captioner_and_job
from hfcap.captioning.inputs import DatasetChoice, nothing_readable
from hfcap.captioning.partial_output import Result
from hfcap.captioning.sharded.claims import Claims, Worker
from hfcap.captioning.sharded.duplicates import Duplicate, Duplicates, LeftOut
from hfcap.captioning.sharded.folder import OutputFolder, Tally
from hfcap.captioning.sharded.place import Place
from hfcap.captioning.sharded.plan import Asked, Plan, Shard
from hfcap.captioning.sharded.reading import ReadOnce, images_in, require_columns
from hfcap.captioning.sharded.speed import Speed
from hfcap.captioning.sharded.tables import stamp_of
from hfcap.captioning.sharded.writing import WRITERS
from hfcap.data.pixels import identity_of
from hfcap.decoding import DecodingJob, job_fingerprint
from hfcap.errors import StoppedError, UserError
from hfcap.files import file_being_written
from hfcap.progress import error_console
from hfcap.recipe.blocks import GenerateOptions
from hfcap.recipe.prompt_fields import fields_of
from hfcap.schema import CaptionedImage, Prediction

ShardForm = Literal["parquet", "webdataset"]
_SHORTEST_WAIT, _LONGEST_WAIT = 0.25, 8.0
"""Seconds until claims are looked at again where others work on all that is left."""
_HASHING = "hashing-"
"""In front of the name of a shard that is claimed to hash its images."""
_GOES_ON = "the same command goes on there, and begins unfinished shards again"
_PLACES_PER_SHARD = 2**20
"""Samples are seeded by the place of an image; so many places are kept for a shard, however many images it has."""


@dataclass(frozen=True)
class ShardedJob:
    """What is captioned, with what, and where it is written.

    Attributes:
        model: see `caption_images`; so are overrides, prompt, batch_size, revision, weights and
            trust_remote_code.
        output: folder. form: of its files. finishing: words around captions and marks for review, nothing else.
        dedup: of images with the same bytes, asked the same, only the first is captioned.
        price_per_hour: of a process; shown with the time that is left. None = nothing is said of costs.
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
    dedup: bool = False
    price_per_hour: float | None = None

    def asked(self) -> Asked:
        """Return what is to be captioned."""
        return Asked(self.inputs, self.choice, self.images_per_shard)

    def columns(self) -> list[str]:
        """Return the columns of parquet files besides those that every caption has."""
        gate = self.finishing.gate
        chosen = {
            "review": bool(gate),
            "cut": True,
            "clip_score": gate.min_clip_score is not None,
            "problem": True,
            "duplicate_of": self.dedup,
        }
        return [name for name, wanted in chosen.items() if wanted]


class _Pause:
    """Waits longer each time, where others work on all that is left."""

    def __init__(self) -> None:
        self._seconds = _SHORTEST_WAIT

    def wait(self) -> None:
        """Wait."""
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, _LONGEST_WAIT)


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
        captioner, decoding = _loaded(job, plan, place)
        description = _description(job, plan, captioner, decoding)
        with folder.locked():
            folder.join(description)
        if not folder.is_complete:
            _Work(job, folder, plan, captioner, decoding, place).finish()
    tally = folder.tally()
    if not tally.images and not place.quiet:
        raise UserError(nothing_readable(tally.failures))
    return tally


def _loaded(job: ShardedJob, plan: Plan, place: Place) -> tuple[Captioner, DecodingJob]:
    """Load the captioner and say how it captions.

    Raises:
        UserError: as `captioner_and_job`; or the images have nothing for a field of the prompt.
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
    template, fields = _asked(captioner, decoding)
    if fields:
        require_columns(plan, template, fields)
    require_room(captioner, decoding.options, captioner.prompt if fields else decoding.prompt)
    return captioner, decoding


def _asked(captioner: Captioner, decoding: DecodingJob) -> tuple[str, tuple[str, ...]]:
    """Return the prompt, perhaps with fields, and its fields."""
    template = captioner.template if decoding.prompt is None else decoding.prompt
    return template, fields_of(template)


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
        "dedup": job.dedup,
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
        self.all_shards = (*plan.shards[first:], *plan.shards[:first])
        self.left = list(self.all_shards)
        self.tables: Tables = {}
        self.template, self.fields = _asked(captioner, decoding)
        self.duplicates = Duplicates(folder.hashes) if job.dedup else None

    def finish(self) -> None:
        """Work until everything is done, by this worker or by others; what dead ones have begun is done again."""
        worker = Worker(self.folder.workers)
        shown = Speed(self.folder, len(self.plan.shards), self.place.quiet, self.job.price_per_hour)
        with shown as speed, worker.at_work():
            claims, pause = Claims(self.folder.claims, worker), _Pause()
            if self.duplicates is not None:
                self._find(self.duplicates, claims)
            while not self._is_complete():
                if (shard := self._next(claims)) is None:
                    pause.wait()
                else:
                    self._caption(shard, claims)
                    pause = _Pause()
                speed.show()
        self.folder.clean()

    def _find(self, duplicates: Duplicates, claims: Claims) -> None:
        """Hash what no other worker does, until all is hashed, and compare; other workers may be done with all."""
        pause, names = _Pause(), [shard.name for shard in self.plan.shards]
        left = list(self.all_shards)
        if not self.place.quiet and not duplicates.are_known:
            error_console.print("Hashing all images first, to find those with the same bytes", markup=False)
        while not duplicates.are_known and not self.folder.is_complete:
            left = [shard for shard in left if not duplicates.has_hashes(shard.name)]
            if not left:
                with self.folder.locked():
                    if not duplicates.are_known and not self.folder.is_complete:
                        duplicates.compare(names)
                continue
            try:
                shard = next((one for one in left if claims.take(_HASHING + one.name)), None)
            except FileNotFoundError:
                if self.folder.is_complete:  # since a moment ago
                    return
                raise
            if shard is None:
                pause.wait()
            else:
                self._hash(shard, duplicates, claims)
                pause = _Pause()

    def _hash(self, shard: Shard, duplicates: Duplicates, claims: Claims) -> None:
        try:
            if not duplicates.has_hashes(shard.name):
                duplicates.add(shard.name, ((record, self._asked_of(record)) for record in self._images(shard)))
        except KeyboardInterrupt:
            raise StoppedError(f"stopped while {shard.name} was hashed; {_GOES_ON}") from None
        finally:
            claims.release(_HASHING + shard.name)

    def _asked_of(self, record: CaptionedImage) -> str:
        """Return what tells images with the same bytes apart: where prompts have fields, the prompt."""
        if not self.fields:
            return ""
        try:
            return prompt_of(self.captioner, self.template, record)
        except UserError:  # it will be said of this image, which has no value for a field
            return record.image_id

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
            raise StoppedError(f"stopped in the midst of {shard.name}; {_GOES_ON}") from None
        finally:
            claims.release(shard.name)

    def _write(self, shard: Shard, claims: Claims) -> None:
        counts = dict.fromkeys(("images", "cut", "marked"), 0)
        failures: list[dict[str, str]] = []
        copies: list[dict[str, str]] = []
        output = self.folder.output_of(shard, self.writer.ending)
        with file_being_written(output) as handle:
            writer = self.writer(handle, shard.number, self.job.columns())
            for record, result in self._results(shard):
                writer.add(record, result)
                if isinstance(result, Prediction):
                    counts["images"] += 1
                    counts["cut"] += result.cut
                    counts["marked"] += bool(result.review)
                elif isinstance(result, Duplicate):
                    copies.append(asdict(result))
                else:
                    failures.append({"image_id": result.image_id, "problem": result.problem})
            writer.end()
            if not claims.holds(shard.name):
                raise _LostClaimError
        row: dict[str, Any] = {"source": shard.label, **counts, "failures": failures}
        self.folder.note(shard, output, row if self.duplicates is None else row | {"duplicates": copies})

    def _images(self, shard: Shard) -> Iterator[CaptionedImage]:
        if shard.stamp is not None and stamp_of(Path(shard.source)) not in (shard.stamp, None):
            raise UserError(f"{shard.source}: was changed since the captioning began; start again with --force")
        return images_in(self.plan, shard, self.fields, self.tables)

    def _results(self, shard: Shard) -> Iterator[tuple[CaptionedImage, Result | Duplicate]]:
        found = {} if self.duplicates is None else self.duplicates.of(shard.name)
        left_out = LeftOut(self._images(shard), found)
        records, number = left_out.kept(), 0
        if self.writer.with_images:
            records = (_read_once(record) for record in records)
        first = shard.number * _PLACES_PER_SHARD
        with closing(caption_records(self.captioner, self.decoding, records, place=first)) as batches:
            for batch in batches:
                for (record, _), result in zip(batch, self.job.finishing.finished(batch), strict=True):
                    yield from left_out.before(number)
                    yield record, result
                    number += 1
        yield from left_out.before(None)


def _read_once(record: CaptionedImage) -> CaptionedImage:
    return replace(record, image=ReadOnce(record.image))
