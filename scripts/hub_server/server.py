"""HTTP server of the small Hub: who asks, which route answers, how bytes come in and go out.

Answers follow the real Hub as far as the client looks at them: status, X-Error-Code, JSON keys, ETag and X-* headers.
Large files are streamed in both directions. Nothing of a request is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from scripts.hub_server.messages import LARGEST_MESSAGE, Answer, BodyStream, Request, Route, User
from scripts.hub_server.store import HubError, Store

SECONDS_OF_SILENCE = 300
"""A connection on which nothing arrives for so long is closed."""


class HubServer(ThreadingHTTPServer):
    """A Hub over a folder.

    Args:
        root: folder of the repositories.
        tokens: token -> account. Empty: everybody is `owner` and may do everything.
        owner: name of the account of a Hub without tokens.
        address: host and port; port 0 takes a free one.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        root: Path,
        tokens: dict[str, User],
        owner: str = "local",
        address: tuple[str, int] = ("127.0.0.1", 0),
        handler: type[Handler] | None = None,
    ) -> None:
        super().__init__(address, handler or Handler)
        self.store = Store(root)
        self.tokens = tokens
        self.owner = owner
        self.uploads: set[tuple[str, str]] = set()
        """(account, SHA-256) of large files that were sent since the start, and may be in no commit yet."""
        self._upload_key = secrets.token_bytes(32)

    @property
    def endpoint(self) -> str:
        """Address for clients on this machine."""
        host = str(self.server_address[0])
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.server_address[1]}"

    def user_of(self, token: str) -> User | None:
        """Return who a token stands for; None for a request without one.

        Raises:
            HubError: nobody has this token.
        """
        if not self.tokens:
            names = {r.namespace for kind in ("model", "dataset", "space") for r in self.store.list(kind)}
            return User(self.owner, "write", dict.fromkeys(sorted(names - {self.owner}), "write"), everywhere=True)
        if not token:
            return None
        for known, user in self.tokens.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return user
        raise HubError(401, "Invalid credentials in Authorization header")

    def upload_signature(self, sha256: str, account: str) -> str:
        """Sign the address to which an account may send one large file: the client sends no token there."""
        return hmac.new(self._upload_key, f"{sha256} {account}".encode(), "sha256").hexdigest()

    def receive(self, stream: BodyStream, sha256: str, account: str) -> None:
        """Keep a large file under its SHA-256, only if it has it, and note who sent it."""
        target = self.store.lfs_path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".upload-", delete=False) as temporary:
            try:
                while piece := stream.read(2**20):
                    digest.update(piece)
                    temporary.write(piece)
                if digest.hexdigest() != sha256:
                    raise HubError(400, "the content does not have this SHA-256")
                temporary.flush()
                os.fsync(temporary.fileno())
                Path(temporary.name).replace(target)
                self.uploads.add((account, sha256))
            except BaseException:
                Path(temporary.name).unlink(missing_ok=True)
                raise

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about clients that went away; show mistakes of the server itself."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def _no_route(request: Request) -> Answer:
    raise HubError(404, "this Hub does not know that address")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    timeout = SECONDS_OF_SILENCE
    # Head and body in one packet: otherwise each answer waits 40 ms for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: addresses and headers may hold secrets."""

    def answer(self) -> None:
        """Find the route of a request and send its answer."""
        from scripts.hub_server.routes import ROUTES

        parts = urlsplit(self.path)
        for name, methods, pattern, route in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match is not None and self.command in methods:
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                self.run(name, partial(self._routed, name, route, groups, parts.query))
                return
        self.run("unknown", partial(self._routed, "unknown", _no_route, {}, ""))

    def run(self, name: str, work: Callable[[], Answer]) -> None:
        """Do the work of the route `name` and send its answer."""
        self.send(self.outcome(work))

    def outcome(self, work: Callable[[], Answer]) -> Answer:
        """Return the answer; a refusal becomes one, with the headers that the client looks at."""
        try:
            answer = work()
        except (HubError, KeyError, TypeError, ValueError, RecursionError) as refusal:
            # Requests of strangers may lack anything.
            error = refusal if isinstance(refusal, HubError) else HubError(400, "the request is malformed")
            answer = Answer.of({"error": error.message}, error.status)
            message = re.sub(r"[^\x20-\x7e]", "?", error.message)
            answer.headers |= {"X-Error-Message": message} | ({"X-Error-Code": error.code} if error.code else {})
        return answer

    def _routed(self, name: str, route: Route, groups: dict[str, str], query: str) -> Answer:
        headers = {key.lower(): value for key, value in self.headers.items()}
        stream = BodyStream(self.rfile, headers)  # type: ignore[arg-type]  # a buffered reader
        try:
            body = b"" if name == "lfs_upload" else stream.read_all(LARGEST_MESSAGE)
            if self.command not in ("GET", "HEAD") and "origin" in headers:
                raise HubError(403, "changes from web pages are refused")
            user = self.server.user_of(headers.get("authorization", "").removeprefix("Bearer ").strip())
            values = parse_qs(query, keep_blank_values=True)
            return route(Request(self.server, user, groups, values, headers, body, stream, self.command))
        finally:
            # What was not read would be taken for the next request.
            self.close_connection = self.close_connection or not stream.finished

    def send(self, answer: Answer, cut: bool = False) -> None:
        """Send an answer; `cut` stops in the middle of it."""
        self.send_response(answer.status)
        length = answer.length if answer.file else len(answer.body)
        for key, value in {"Content-Length": str(length), **answer.headers}.items():
            self.send_header(key, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self._send_content(answer, length // 2 if cut else length)
        self.wfile.flush()

    def _send_content(self, answer: Answer, length: int) -> None:
        if answer.file is None:
            self.wfile.write(answer.body[:length])
            return
        with answer.file.open("rb") as handle:
            handle.seek(answer.start)
            if answer.start == 0 and length == answer.length == answer.file.stat().st_size:
                shutil.copyfileobj(handle, self.wfile, 2**20)
                return
            while length > 0 and (piece := handle.read(min(length, 2**20))):
                self.wfile.write(piece)
                length -= len(piece)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer
