"""Who works on which shard: claims in a shared folder that any number of processes, on any machines, take from.

A claim is a file `<shard>.<generation>` that is created exclusively; the highest generation holds. A shard whose worker
is dead is taken over by creating the next generation, so exactly one of those who notice gets it, and nothing that
somebody else wrote is ever removed. Claims only keep work from being done twice: shards are computed in the same way by
everybody, so a worker that was wrongly thought dead does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from hfcap.files import write_text

BEAT_SECONDS = 15.0
STALE_SECONDS = 300.0
"""A worker of another machine that gave no sign for so long is dead; network file systems show times a minute late."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RELEASED = ""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def this_machine() -> str:
    """Return what tells this machine from others; containers have names of their own, or all the same."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return platform.node()


def clock(folder: Path) -> float:
    """Return the time by the clock that stamps the files of a folder, which may be that of a server."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as handle:
        return os.fstat(handle.fileno()).st_mtime


@dataclass(frozen=True)
class Effort:
    """What workers have spent so far.

    Attributes:
        seconds: of all together, loading of models not included; a killed one counts until its last sign of life.
        alive: how many are at work.
    """

    seconds: float
    alive: int


def effort_of(folder: Path) -> Effort:
    """Return the effort of all workers of a folder; zero where there are none any more."""
    seconds, alive = 0.0, 0
    with contextlib.suppress(FileNotFoundError):  # all is done, and the folder gone
        now = clock(folder)
        for path in folder.glob("*.json"):
            begun, last = json.loads(path.read_text(encoding="utf-8"))["begun"], path.stat().st_mtime
            living = now - last < 3 * BEAT_SECONDS
            alive += living
            seconds += max(0.0, (now if living else last) - begun)
    return Effort(seconds, alive)


class Worker:
    """A process that works on shards: the lock it holds while it lives, and the file by whose time it shows that.

    Args:
        folder: of all workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.path = folder / f"{self.name}.json"

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Be known as alive for the length of the block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {"machine": this_machine(), "pid": os.getpid(), "begun": clock(self.folder)}
        write_text(self.path, json.dumps(said))
        lock = FileLock(self._lock(self.name))
        # A file system without locks: the time alone tells then.
        with contextlib.suppress(NotImplementedError):
            lock.acquire(timeout=0)
        ended = threading.Event()
        beating = threading.Thread(target=self._beat, args=(ended,), name="alive", daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            lock.release()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # all is done and the folder gone, or the disk is away for a while
                os.utime(self.path)

    def _lock(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def is_dead(self, name: str) -> bool:
        """Whether another worker is: it left its lock on this machine, or gave no sign for STALE_SECONDS."""
        path = self.folder / f"{name}.json"
        try:
            machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
            beaten = path.stat().st_mtime
        except FileNotFoundError:
            return True
        if machine == this_machine():
            with contextlib.suppress(Timeout, NotImplementedError), FileLock(self._lock(name), timeout=0):
                return True
        return clock(self.folder) - beaten > STALE_SECONDS


class Claims:
    """The claims on shards, as one worker makes them.

    Args:
        folder: of all claims.
    """

    def __init__(self, folder: Path, worker: Worker) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.worker = folder, worker
        self._mine: dict[str, int] = {}

    def take(self, shard: str) -> bool:
        """Claim a shard that nobody works on; returns whether it is this worker's now."""
        generation = 1
        while (holder := self._holder(shard, generation)) is not None:
            if not self._path(shard, generation + 1).exists() and holder and not self.worker.is_dead(holder):
                return False
            generation += 1
        return self._create(shard, generation)

    def holds(self, shard: str) -> bool:
        """Whether a shard is still this worker's: nobody thought it dead and took over."""
        generation = self._mine[shard]
        return self._path(shard, generation).exists() and not self._path(shard, generation + 1).exists()

    def release(self, shard: str) -> None:
        """Give up a claim; whoever comes next need not wait."""
        path = self._path(shard, self._mine.pop(shard))
        if path.exists():
            write_text(path, _RELEASED)

    def _holder(self, shard: str, generation: int) -> str | None:
        """Return who made a claim, `_RELEASED`, or None where there is no such claim."""
        try:
            return self._path(shard, generation).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def _create(self, shard: str, generation: int) -> bool:
        path = self._path(shard, generation)
        # Written first and linked then: nobody sees a claim that does not say whose it is.
        own = self.folder / f".{self.worker.name}.claim"
        own.write_text(self.worker.name, encoding="utf-8")
        try:
            os.link(own, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._create_without_links(shard, generation)
        finally:
            own.unlink()
        self._mine[shard] = generation
        return True

    def _create_without_links(self, shard: str, generation: int) -> bool:
        try:
            with self._path(shard, generation).open("x", encoding="utf-8") as handle:
                handle.write(self.worker.name)
        except FileExistsError:
            return False
        self._mine[shard] = generation
        return True

    def _path(self, shard: str, generation: int) -> Path:
        return self.folder / f"{shard}.{generation}"
