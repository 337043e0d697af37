"""What a stopped captioning has done so far, in one file next to its output."""

from __future__ import annotations

import functools
import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from hfcap.errors import WorkError
from hfcap.files import only_one, parse_json
from hfcap.schema import Prediction


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that could not be read, and why."""

    image_id: str
    problem: str


Result = Prediction | Skipped


@contextmanager
def only_writer(output: Path | None) -> Iterator[None]:
    """Keep other captionings away from `output` and from what is unfinished of it, for the length of the block.

    Args:
        output: None = nothing is written, and nothing is kept away.

    Raises:
        UserError: another captioning writes there.
    """
    if output is None:
        yield
        return
    busy = f"{output}: another captioning is writing there; wait until it is done, or give another name with -o"
    with only_one(output.with_name(f".{output.name}.lock"), busy):
        yield


class PartialOutput:
    """Finished batches in `<output>.part-<job>`, one line each; another job has another file, so nothing is mixed.

    Args:
        job: changes with model, options and images.
    """

    def __init__(self, output: Path, job: str) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.part-{job}")

    def others(self) -> list[Path]:
        """Files of other jobs for the same output."""
        return [path for path in _parts(self.output) if path != self.path]

    def results(self) -> list[Result]:
        """Return what is done, in order; a line that a kill cut off is removed from the file.

        Raises:
            WorkError: the file is damaged.
        """
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as handle:
                handle.truncate(end)
        try:
            lines = content[:end].decode().split("\n")[:-1]
            return [row for line in lines for row in _batch_of(parse_json(line, "a line", finite=True))]
        except ValueError as error:
            reason = " ".join(str(error).split("\n")[:2])
            raise WorkError(f"{self.path}: damaged ({reason}); delete it to begin again") from error

    def add(self, batch: Sequence[Result]) -> None:
        """Append one finished batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps([_row(result) for result in batch]) + "\n")

    def remove(self) -> None:
        """Delete the files of this job and of all others for the same output."""
        for path in _parts(self.output):
            path.unlink()


def _parts(output: Path) -> list[Path]:
    return sorted(output.parent.glob(f"{glob.escape(output.name)}.part-{'[0-9a-f]' * 16}"))


def _row(result: Result) -> dict[str, object]:
    if isinstance(result, Skipped):
        return {"image_id": result.image_id, "problem": result.problem}
    return result.as_row()


def _batch_of(rows: object) -> list[Result]:
    return _shape().validate_python(rows)


@functools.cache
def _shape() -> TypeAdapter[list[Result]]:
    return TypeAdapter(list[Prediction | Skipped])
