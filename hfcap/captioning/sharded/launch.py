"""Several processes of this machine that caption into one folder: the same command, told which of them it is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from hfcap.captioning.inputs import nothing_readable
from hfcap.captioning.sharded.folder import OutputFolder, Tally
from hfcap.captioning.sharded.place import COUNT, QUIET, RANK, Place
from hfcap.captioning.sharded.speed import Speed
from hfcap.captioning.sharded.work import ShardedJob, begin, caption_shards
from hfcap.children import start_this_program
from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.progress import error_console
from hfcap.text import counted

_LOOK_SECONDS = 0.2
_STOP_SECONDS = 30.0
_WRONG_INPUT = 2


def caption_shards_with(n_processes: int, command: Sequence[str], job: ShardedJob, place: Place, again: bool) -> Tally:
    """Let processes caption into the folder of `job`, and say how far they are; returns what the manifest says.

    One that dies is missed by nobody: the others take its shard over.

    Args:
        command: of each process; it calls `caption_shards` with its `own_place()`.
        place: of this process, of which the others become parts.
        again: see `caption_shards`.

    Raises:
        UserError: as `caption_shards`; what the first process says of the model has been printed then.
        WorkError: all processes died before everything was done.
        StoppedError: Ctrl-C; finished shards are kept.
    """
    plan = begin(job, place.launched, again)
    folder = OutputFolder(job.output)
    if plan is None or folder.is_complete:
        return caption_shards(job, place)
    processes = [_started(command, 0, n_processes, place)]
    try:
        with Speed(folder, len(plan.shards), quiet=False, price=job.price_per_hour) as speed:
            # Until it has loaded the model and compared the options: what is wrong with them is said once.
            while processes[0].poll() is None and not any(folder.workers.glob(f"{processes[0].pid}-*.json")):
                time.sleep(_LOOK_SECONDS)
            if processes[0].poll() in (None, 0) or processes[0].returncode < 0:
                processes += [_started(command, rank, n_processes, place) for rank in range(1, n_processes)]
            while any(process.poll() is None for process in processes):
                time.sleep(_LOOK_SECONDS)
                speed.show()
    except KeyboardInterrupt:
        _stop(processes)
        raise StoppedError(f"stopped; finished shards are in {job.output}, and the same command goes on") from None
    return _outcome(folder, [process.returncode for process in processes])


def _started(command: Sequence[str], number: int, count: int, place: Place) -> subprocess.Popen[bytes]:
    rank, total = place.rank * count + number, place.count * count
    mine = {RANK: str(rank), COUNT: str(total), "LOCAL_RANK": str(number), QUIET: "1"}
    if not torch.accelerator.is_available():
        mine["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return start_this_program(command, mine)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + _STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _outcome(folder: OutputFolder, codes: Sequence[int]) -> Tally:
    """Return what was done, and say which processes died on the way.

    Raises:
        UserError, WorkError: see `caption_shards_with`.
    """
    died = [code for code in codes if code not in (0, _WRONG_INPUT)]
    if folder.is_complete:
        if died:
            said = (
                f"{counted(len(died), 'process', 'processes')} died on the way (exit code {died[0]}); others took over"
            )
            error_console.print(said, style="yellow", markup=False, soft_wrap=True)
        tally = folder.tally()
        if not tally.images:
            raise UserError(nothing_readable(tally.failures))
        return tally
    if _WRONG_INPUT in codes:
        raise SystemExit(_WRONG_INPUT)
    raise WorkError(
        f"{folder.path}: every process ended before all was done (exit code {died[0] if died else 0}); see what is "
        "said above, and give the same command again to go on"
    )


def own_command() -> list[str]:
    """Return the command that this process was started with, for another one like it."""
    return [sys.executable, "-m", "hfcap", *sys.argv[1:]]
