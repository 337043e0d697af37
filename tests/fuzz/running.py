"""Run a target on damaged inputs, and keep what was neither read nor refused."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from hfcap.errors import StoppedError, UserError, WorkError
from tests.fuzz.target import Example, Target

SECONDS = 10
"""Processor time that one input may take."""
MEMORY = 2**30
"""How many bytes the peak of the process may grow by with one input."""


class TookTooLongError(BaseException):
    """An input has used up its time; no `except Exception` may catch it."""


@dataclass
class Failure:
    """Inputs that end in the same place.

    Attributes:
        number: of the smallest one: the seed of `draw` is "<seed> <target> <number>".
        n_bytes: size of its damaged files.
    """

    target: str
    kind: str
    number: int
    n_bytes: int
    text: str
    count: int = 1


@dataclass
class Outcome:
    """What became of a target's inputs; `failures` by kind."""

    target: str
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def tracebacks(self) -> int:
        """Inputs that failed."""
        return sum(failure.count for failure in self.failures.values())


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise TookTooLongError(f"more than {SECONDS} s of processor time")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    before = signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _kind(error: BaseException) -> str:
    """Name a failure by its exception, the last line of hfcap on the way, and the last line at all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/hfcap/" in frame.filename] or frames
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1])]
    return f"{type(error).__name__} at {' > '.join(dict.fromkeys(places))}"


def verdict(use: Callable[[], object]) -> tuple[str, str] | None:
    """Call a reader: None where it returns, ("refused", message) or (a kind of failure, its traceback) else."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _limited(), warnings.catch_warnings(action="ignore"):
            use()
        found = None
    except (UserError, WorkError, StoppedError) as error:
        found = "refused", str(error)
        if not str(error).strip():
            found = f"no message: {_kind(error)}", traceback.format_exc(limit=-20)
    except (Exception, TookTooLongError) as error:  # every kind of failure is looked for
        found = _kind(error), traceback.format_exc(limit=-20)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    if grown > MEMORY:
        return f"memory grew by more than {MEMORY >> 20} MiB", str(found)
    return found


def run_target(
    target: Target,
    folder: Path,
    seed: int,
    first: int,
    last: Callable[[Outcome], bool],
    begin: Callable[[str, int], None],
    failed: Path,
) -> Outcome:
    """Run a target on inputs until `last` says so.

    Args:
        folder: where its example is.
        first: number of the first input.
        begin: told of each input before it is used.
        failed: folder for the smallest input of each kind of failure.
    """
    outcome, began = Outcome(target.name), time.monotonic()
    begin(target.name, first)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        example = Example(target, folder / target.name)
        problem = verdict(functools.partial(target.use, example.folder, example.names))
    assert problem is None, f"{target.name}: the example itself is not read: {problem}"
    example.repair({})
    number = first
    while not last(outcome):
        begin(target.name, number)
        draw = Random(f"{seed} {target.name} {number}")
        changed = example.damage(draw)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = verdict(functools.partial(target.use, example.folder, tuple(changed)))
        outcome.inputs += 1
        if (
            found is not None
            and found[0] == "refused"
            and target.names_file
            and not _is_named(found[1], example, changed)
        ):
            found = "a message that names no file", found[1]
        if found is not None and found[0] == "refused":
            outcome.refused += 1
        elif found is not None:
            _note(outcome, found, number, changed, failed)
        example.repair(changed)
        outcome.seconds = time.monotonic() - began
        number += 1
    return outcome


def _is_named(message: str, example: Example, changed: dict[str, bytes | None]) -> bool:
    return str(example.folder) in message or any(Path(name).name in message for name in changed)


def _note(
    outcome: Outcome, found: tuple[str, str], number: int, changed: dict[str, bytes | None], failed: Path
) -> None:
    kind, text = found
    n_bytes = sum(len(content or b"") for content in changed.values())
    known = outcome.failures.get(kind)
    if known is not None:
        known.count += 1
        if n_bytes >= known.n_bytes:
            return
        known.number, known.n_bytes, known.text = number, n_bytes, text
    else:
        outcome.failures[kind] = Failure(outcome.target, kind, number, n_bytes, text)
    place = failed / outcome.target / "".join(letter if letter.isalnum() else "-" for letter in kind)[:80]
    shutil.rmtree(place, ignore_errors=True)
    for name, content in changed.items():
        if content is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    place.mkdir(parents=True, exist_ok=True)
    (place / "traceback.txt").write_text(text, errors="backslashreplace")
    (place / "input.json").write_text(json.dumps({"target": outcome.target, "input": number, "kind": kind}))
