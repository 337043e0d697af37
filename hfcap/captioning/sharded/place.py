"""Which of several processes this one is, as launchers say it: hfcap's own, SLURM's, torchrun's and Accelerate's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hfcap.errors import UserError

RANK, COUNT, QUIET = "HFCAP_RANK", "HFCAP_WORLD_SIZE", "HFCAP_QUIET"


@dataclass(frozen=True)
class Place:
    """A process among others.

    Attributes:
        rank: from 0. count: how many there are. local_rank: among those of this machine, which chooses the GPU.
        launched: others work on the same, or may. quiet: another process says how far the work is.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    launched: bool = False
    quiet: bool = False


def own_place(environment: Mapping[str, str] | None = None) -> Place:
    """Return what the launcher's variables say of this process; a task of a SLURM array may have processes of its own.

    Raises:
        UserError: a variable is no number.
    """
    values = os.environ if environment is None else environment

    def number(name: str, otherwise: int) -> int:
        text = values.get(name, str(otherwise))
        if not text.isdecimal():
            raise UserError(f"{name}={text}: must be a whole number; correct the launcher")
        return int(text)

    if RANK in values:
        return Place(number(RANK, 0), number(COUNT, 1), number("LOCAL_RANK", 0), True, QUIET in values)
    if number("WORLD_SIZE", 1) > 1:
        rank, count, local = number("RANK", 0), number("WORLD_SIZE", 1), number("LOCAL_RANK", 0)
    else:
        rank, count, local = number("SLURM_PROCID", 0), number("SLURM_NTASKS", 1), number("SLURM_LOCALID", 0)
    if "SLURM_ARRAY_TASK_ID" not in values:
        return Place(rank, count, local, count > 1)
    task = number("SLURM_ARRAY_TASK_ID", 0)
    return Place(task * count + rank, number("SLURM_ARRAY_TASK_COUNT", task + 1) * count, local, True)
