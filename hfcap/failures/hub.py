"""Whether the Hub can be reached: found out within seconds, and said in one sentence.

huggingface_hub asks an address that nobody answers six times, which takes half a minute for each file, and writes two
lines each time. A Hub that has not answered yet is asked three times here; then it is out of reach for a while, as with
HF_HUB_OFFLINE: what is in the cache is used, and the rest is missing. A Hub that answered before is asked as often as
huggingface_hub does.
"""

from __future__ import annotations

import functools
import importlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import _http

_CONNECT_SECONDS = 5.0
_WAITS = (0.5, 1.5)
"""Seconds before the second and the third attempt."""
_REMEMBERED_SECONDS = 30.0
"""So long nothing more is asked of a Hub that could not be reached; a command makes many requests."""

_answered: set[str] = set()
_out_of_reach: dict[str, tuple[float, str]] = {}


def give_up_soon() -> None:
    """Let huggingface_hub give up soon on a Hub that does not answer, in this process; a client of one's own stays."""
    if getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is _http.default_client_factory:
        set_client_factory(_client)
    log = logging.getLogger(_http.__name__)
    if not any(isinstance(found, _OneLineForAll) for found in log.filters):
        log.addFilter(_OneLineForAll())


def _client() -> Any:
    client: Any = _http.default_client_factory()
    client.send = functools.partial(_send, client.send)
    return client


def _send(plainly: Callable[..., Any], request: Any, **arguments: Any) -> Any:
    """Send a request of the HTTP library.

    Raises:
        OfflineModeIsEnabled: nobody answers at that address; huggingface_hub and its users look into their caches then.
    """
    place = f"{request.url.host}:{request.url.port or request.url.scheme}"
    if place in _answered:
        return plainly(request, **arguments)
    since, reason = _out_of_reach.get(place, (-_REMEMBERED_SECONDS, ""))
    if time.monotonic() - since < _REMEMBERED_SECONDS:
        raise OfflineModeIsEnabled(reason)
    seconds = request.extensions.get("timeout", {})
    shorter = min(seconds.get("connect") or _CONNECT_SECONDS, _CONNECT_SECONDS)
    request.extensions["timeout"] = {**seconds, "connect": shorter}
    library = importlib.import_module(type(request).__module__.split(".")[0])
    for wait in (*_WAITS, None):
        try:
            response = plainly(request, **arguments)
        except (library.ConnectError, library.ConnectTimeout) as error:
            if wait is not None and isinstance(error, library.ConnectError):
                time.sleep(wait)
                continue
            reason = " ".join(str(error).split()) or type(error).__name__
            _out_of_reach[place] = (time.monotonic(), reason)
            raise OfflineModeIsEnabled(reason) from error
        _answered.add(place)
        return response
    raise AssertionError("unreachable: the last attempt returns or raises")


def out_of_reach(error: BaseException) -> str | None:
    """Return the sentence to say where an error means that the Hub could not be asked; None for any other error."""
    causes = [cause for cause in _causes(error) if _is_no_answer(cause)]
    if not causes:
        return None
    if constants.is_offline_mode():
        return (
            "it is not in the cache, and HF_HUB_OFFLINE keeps hfcap from asking the Hub; unset HF_HUB_OFFLINE, or put "
            "it there first (hf download)"
        )
    # What the libraries say of it themselves is longer, and names other remedies.
    reasons = [" ".join(str(one).split()) for one in causes if isinstance(one, OfflineModeIsEnabled) or _broken(one)]
    reasons += [reason for _, reason in _out_of_reach.values()]
    reason = f" ({reasons[-1]})" if reasons else ""
    return (
        f"the Hub at {constants.ENDPOINT} cannot be reached{reason}, and it is not in the cache; check the network, or "
        "HF_ENDPOINT if your Hub is another one (HF_HUB_OFFLINE=1 takes all from the cache and asks nobody)"
    )


def _is_no_answer(error: BaseException) -> bool:
    # `datasets` raises Python's own class, and leaves out why.
    known = isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError) or type(error) is ConnectionError
    return known or _broken(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _broken(error: BaseException) -> bool:
    """Whether the HTTP library says that there was no connection, or no answer."""
    if isinstance(error, HfHubHTTPError):
        return False
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0].startswith("httpx")}
    return bool(names & {"NetworkError", "TimeoutException"})


class _OneLineForAll(logging.Filter):
    """One line where huggingface_hub waits and asks again, instead of two for each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.said = -_REMEMBERED_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is shown."""
        message = record.getMessage()
        if "thrown while requesting" in message:
            return False
        if not message.startswith(("Retrying in", "Rate limited")):
            return True
        again = time.monotonic() - self.said < _REMEMBERED_SECONDS
        self.said = time.monotonic()
        record.msg, record.args = "the Hub does not answer, or is busy; asking again for half a minute", ()
        return not again
