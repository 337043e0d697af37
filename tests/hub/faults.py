"""Faults that the loopback Hub commits on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass

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
