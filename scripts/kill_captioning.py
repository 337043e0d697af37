"""Whether a sharded captioning survives kills: processes die at random moments, and the bytes are equal.

    python -m scripts.kill_captioning [--kills 50] [--shards 200] [--processes 4] [--form parquet] [--dedup]

Workers are forked from a process that has everything imported, and are killed (SIGKILL) at a random time, or before a
random one of their changes to the output folder: between any two of them something may be half done. Where everything
is captioned before enough workers died, another round begins in a new folder.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hfcap import registry
from hfcap.captioning.sharded import Place, ShardedJob, caption_shards
from hfcap.recipe.blocks import GenerateOptions

CHANGES = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.utime")
"""Audit events of a process that changes files; each comes before its change."""
MOST_CHANGES, MOST_SECONDS = 60, 2.0
CORPUS = ("a red cat sits on a mat", "two dogs run over the green grass", "three people in a boat") * 8


@dataclass
class Round:
    """One captioning with kills.

    Attributes:
        kills: what killed workers: a time, or the change to files that they were about to make.
    """

    kills: list[str] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def write_images(folder: Path, count: int, copies: bool) -> None:
    """Write small images of noise; one in fifty is damaged, and on request one in five is a copy."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(count):
        content = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(content, format="PNG")
        (folder / f"{number:06d}.png").write_bytes(b"damaged" if number % 50 == 7 else content.getvalue())
        if copies and number % 5 == 4:
            (folder / f"{number:06d}.png").write_bytes((folder / f"{number // 2:06d}.png").read_bytes())


def write_model(folder: Path) -> None:
    """Write a tiny captioner with random weights."""
    family: Any = registry.load("captioners", "vit_gpt2").REGISTERED
    torch.manual_seed(0)
    family.build(family.options_class(**family.tiny()), CORPUS).save(folder, GenerateOptions(max_new_tokens=6))


def forked(work: Any) -> int:
    """Start a process that does some work and ends; returns its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def dies_at_change(output: Path, countdown: int) -> None:
    """Let this process kill itself before one of its changes to the output folder; it notes which."""
    left = [countdown]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(str(output)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        left[0] -= 1
        if left[0] == 0:
            descriptor = os.open(f"{output}.kills", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{event}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def disturbed(job: ShardedJob, n_processes: int, most_kills: int, chance: random.Random) -> Round:
    """Caption with workers that die, each replaced by another, until everything is done."""
    result = Round()
    output, noted = job.output, Path(f"{job.output}.kills")
    started = time.monotonic()
    dying: dict[int, float | None] = {}  # when to kill; None = it kills itself, or not at all
    n_started = 0
    while dying or not (output / "manifest.jsonl").exists():
        while len(dying) < n_processes and not (output / "manifest.jsonl").exists():
            rank = n_started % n_processes
            by_itself, safe = chance.random() < 0.6, len(result.kills) + len(dying) >= most_kills
            countdown = chance.randint(1, MOST_CHANGES)

            def work(rank: int = rank, countdown: int = 0 if safe or not by_itself else countdown) -> None:
                if countdown:
                    dies_at_change(output, countdown)
                caption_shards(job, Place(rank, n_processes, 0, launched=True, quiet=True))

            process = forked(work)
            timed = not (safe or by_itself)
            dying[process] = time.monotonic() + chance.uniform(0, MOST_SECONDS) if timed else None
            n_started += 1
        for process, moment in list(dying.items()):
            if moment is not None and time.monotonic() > moment:
                os.kill(process, signal.SIGKILL)
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del dying[process]
                if os.WIFSIGNALED(status):
                    result.kills.append("time" if moment is not None else "change")
                elif os.WEXITSTATUS(status):
                    result.problems.append(f"a worker ended with exit code {os.WEXITSTATUS(status)}")
                    return result
        time.sleep(0.01)
    # Once more: the last worker may have died while it tidied up.
    os.waitpid(forked(lambda: caption_shards(job, Place(quiet=True))), 0)
    result.seconds = time.monotonic() - started
    if noted.exists():
        events = noted.read_text(encoding="utf-8").split()
        result.kills = [kill for kill in result.kills if kill == "time"] + events
    return result


def differences(whole: Path, output: Path, images: int) -> list[str]:
    """Return what is not as without kills."""
    found, expected = ({path.name: path for path in folder.iterdir()} for folder in (output, whole))
    problems = [f"{name}: only with kills" for name in found.keys() - expected.keys()]
    problems += [f"{name}: missing" for name in expected.keys() - found.keys()]
    both = found.keys() & expected.keys()
    problems += [f"{name}: other bytes" for name in both if found[name].read_bytes() != expected[name].read_bytes()]
    rows = [json.loads(line) for line in (output / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    n_images = sum(row["images"] + len(row["failures"]) + len(row.get("duplicates", ())) for row in rows)
    return problems + ([] if n_images == images else [f"{n_images} images in the manifest, not {images}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    for name, default in (("kills", 50), ("shards", 200), ("processes", 4), ("images-per-shard", 5), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--form", choices=("parquet", "webdataset"), default="parquet")
    parser.add_argument("--dedup", action="store_true", help="every fifth image has the bytes of an earlier one")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chance, rounds = random.Random(given.seed), list[Round]()
    n_images = given.shards * given.images_per_shard
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_images(place / "images", n_images, given.dedup)
        os.waitpid(forked(lambda: write_model(place / "model")), 0)

        def job(output: str) -> ShardedJob:
            source = (str(place / "images"),)
            model, size = str(place / "model"), given.images_per_shard
            return ShardedJob(model, source, place / output, given.form, size, dedup=given.dedup)

        _, status = os.waitpid(forked(lambda: caption_shards(job("whole"), Place(quiet=True))), 0)
        assert status == 0, "an undisturbed captioning failed"
        while sum(len(one.kills) for one in rounds) < given.kills:
            one = disturbed(job(f"round-{len(rounds)}"), given.processes, given.kills * 2, chance)
            rounds.append(one)
            if not one.problems:
                one.problems += differences(place / "whole", place / f"round-{len(rounds) - 1}", n_images)
            if one.problems:
                break
    kills = [kill for one in rounds for kill in one.kills]
    counts = {kind: kills.count(kind) for kind in sorted(set(kills))}
    print(f"{given.processes} processes, {given.shards} shards of {given.images_per_shard} images as {given.form}")
    print(f"{len(kills)} kills in {len(rounds)} rounds, {sum(one.seconds for one in rounds):.0f} s; at: {counts}")
    problems = [problem for one in rounds for problem in one.problems]
    print("\n".join(problems) if problems else "each image exactly once, every byte as without kills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
