"""The output folder of a sharded captioning: what was begun there, what is done, and what is left when all is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap.captioning.sharded.plan import Asked, Plan, Shard, make_plan, read_plan
from hfcap.errors import UserError
from hfcap.files import only_one, read_json_lines, read_json_object, sha256_of, write_json, write_json_lines

JOB, MANIFEST = "captioning.json", "manifest.jsonl"
_UNFINISHED, _LOCK = ".unfinished", ".captioning.lock"
_NOT_COMPARED = ("hfcap", "model", "commit")
"""The weights tell models apart, wherever they lie."""


@dataclass(frozen=True)
class Tally:
    """What was captioned, in all.

    Attributes:
        shards: done. images: captioned. failures: what could not be read, each with the reason.
        cut: captions that end at the limit of their length. limit: in tokens. marked: for review.
        duplicates: images left out because others have their bytes.
    """

    shards: int
    images: int
    cut: int
    limit: int
    marked: int
    failures: tuple[str, ...]
    duplicates: int = 0


class OutputFolder:
    """Shards, `captioning.json`, `manifest.jsonl`, and until all is done a hidden folder of what is unfinished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        unfinished = path / _UNFINISHED
        self.plan_folder, self.done = unfinished / "plan", unfinished / "done"
        self.claims, self.workers, self.hashes = (unfinished / name for name in ("claims", "workers", "hashes"))

    @property
    def is_complete(self) -> bool:
        """Whether everything is done and said in the manifest."""
        return (self.path / MANIFEST).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from beginning and ending for the length of the block."""
        with only_one(self.path / _LOCK):
            yield

    def require_own(self) -> None:
        """Refuse a folder of something else.

        Raises:
            UserError: it holds files, and none that say that captions are written there.
        """
        if (self.path / JOB).is_file() or self.plan_folder.parent.is_dir() or not self.path.is_dir():
            return
        if others := [path.name for path in self.path.iterdir() if path.name != _LOCK]:
            raise UserError(f"{self.path}: holds other files ({min(others)}); give a new folder with -o")

    def forget(self) -> None:
        """Delete what a captioning wrote there."""
        for pattern in ("shard-*.parquet", "shard-*.tar", ".shard-*.unfinished-*", MANIFEST, JOB):
            for path in self.path.glob(pattern):
                path.unlink()
        shutil.rmtree(self.plan_folder.parent, ignore_errors=True)

    def plan(self, asked: Asked, launched: bool) -> Plan | None:
        """Return the plan that is kept here, or make it; None where all is done and nobody looks at the inputs again.

        Args:
            launched: other processes do the same; only who is alone looks whether the inputs are still what they were.

        Raises:
            UserError: there was begun with other images or inputs; or see `make_plan`.
        """
        kept = read_plan(self.plan_folder)
        begun = self._begun()
        if launched and begun is not None:
            if kept is not None and kept.asked != asked.digest():
                raise self._other(["inputs, or how they are divided"])
            return kept
        if launched and kept is not None and kept.asked == asked.digest():
            return kept
        plan = make_plan(asked, self.plan_folder)
        if begun is not None and begun.get("images") != plan.identity:
            raise self._other(["images, or how they are divided"])
        if self.is_complete:
            return plan
        return kept if kept is not None and kept.identity == plan.identity else plan.write()

    def _begun(self) -> dict[str, Any] | None:
        path = self.path / JOB
        return read_json_object(path, "captioning") if path.is_file() else None

    def join(self, job: Mapping[str, Any]) -> None:
        """Note what captions are written here and how; or compare with what was begun.

        Raises:
            UserError: names what differs.
        """
        begun = self._begun()
        if begun is None:
            write_json(self.path / JOB, job)
            return
        names = [name for name in job if name not in _NOT_COMPARED and begun.get(name) != job[name]]
        if names:
            words = ["model" if name == "weights" else name for name in names]
            raise self._other([f"{word} ({_short(begun.get(word))}, now {_short(job[word])})" for word in words])

    def _other(self, names: list[str]) -> UserError:
        return UserError(
            f"{self.path}: was begun with other {'; '.join(names)}; give another folder with -o, or start again with "
            "--force"
        )

    def output_of(self, shard: Shard, ending: str) -> Path:
        """Return where the captions of a shard go."""
        return self.path / f"{shard.name}{ending}"

    def is_done(self, shard: Shard) -> bool:
        """Whether a shard is."""
        return self._record(shard).is_file()

    def note(self, shard: Shard, output: Path, row: Mapping[str, Any]) -> None:
        """Note that a shard is done."""
        row = {"shard": output.name, "bytes": output.stat().st_size, "sha256": sha256_of(output), **row}
        write_json(self._record(shard), row)

    def records(self, known: set[str]) -> list[dict[str, Any]]:
        """Return what was noted of shards that are not in `known`, and add them to it."""
        names = sorted({path.name for path in self.done.glob("*.json")} - known)
        known |= set(names)
        return [json.loads((self.done / name).read_text(encoding="utf-8")) for name in names]

    def _record(self, shard: Shard) -> Path:
        return self.done / f"{shard.name}.json"

    def complete(self, plan: Plan) -> bool:
        """Write the manifest and delete what was needed until now; returns False where an output is gone again.

        Only inside of `locked`.
        """
        if self.is_complete:
            return True
        rows = self.records(set())
        gone = [row for row in rows if not self._is_whole(row)]
        for row in gone:
            (self.done / f"{row['shard'].partition('.')[0]}.json").unlink()
        if gone or len(rows) < len(plan.shards):
            return False
        write_json_lines(self.path / MANIFEST, rows)
        self.clean()
        return True

    def clean(self) -> None:
        """Delete what was needed until everything was done, and what workers that were killed left."""
        shutil.rmtree(self.plan_folder.parent, ignore_errors=True)
        for path in self.path.glob(".shard-*.unfinished-*"):  # of workers that were killed
            path.unlink(missing_ok=True)

    def _is_whole(self, row: Mapping[str, Any]) -> bool:
        path = self.path / row["shard"]
        return path.is_file() and path.stat().st_size == row["bytes"]

    def tally(self) -> Tally:
        """Sum up the manifest.

        Raises:
            UserError: a shard that it names is no longer there, or was changed.
        """
        rows = [row for _, row in read_json_lines(self.path / MANIFEST, "manifest")]
        for row in rows:
            if not self._is_whole(row):
                raise UserError(f"{self.path / row['shard']}: missing or changed; start again with --force")
        failures = tuple(failure["problem"] for row in rows for failure in row["failures"])
        images, cut, marked = (sum(row[name] for row in rows) for name in ("images", "cut", "marked"))
        limit = read_json_object(self.path / JOB, "captioning")["decoding"]["max_new_tokens"]
        duplicates = sum(len(row.get("duplicates", ())) for row in rows)
        return Tally(len(rows), images, cut, limit, marked, failures, duplicates)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
