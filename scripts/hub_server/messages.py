"""Requests and answers of the small Hub, apart from the server that receives them and the routes that answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from scripts.hub_server.store import HubError, Repository, Store

LARGEST_MESSAGE = 512 * 2**20
"""Bytes of a request that is held in memory; large files have a route of their own and are streamed."""


@dataclass(frozen=True, slots=True)
class User:
    """Who a token stands for.

    Attributes:
        role: "write" or "read", as the Hub's tokens have.
        organizations: name -> the user's role there.
        everywhere: may write in every namespace (a Hub without tokens).
    """

    name: str
    role: str = "write"
    organizations: dict[str, str] = field(default_factory=dict)
    everywhere: bool = False

    def belongs_to(self, namespace: str) -> bool:
        """Whether the user sees private repositories of a namespace."""
        return self.everywhere or namespace == self.name or namespace in self.organizations

    def may_write(self, namespace: str) -> bool:
        """Whether the user may change repositories of a namespace."""
        role = "write" if self.everywhere or namespace == self.name else self.organizations.get(namespace, "")
        return self.role == "write" and role in ("write", "admin")


@dataclass(slots=True)
class Answer:
    """One HTTP answer: `body`, or `length` bytes of `file` from `start`."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None
    start: int = 0
    length: int = 0

    @classmethod
    def of(cls, value: Any, status: int = 200) -> Answer:
        """Answer with JSON."""
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


class BodyStream:
    """The bytes of a request's body, plain or chunked, never more than it has."""

    def __init__(self, source: BinaryIO, headers: dict[str, str]) -> None:
        self._source = source
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise HubError(400, "invalid Content-Length")
        self._left = 0 if self._chunked else int(length)
        self.finished = not self._chunked and self._left == 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; nothing at the end.

        Raises:
            HubError: the client stopped in the middle.
        """
        if self._chunked and self._left == 0 and not self.finished:
            self._next_chunk()
        if self.finished:
            return b""
        content = self._source.read(min(size, self._left))
        if not content:
            raise HubError(400, "the request ends in the middle")
        self._left -= len(content)
        if self._left == 0:
            if self._chunked:
                self._source.readline()
            else:
                self.finished = True
        return content

    def _next_chunk(self) -> None:
        line = self._source.readline(1000).split(b";")[0].strip()
        if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", line):
            raise HubError(400, "invalid chunk")
        self._left = int(line, 16)
        if self._left == 0:
            self._source.readline()
            self.finished = True

    def read_all(self, limit: int) -> bytes:
        """Return everything.

        Raises:
            HubError: more than `limit` bytes.
        """
        pieces, total = [], 0
        while piece := self.read(2**20):
            total += len(piece)
            if total > limit:
                raise HubError(413, "the request is too large")
            pieces.append(piece)
        return b"".join(pieces)


class Hub(Protocol):
    """What routes ask of the server that received a request."""

    store: Store
    uploads: set[tuple[str, str]]

    @property
    def endpoint(self) -> str:
        """Address for clients on this machine."""

    def upload_signature(self, sha256: str, account: str) -> str:
        """Sign the address to which an account may send one large file."""

    def receive(self, stream: BodyStream, sha256: str, account: str) -> None:
        """Keep a large file under its SHA-256."""


@dataclass(slots=True)
class Request:
    """One HTTP request after routing.

    Attributes:
        groups: named parts of the path, decoded.
        body: empty for the route that receives large files, which reads `stream`.
    """

    server: Hub
    user: User | None
    groups: dict[str, str]
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    stream: BodyStream
    method: str

    @property
    def kind(self) -> str:
        """model, dataset or space."""
        return (self.groups.get("kind") or "models").rstrip("/").removesuffix("s")

    @property
    def base_url(self) -> str:
        """This server as the client reached it."""
        host = self.headers.get("host", "")
        return f"http://{host}" if re.fullmatch(r"[\w.:\[\]-]+", host) else self.server.endpoint

    def parameter(self, name: str) -> str | None:
        """Return the last value of a query parameter."""
        return self.query[name][-1] if name in self.query else None

    def json(self) -> dict[str, Any]:
        """Return the body as JSON object."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "the request is not JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "the request is not a JSON object")
        return value

    def signed_in(self) -> User:
        """Return who asks; refuse strangers."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def repository(self, write: bool = False) -> Repository:
        """The repository of the request; refusals look like the real ones (401 instead of 404 when signed out)."""
        try:
            repository = self.server.store.repository(self.groups["repo"], self.kind)
        except HubError as error:
            if self.user is None and error.status == 404:
                raise HubError(401, "Invalid username or password.", "RepoNotFound") from None
            raise
        if repository.settings()["private"] and not self._belongs_to(repository):
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not self.signed_in().may_write(repository.namespace):
            raise HubError(403, f"You don't have the rights to write to {repository.repo_id}")
        return repository

    def refuse_if_gated(self, repository: Repository) -> None:
        """Refuse files of a gated repository to people outside its namespace."""
        if repository.settings()["gated"] and not self._belongs_to(repository):
            raise HubError(403 if self.user else 401, "Access to this model is restricted", "GatedRepo")

    def _belongs_to(self, repository: Repository) -> bool:
        return self.user is not None and self.user.belongs_to(repository.namespace)


Route = Callable[[Request], Answer]
