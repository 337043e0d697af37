"""HTTP server of the loopback Hub: the routes that huggingface_hub 2.4 calls for models.

Answers follow the real Hub as far as the client looks at them: status, X-Error-Code, JSON keys, ETag and X-* headers.
Requests are recorded (`server.requests`) without their Authorization header.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import STATUS_FAULTS, FaultPlan
from tests.hub.store import HubError, Repository, Store


@dataclass(slots=True)
class User:
    """Who a token stands for."""

    name: str
    role: str = "write"
    organizations: dict[str, str] = field(default_factory=dict)

    def may_write(self, namespace: str) -> bool:
        role = "write" if namespace == self.name else self.organizations.get(namespace, "")
        return self.role == "write" and role in ("write", "admin")


@dataclass(slots=True)
class Answer:
    """One HTTP answer."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, status: int = 200) -> Answer:
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


@dataclass(slots=True)
class Request:
    """One HTTP request after routing."""

    server: HubServer
    user: User | None
    groups: dict[str, str]
    query: dict[str, str]
    body: bytes
    method: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def signed_in(self) -> User:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def repository(self, write: bool = False) -> Repository:
        """The repository of the request; refusals look like the real ones (401 instead of 404 when signed out)."""
        try:
            repository = self.server.store.repository(self.groups["repo"])
        except HubError:
            if self.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound") from None
            raise
        namespace = repository.repo_id.split("/")[0]
        settings = repository.settings()
        owns = self.user is not None and (namespace == self.user.name or namespace in self.user.organizations)
        if settings["private"] and not owns:
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not self.signed_in().may_write(namespace):
            raise HubError(403, f"You don't have the rights to write to {repository.repo_id}")
        return repository

    def refuse_if_gated(self, repository: Repository) -> None:
        namespace = repository.repo_id.split("/")[0]
        owns = self.user is not None and (namespace == self.user.name or namespace in self.user.organizations)
        if repository.settings()["gated"] and not owns:
            raise HubError(403 if self.user else 401, "Access to this model is restricted", "GatedRepo")


Route = Callable[[Request], Answer]


class HubServer(ThreadingHTTPServer):
    """A Hub on a free loopback port; `store` is what a person would see on the site."""

    daemon_threads = True

    def __init__(self, root: Path, tokens: dict[str, User], slow_seconds: float = 0.3) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = Store(root)
        self.tokens = tokens
        self.faults = FaultPlan()
        self.slow_seconds = slow_seconds
        self.requests: list[tuple[str, str]] = []
        """(route name, method and path) of every request."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def calls(self, name: str) -> int:
        """How many requests a route has had."""
        return sum(1 for route, _ in self.requests if route == name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about clients that went away."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: otherwise each answer waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _user(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None
        if token not in self.server.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.server.tokens[token]

    def _answer(self) -> None:
        from tests.hub.routes import ROUTES

        parts = urlsplit(self.path)
        body = self._read_body()
        for name, method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match is None or self.command not in method:
                continue
            self.server.requests.append((name, f"{self.command} {parts.path}"))
            query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
            groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
            self._run(name, lambda: route(Request(self.server, self._user(), groups, query, body, self.command)))  # noqa: B023
            return
        self.server.requests.append(("unknown", f"{self.command} {parts.path}"))
        self._send(Answer.of({"error": f"no such route: {self.command} {parts.path}"}, 404))

    def _run(self, name: str, route: Callable[[], Answer]) -> None:
        fault = self.server.faults.take(name)
        if fault == "drop_before":
            self._drop()
            return
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        try:
            if fault in STATUS_FAULTS:
                raise HubError(*STATUS_FAULTS[fault])
            answer = route()
        except HubError as error:
            answer = Answer.of({"error": error.message}, error.status)
            answer.headers |= {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            if error.status == 429:
                answer.headers["Retry-After"] = "0"
        if fault == "drop_after":
            self._drop()
        else:
            self._send(answer, truncated=fault == "truncated")

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, answer: Answer, truncated: bool = False) -> None:
        self.send_response(answer.status)
        length = answer.headers.pop("Content-Length", str(len(answer.body)))
        for key, value in {**answer.headers, "Content-Length": length}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if truncated else answer.body)
        self.wfile.flush()
        if truncated:
            self._drop()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer
