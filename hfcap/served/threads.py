"""Several requests at a time, by threads that keep nobody from leaving."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from hfcap.errors import UserError, WorkError

Given = TypeVar("Given")
Result = TypeVar("Result")


def all_of(
    ask: Callable[[Given, threading.Event], Result], given: Sequence[Given], max_concurrency: int
) -> list[Result]:
    """Return what is answered to everything given, in order, asking `max_concurrency` at a time.

    Threads of a pool would keep Ctrl-C waiting until a server has answered.

    Args:
        ask: gets one thing, and an event that is set as soon as nobody waits for the answer any more.

    Raises:
        UserError, WorkError: what `ask` raised first; nothing new is asked then.
    """
    stopping, lock, todo = threading.Event(), threading.Lock(), iter(enumerate(given))
    answered: SimpleQueue[tuple[int, Any, Exception | None]] = SimpleQueue()

    def work() -> None:
        while not stopping.is_set():
            with lock:
                number, one = next(todo, (-1, None))
            if number < 0:
                return
            outcome: tuple[Any, Exception | None] = (None, AssertionError("a request broke off"))
            try:
                outcome = (ask(one, stopping), None)  # type: ignore[arg-type]  # it is one that was given
            except (UserError, WorkError) as error:
                outcome = (None, error)
            finally:  # whatever else happens, nobody waits for ever
                answered.put((number, *outcome))
            if outcome[1] is not None:
                stopping.set()

    for _ in range(min(max_concurrency, len(given))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, Result] = {}
    try:
        while len(results) < len(given):
            number, result, error = answered.get()
            if error is not None:
                raise error
            results[number] = result
    finally:
        stopping.set()
    return [results[number] for number in range(len(given))]
