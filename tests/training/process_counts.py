"""Run by test_process_counts.py: trains and captions in 1, 2 and 4 processes, kills one of four, and goes on in two.

The processes are forked from this one, which has imported everything: that takes most of the time of a small training.
What they are told is what torchrun tells them.

Usage: process_counts.py FOLDER
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml

from hfcap.cli import main as command_line
from hfcap.training import loop
from hfcap.training.processes import Hosts
from tests.training.harness import plain_descent, recipe_values

IMAGES = 8
"""Of an update, over all processes."""
COUNTS = (1, 2, 4)
KILLED_AT = 3
KILLED = {0: 2, 2: 4}
"""Which process is killed, the first one among them -> of how many."""


def values(count: int, folder: Path, name: str) -> dict[str, object]:
    """A recipe as a mapping: 21 images, so that the last batch of an epoch is not full; 7 to caption."""
    return recipe_values(
        "vit_gpt2",
        folder,
        dropout=0.0,
        data={"n_train": 21, "n_test": 7},
        max_steps=5,
        learning_rate=0.1,
        per_device_train_batch_size=IMAGES // count,
        per_device_eval_batch_size=2,
        save_steps=1,
        eval_steps=5,
        save_total_limit=5,
        max_grad_norm=0.5,
    ) | {"name": name}


def together(count: int, folder: Path, work: Callable[[int], None]) -> list[int]:
    """Let forked processes work together; returns how they ended, as subprocess does. What they say goes to files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        if (process := os.fork()) == 0:
            code = 70
            try:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
                said = os.open(folder / f"said-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(said, 1)
                os.dup2(said, 2)
                work(rank)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def command(*arguments: object) -> None:
    """Be hfcap with these arguments."""
    sys.argv = ["hfcap", *map(str, arguments)]
    command_line()


def commanded(*arguments: object) -> Callable[[int], None]:
    """Return what every process does: this command."""
    return lambda _: command(*arguments)


def dying(recipe: Path, victim: int, rank: int) -> None:
    """Be hfcap; the victim is killed before an update, for which the others wait."""
    forward = loop.TrainingRun._update
    n_updates = [0]

    def killed(self: loop.TrainingRun, *arguments: object) -> bool:
        n_updates[0] += 1
        if n_updates[0] == KILLED_AT and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, *arguments)  # type: ignore[arg-type]

    loop.TrainingRun._update = killed  # type: ignore[assignment, method-assign]
    command("run", recipe)


def agreeing(folder: Path, rank: int) -> None:
    """Add up numbers of two hosts whose devices hold none."""
    torch.distributed.init_process_group("gloo")
    hosts = Hosts(SimpleNamespace(num_processes=2, device=torch.device("meta")))
    sums = hosts.summed(rank + 0.25, 2.0**40 + rank, rank == 1)
    (folder / f"agreed-{rank}.json").write_text(json.dumps(sums))
    torch.distributed.destroy_process_group()


def write_recipe(folder: Path, name: str, count: int) -> Path:
    path = folder / f"{name}-{count}.yaml"
    path.write_text(yaml.safe_dump(values(count, folder, name)))
    return path


def first_of_all(recipe: Path, imported: Path) -> None:
    """Train and caption alone, and say which modules that took."""
    try:
        command("caption", recipe)
    finally:  # commands end by an exception
        imported.write_text(json.dumps(sorted(sys.modules)))


def import_all(names: list[str]) -> None:
    """Import what the first one imported, so that forks need not."""
    for name in names:
        if name.partition(".")[0] in ("accelerate", "datasets", "hfcap", "tokenizers", "torch", "transformers"):
            with contextlib.suppress(ImportError, AttributeError):  # names that modules put there themselves
                importlib.import_module(name)


def main(folder: Path) -> None:
    """Write run directories, and `ends.json`: how the killed ones ended."""
    loop.build_optimizer = plain_descent  # type: ignore[attr-defined]
    recipe = write_recipe(folder, "trained-1", 1)
    assert together(1, folder, lambda _: first_of_all(recipe, folder / "imported.json")) == [0]
    import_all(json.loads((folder / "imported.json").read_text()))
    for count in COUNTS[1:]:
        recipe = write_recipe(folder, f"trained-{count}", count)
        assert together(count, folder, commanded("train", recipe)) == [0] * count
        run = folder / f"captioned-{count}"
        shutil.copytree(folder / "trained-1", run)
        (run / "predictions/test.jsonl").unlink()
        assert together(count, folder, commanded("caption", run)) == [0] * count
    ends = {}
    for victim, count in KILLED.items():
        place = folder / f"killed-{victim}"
        place.mkdir()
        recipe = write_recipe(place, "killed", count)
        started = time.monotonic()
        codes = together(count, place, partial(dying, recipe, victim))
        ends[victim] = {"codes": codes, "seconds": time.monotonic() - started}
    again = folder / "again"
    again.mkdir()
    fewer = write_recipe(folder / "killed-2", "killed", 2)
    assert together(2, again, commanded("train", fewer, "--accept-changes")) == [0, 0]
    assert together(2, folder, partial(agreeing, folder)) == [0, 0]
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    main(Path(sys.argv[1]))
