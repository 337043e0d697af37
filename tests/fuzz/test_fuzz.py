"""A bounded number of damaged inputs for every reader of files, and what the fuzzer itself sees."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from hfcap.errors import UserError
from tests.fuzz import running
from tests.fuzz.mutations import mutated
from tests.fuzz.running import Outcome, run_target
from tests.fuzz.target import Target

pytestmark = pytest.mark.usefixtures("forks")
ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str, failed: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", "--failed", str(failed), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("group", ["files", "runs"])
def test_everything_is_read_or_refused(group: str, tmp_path: Path) -> None:
    """The same inputs in each run; continuous integration draws others (`.ci/run`)."""
    result = fuzz("--group", group, "--inputs", "60", "--seed", "3", failed=tmp_path)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert result.stdout.splitlines()[-1].startswith("all "), result.stdout


# ---- the fuzzer ----------------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"a": [1, "x", {"b": None}], "c": 2.5}))


def outcome_of(use: Callable[[Path], object], tmp_path: Path, inputs: int = 30, seed: int = 0) -> Outcome:
    calls = [0]

    def after_the_example(folder: Path, _names: object) -> None:
        calls[0] += 1
        if calls[0] > 1:
            use(folder)

    target = Target("toy", make, after_the_example)
    return run_target(
        target, tmp_path, seed, 0, lambda so_far: so_far.inputs >= inputs, lambda *_: None, tmp_path / "failed"
    )


def refuse(_folder: Path) -> None:
    raise UserError("a.json: is damaged; write it again")


def test_what_is_refused_with_a_message_is_no_failure(tmp_path: Path) -> None:
    outcome = outcome_of(refuse, tmp_path)
    assert (outcome.inputs, outcome.refused, outcome.tracebacks) == (30, 30, 0)


def test_a_message_must_say_something(tmp_path: Path) -> None:
    def say_nothing(_folder: Path) -> None:
        raise UserError(" ")

    assert outcome_of(say_nothing, tmp_path).tracebacks == 30


def test_a_message_must_name_a_file(tmp_path: Path) -> None:
    def refuse_something(_folder: Path) -> None:
        raise UserError("something is damaged; write it again")

    (failure,) = outcome_of(refuse_something, tmp_path).failures.values()
    assert failure.kind == "a message that names no file" and failure.count == 30


def test_a_traceback_keeps_its_smallest_input(tmp_path: Path) -> None:
    sizes: list[int] = []

    def fail(folder: Path) -> None:
        sizes.append((folder / "a.json").stat().st_size)
        raise KeyError("a")

    outcome = outcome_of(fail, tmp_path)
    (failure,) = outcome.failures.values()
    assert failure.count == 30 and failure.kind.startswith("KeyError at test_fuzz.py:")
    (kept,) = (tmp_path / "failed").rglob("a.json")
    assert kept.stat().st_size == failure.n_bytes == min(sizes)
    assert json.loads((kept.parent / "input.json").read_text())["input"] == sizes.index(min(sizes))


def test_a_hang_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS", 0.1)

    def compute(_folder: Path) -> None:
        while time.thread_time() < 1e9:
            pass

    outcome = outcome_of(compute, tmp_path, inputs=1)
    (failure,) = outcome.failures.values()
    assert "TookTooLongError" in failure.kind


def test_an_example_that_is_not_read_is_no_target(tmp_path: Path) -> None:
    target = Target("toy", make, lambda folder, _names: refuse(folder))
    with pytest.raises(AssertionError, match="the example itself is not read"):
        run_target(target, tmp_path, 0, 0, lambda _: True, lambda *_: None, tmp_path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.yaml", "a.csv", "a.png", "out.jsonl.part-0123"])
def test_equal_seeds_damage_alike_and_most_inputs_are_damaged(name: str) -> None:
    whole = b'{"a": [1, "x", {"b": null}], "c": 2.5}\n'
    inputs = [mutated(name, whole, Random(f"{seed}")) for seed in range(200)]
    assert inputs == [mutated(name, whole, Random(f"{seed}")) for seed in range(200)]
    assert len(set(inputs)) > 120 and inputs.count(whole) < 40


def test_unknown_targets_are_named(tmp_path: Path) -> None:
    result = fuzz("--group", "files", "--only", "nothing", failed=tmp_path)
    assert result.returncode == 1
    assert "no target 'nothing'; there are: recipes, overrides" in result.stdout
