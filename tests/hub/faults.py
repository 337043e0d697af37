"""The Hub server with faults on demand, and a record of what was asked."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scripts.hub_server.messages import Answer, BodyStream, User
from scripts.hub_server.server import Handler, HubServer
from scripts.hub_server.store import HubError

STATUS_FAULTS = {
    "401": (401, "Invalid username or password.", ""),
    "403": (403, "You don't have the rights to do this.", ""),
    "412": (412, "A commit has happened since. Please refresh and try again.", ""),
    "429": (429, "Too many requests", ""),
    "503": (503, "Service unavailable", ""),
}
DROPS = ("drop_before", "drop_after")
"""The connection ends without an answer, before or after the work was done."""
OTHERS = ("slow", "truncated")
"""A late answer; an answer that ends in the middle."""
KINDS = (*STATUS_FAULTS, *DROPS, *OTHERS)


@dataclass(slots=True)
class Fault:
    """Do `kind` to the next `times` requests of `call` (a route's name), after letting `skip` of them pass."""

    kind: str
    call: str
    times: int = 1
    skip: int = 0


class FaultPlan:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, kind: str, call: str, times: int = 1, skip: int = 0) -> None:
        assert kind in KINDS, kind
        with self._lock:
            self._faults.append(Fault(kind, call, times, skip))

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, call: str) -> str | None:
        """Return the kind of fault for this request, if one is due."""
        with self._lock:
            for fault in self._faults:
                if fault.call != call or fault.times <= 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault.kind
        return None


class FaultyHub(HubServer):
    """A Hub on a free loopback port; `store` is what a person would see on the site."""

    def __init__(self, root: Path, tokens: dict[str, User]) -> None:
        super().__init__(root, tokens, handler=FaultyHandler)
        self.faults = FaultPlan()
        self.slow_seconds = 0.3
        self.requests: list[tuple[str, str]] = []
        """(route name, method and path) of every request."""
        self.crashes: list[str] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            self.crashes.append(traceback.format_exc())

    def calls(self, name: str) -> int:
        """How many requests a route has had."""
        return sum(1 for route, _ in self.requests if route == name)


class FaultyHandler(Handler):
    server: FaultyHub

    def run(self, name: str, work: Callable[[], Answer]) -> None:
        self.server.requests.append((name, f"{self.command} {self.path}"))
        fault = self.server.faults.take(name)
        if fault == "drop_before":
            self._drop()
            return
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        if fault in STATUS_FAULTS:
            work = partial(self._refuse, *STATUS_FAULTS[fault])
        answer = self.outcome(work)
        if answer.status == 429:
            answer.headers["Retry-After"] = "0"
        if fault == "drop_after":
            self._drop()
        else:
            self.send(answer, cut=fault == "truncated")
            if fault == "truncated":
                self._drop()

    def _refuse(self, status: int, message: str, code: str) -> Answer:
        # With unread bytes the connection would be reset, and the client might not see the answer.
        BodyStream(self.rfile, {k.lower(): v for k, v in self.headers.items()}).read_all(2**30)  # type: ignore[arg-type]
        raise HubError(status, message, code)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()
