"""Fuzz hfcap's readers of files: one process that reads damaged files, and one that watches it.

python -m tests.fuzz --seconds 600 --seed 7            # all targets
python -m tests.fuzz --inputs 2000 --only "images"     # a number of inputs
python -m tests.fuzz --seed 7 --only "images" --input 123 --inputs 1   # one input again
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.targets import GROUPS

SILENCE = 120
"""Seconds without a new input after which the working process is ended: library code outside Python may hang."""
_MEMORY = "/dev/shm"
"""Linux: a folder in memory, where the thousands of small files cost a tenth of the time."""
_CURRENT, _RESULTS = "current.json", "results.jsonl"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="time for all targets together (default: 120)")
    parser.add_argument("--inputs", type=int, help="inputs of a target of share 1, in the place of a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", action="append", metavar="TARGET", help="this target; may be given several times")
    parser.add_argument("--group", choices=GROUPS, help="targets that read files alone, or runs and models")
    parser.add_argument("--failed", type=Path, default=Path("build/fuzz"), help="folder for inputs that fail")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--after", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the targets; returns the exit code: 1 where an input was neither read nor refused."""
    options = parsed()
    if options.work is not None:
        _work(options)
        return 0
    with tempfile.TemporaryDirectory(
        prefix="hfcap-fuzz-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
    ) as folder:
        results = _watched(options, Path(folder))
    return _report(results, options)


# ---- the process that works ----------------------------------------------------------------------------------------


def _work(options: argparse.Namespace) -> None:
    from tests.fuzz.running import Outcome, run_target
    from tests.fuzz.targets import chosen_targets

    targets = chosen_targets(options.only, options.group)
    names = [target.name for target in targets]
    targets = targets[names.index(options.after) + 1 :] if options.after else targets
    current = os.open(options.work / _CURRENT, os.O_RDWR | os.O_CREAT, 0o600)

    def begin(name: str, number: int) -> None:
        os.pwrite(current, f"{json.dumps([name, number])}\n{' ' * 80}".encode(), 0)

    deadline = None if options.inputs else time.monotonic() + (options.seconds or 120)
    with (options.work / _RESULTS).open("a") as results:
        for position, target in enumerate(targets):
            first = options.input
            shares = sum(one.seconds_share for one in targets[position:])
            until = deadline and time.monotonic() + (deadline - time.monotonic()) * target.seconds_share / shares
            wanted = max(1, round((options.inputs or 0) * target.share))

            def enough(outcome: Outcome, until: float | None = until, wanted: int = wanted) -> bool:
                return outcome.inputs >= wanted if until is None else time.monotonic() > until

            outcome = run_target(target, options.work, options.seed, first, enough, begin, options.failed)
            results.write(json.dumps(asdict(outcome)) + "\n")
            results.flush()


# ---- the process that watches --------------------------------------------------------------------------------------


def _watched(options: argparse.Namespace, work: Path) -> list[dict[str, object]]:
    """Run working processes until all targets are through; what ends one is a failure of the input it was at."""
    deadline = time.monotonic() + (options.seconds or 120)
    crashed: list[dict[str, object]] = []
    after: str | None = None
    while True:
        left = max(1.0, deadline - time.monotonic())
        code, said = _one_process(work, after, None if options.inputs else left)
        if code == 0:
            break
        after, number = json.loads(said) if said else (None, 0)
        kind, text = f"the process ended with {code}", (work / "stderr").read_text(errors="replace")
        failure = {"target": after or "start", "kind": kind, "number": number, "n_bytes": 0, "text": text}
        inputs = number + 1 - options.input
        crashed.append(
            {"target": failure["target"], "inputs": inputs, "refused": 0, "seconds": 0.0, "failures": {kind: failure}}
        )
        if after is None:
            break
    results = work / _RESULTS
    lines = results.read_text().splitlines() if results.is_file() else []
    return [*(json.loads(line) for line in lines), *crashed]


def _one_process(work: Path, after: str | None, seconds: float | None) -> tuple[int, str]:
    """Run a working process; returns its exit code and the target and input it was at."""
    command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--work", str(work)]
    command += [] if after is None else ["--after", after]
    command += [] if seconds is None else ["--seconds", str(seconds)]
    own = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "HFCAP_CACHE": str(work / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    # Decoders in C write what they think of an image to standard error.
    with (work / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, env=os.environ | own, stderr=stderr)
    said, changed = "", time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        now = _current(work)
        if now != said:
            said, changed = now, time.monotonic()
        if time.monotonic() - changed > SILENCE:
            process.kill()
            process.wait()
    return process.returncode, _current(work)


def _current(work: Path) -> str:
    try:
        return (work / _CURRENT).read_text().partition("\n")[0]
    except FileNotFoundError:
        return ""


def _report(results: Sequence[dict[str, object]], options: argparse.Namespace) -> int:
    from tests.fuzz.running import Failure

    print(f"{'target':<24} {'inputs':>8} {'refused':>8} {'tracebacks':>10} {'inputs/s':>9}")
    total = [0, 0, 0]
    failures: list[Failure] = []
    for result in results:
        found = result["failures"]
        assert isinstance(found, dict)
        failures += (own := [Failure(**value) for value in found.values()])
        numbers = [int(str(result["inputs"])), int(str(result["refused"])), sum(failure.count for failure in own)]
        total = [before + number for before, number in zip(total, numbers, strict=True)]
        rate = numbers[0] / max(float(str(result["seconds"])), 1e-3)
        print(f"{result['target']:<24} {numbers[0]:>8,} {numbers[1]:>8,} {numbers[2]:>10,} {rate:>9,.0f}")
    print(f"{'all':<24} {total[0]:>8,} {total[1]:>8,} {total[2]:>10,}")
    for failure in failures:
        again = f"--seed {options.seed} --only {failure.target!r} --input {failure.number} --inputs 1"
        print(
            f"\n{failure.target}: {failure.kind} ({failure.count:,} inputs; again: {again})\n{_shortened(failure.text)}"
        )
    if failures:
        print(f"\nThe smallest input of each kind is in {options.failed}.")
    return 1 if failures or not results else 0


def _shortened(text: str) -> str:
    """Cut long lines, and the beginning of a long traceback."""
    return "\n".join(line[:300] for line in text.splitlines())[-3000:]


if __name__ == "__main__":
    sys.exit(main())
