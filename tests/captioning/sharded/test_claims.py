"""Who works on a shard: one worker at a time, and whoever notices that it died goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfcap.captioning.sharded import claims as claims_module
from hfcap.captioning.sharded.claims import STALE_SECONDS, Claims, Worker
from hfcap.captioning.sharded.place import Place, own_place
from hfcap.errors import UserError

DYING = """
import os, sys
from pathlib import Path
from hfcap.captioning.sharded.claims import Claims, Worker
folder = Path(sys.argv[1])
worker = Worker(folder / "workers")
with worker.at_work():
    print(Claims(folder / "claims", worker).take("shard-00000"), flush=True)
    sys.stdin.read()
"""


def claims(folder: Path) -> Claims:
    return Claims(folder / "claims", Worker(folder / "workers"))


def test_a_shard_is_taken_once_and_again_after_its_release(tmp_path: Path) -> None:
    first, second = claims(tmp_path), claims(tmp_path)
    with first.worker.at_work(), second.worker.at_work():
        assert first.take("a") and second.take("b")
        assert not second.take("a") and not first.take("b") and not first.take("a")
        assert first.holds("a")
        first.release("a")
        assert second.take("a") and second.holds("a")
        assert not first.take("a")


@pytest.mark.usefixtures("forks")
def test_the_shard_of_a_killed_process_is_taken_over_at_once_by_one(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", DYING, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    first, second = claims(tmp_path), claims(tmp_path)
    with first.worker.at_work(), second.worker.at_work():
        assert not first.take("shard-00000")
        process.kill()
        assert process.stdout.read() == ""  # nobody holds it any more: the process has ended
        process.wait()
        assert first.take("shard-00000")
        assert not second.take("shard-00000")


def test_a_worker_of_another_machine_is_dead_when_it_gives_no_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, here = claims(tmp_path), claims(tmp_path)
    monkeypatch.setattr(claims_module, "this_machine", lambda: "away")
    with away.worker.at_work():
        assert away.take("a")
    monkeypatch.undo()
    # Its lock is free, but a lock of this machine says nothing of another one.
    with here.worker.at_work():
        assert not here.take("a")
        late = away.worker.path.stat().st_mtime - STALE_SECONDS - 1
        os.utime(away.worker.path, (late, late))
        assert here.take("a")
        assert not away.holds("a") and here.holds("a")


def test_one_that_lives_gives_a_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "BEAT_SECONDS", 0.01)
    worker = Worker(tmp_path)
    with worker.at_work():
        os.utime(worker.path, (0, 0))
        for _ in range(500):
            if worker.path.stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert worker.path.stat().st_mtime > 0
    assert worker.is_dead(worker.name)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: object, target: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first, second = claims(tmp_path), claims(tmp_path)
    with first.worker.at_work(), second.worker.at_work():
        assert first.take("a") and not second.take("a")


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Place()),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, Place(3, 4, 1, launched=True)),
        ({"SLURM_ARRAY_TASK_ID": "2"}, Place(2, 3, 0, launched=True)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8"}, Place(2, 8, 0, launched=True)),
        (
            {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8", "WORLD_SIZE": "4", "RANK": "3"},
            Place(11, 32, 0, launched=True),
        ),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, Place(1, 4, 1, launched=True)),
        ({"HFCAP_RANK": "1", "HFCAP_WORLD_SIZE": "2", "HFCAP_QUIET": "1"}, Place(1, 2, 0, launched=True, quiet=True)),
    ],
)
def test_what_launchers_say(variables: dict[str, str], place: Place) -> None:
    assert own_place(variables) == place


def test_a_launcher_that_says_nonsense() -> None:
    with pytest.raises(UserError, match=r"HFCAP_RANK=first: must be a whole number"):
        own_place({"HFCAP_RANK": "first"})
