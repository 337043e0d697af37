"""HTTP with an OpenAI-compatible server: requests, repetitions, and what to do about each kind of failure.

By Python's own library and not by huggingface_hub's InferenceClient, which follows redirects (images would go to
another host), sends nothing where HF_HUB_OFFLINE is set, and repeats no request. The key is read from the environment
for each request; it is in no attribute, message or file.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from hfcap import __version__
from hfcap.errors import UserError, WorkError
from hfcap.files import parse_json
from hfcap.text import printable

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""A caption is some hundred bytes; more than this is no answer to us."""
_TRIED_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first repetition, doubled each time, and at most."""
_ASKED_AT_FIRST = 2
"""Repetitions where a server has answered nothing yet: it is probably not there."""
_SHOWN = 200


def is_this_machine(base_url: str) -> bool:
    """Whether an address leads to this machine, so that nothing sent there leaves it."""
    host = urllib.parse.urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def address_problem(base_url: str) -> str | None:
    """Return what is wrong with the address of a server; None where nothing is. The address may hold a secret."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no web address; write it as http://127.0.0.1:8000/v1"
    sendable = base_url.isascii() and base_url.isprintable() and " " not in base_url
    if parts.scheme not in ("http", "https") or not host or not sendable:
        return "is no web address; write it as http://127.0.0.1:8000/v1"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "must hold no user name, password or query; put a key into the environment (api_key_env)"
    return None


class TransientError(WorkError):
    """A request failed, and another try may help; `pause` is the seconds that the server asks for."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Client:
    """Requests to one server; threads may share it.

    Args:
        base_url: address with the API's version, such as http://127.0.0.1:8000/v1.
        key_variable: environment variable with the key; None = no key is sent.
        timeout: seconds to wait for an answer.
        max_retries: repetitions of a request after faults that may pass.
        block: of the options that messages name: "model" of a recipe, or a metric.
    """

    def __init__(
        self, base_url: str, key_variable: str | None, timeout: float, max_retries: int, block: str = "model"
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.key_variable = key_variable
        self.timeout, self.max_retries = timeout, max_retries
        self.block = block
        self._answered = False
        # No handler of redirects; and what is for this machine goes through no proxy.
        proxies = urllib.request.ProxyHandler({} if is_this_machine(base_url) else None)
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            proxies,
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def require_key(self) -> None:
        """Refuse to begin without the key.

        Raises:
            UserError: the environment does not hold it.
        """
        if self.key_variable is not None and not os.environ.get(self.key_variable, "").strip():
            raise UserError(
                f"{self.block}.api_key_env: the environment variable {self.key_variable} is not set; export it with "
                f"the key of {self.base_url}"
            )

    def models(self) -> list[str]:
        """Return the names of the models that the server says it has.

        Raises:
            UserError, WorkError: see `request`.
        """
        answer = self.request("/models")
        rows = answer.get("data")
        names = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return [name for name in names if isinstance(name, str)]

    def request(
        self, path: str, body: Mapping[str, Any] | None = None, stopping: threading.Event | None = None
    ) -> dict[str, Any]:
        """Send a request, again after faults that may pass, and return the JSON object that is answered.

        Args:
            body: JSON to send; None = only ask (GET).
            stopping: set as soon as nobody waits for the answer any more; then nothing is tried again.

        Raises:
            UserError: the server refuses: key, address, model or request are wrong.
            WorkError: it does not answer, is overloaded, or answers something else.
        """
        content = None if body is None else json.dumps(body).encode()
        stopping = stopping or threading.Event()
        for attempt in range(self.max_retries + 1):
            try:
                answer = self._once(path, content)
            except TransientError as failure:
                given_up = not self._answered and attempt >= _ASKED_AT_FIRST
                if attempt == self.max_retries or given_up or stopping.wait(_pause(attempt, failure.pause)):
                    raise
            else:
                self._answered = True
                return answer
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _once(self, path: str, content: bytes | None) -> dict[str, Any]:
        headers = {"User-Agent": f"hfcap/{__version__}", "Accept": "application/json"}
        headers |= {} if content is None else {"Content-Type": "application/json"}
        if self.key_variable is not None:
            self.require_key()
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable].strip()}"
        request = urllib.request.Request(self.base_url + path, data=content, headers=headers)
        try:
            with contextlib.closing(self._opener.open(request, timeout=self.timeout)) as response:
                return self._read(response)
        except urllib.error.HTTPError as error:
            self._answered = True
            self._refused(error)
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise TransientError(
                    f"{self.base_url}: no answer within {self.timeout:g} s; raise {self.block}.timeout, or lower "
                    f"{self.block}.max_concurrency"
                ) from None
            said = printable(" ".join(str(reason).split())) or type(reason).__name__
            raise TransientError(
                f"{self.base_url}: cannot be reached ({said}); start the server, or correct {self.block}.base_url"
            ) from None
        except ValueError:
            # What http.client says of a header that it refuses repeats the header.
            raise UserError(
                f"{self.block}.api_key_env: {self.key_variable} holds what cannot be sent; set it to the key alone"
            ) from None
        raise AssertionError("unreachable: a refusal raises")

    def _read(self, response: Any) -> dict[str, Any]:
        ends = time.monotonic() + self.timeout
        content = b""
        while piece := response.read1(1 << 16):
            content += piece
            if len(content) > MAX_ANSWER_BYTES or time.monotonic() > ends:
                raise WorkError(f"{self.base_url}: the answer does not end; check that it is a server of models")
        try:
            answer = parse_json(content.decode(), "answer")
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise WorkError(
                f"{self.base_url}: answers what is no JSON object ({self._shown(content)!r}); check "
                f"{self.block}.base_url, which usually ends in /v1"
            )
        return answer

    def _refused(self, error: urllib.error.HTTPError) -> None:
        """Raise what an answer with an error of HTTP means."""
        code, server = error.code, self.base_url
        with contextlib.closing(error):
            try:
                said = self._shown(error.read(1 << 16))
            except (OSError, http.client.HTTPException):
                said = ""
        because = f" ({said})" if said else ""
        if code in _TRIED_AGAIN:
            raise TransientError(
                f"{server}: HTTP {code}{because}; wait until it is less busy, or lower {self.block}.max_concurrency",
                _seconds(error.headers.get("Retry-After")),
            )
        if 300 <= code < 400:
            host = printable(urllib.parse.urlsplit(error.headers.get("Location") or "").netloc) or "nowhere"
            raise UserError(
                f"{server}: redirects to {host}, where neither images nor a key are sent; set {self.block}.base_url to "
                "the address itself if you trust it"
            )
        if code in (401, 403):
            # Servers repeat the key in what they say of it.
            which = f"refuses the key in {self.key_variable}" if self.key_variable else "wants a key"
            raise UserError(
                f"{server}: {which} (HTTP {code}); export the key, and set {self.block}.api_key_env to the variable's "
                "name"
            )
        if code in (404, 405):
            raise UserError(
                f"{server}: HTTP {code}{because}; check {self.block}.base_url, which usually ends in /v1, and "
                f"{self.block}.model"
            )
        raise UserError(
            f"{server}: refuses the request: HTTP {code}{because}; check {self.block}.model, {self.block}.extra_body "
            f"and {self.block}.max_side"
        )

    def _shown(self, content: bytes) -> str:
        """The beginning of an answer as one harmless line, without the key."""
        text = content.decode(errors="replace")
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        text = text.replace(key, "***") if key else text
        try:
            found = parse_json(text, "answer")
        except ValueError:
            found = text
        for name in ("error", "detail", "message"):
            found = found.get(name, found) if isinstance(found, dict) else found
        line = printable(" ".join(str(found).split()))
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."


def _pause(attempt: int, asked_for: float | None) -> float:
    """Seconds to wait: what the server asks for, else twice as long each time, not all threads at once."""
    own = _FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25)
    return float(min(max(own, asked_for or 0.0), _LONGEST_PAUSE))


def _seconds(header: str | None) -> float | None:
    try:
        return max(float(header), 0.0) if header else None
    except ValueError:
        return None  # a date
