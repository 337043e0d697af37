"""A page for one person on this machine: a server on 127.0.0.1 whose address nobody else knows.

Pages of others in the same browser can send requests here. They do not know the token in the address, and what they
send names another host (a name that resolves to 127.0.0.1) or another origin: all three are checked.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from hfcap.errors import UserError
from hfcap.files import parse_json
from hfcap.pages.rendering import render_page, script_hash

_HOST = "127.0.0.1"
_MAX_BODY = 2**20
_SECONDS = 30
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Answer:
    """What the browser gets.

    Attributes:
        policy: Content-Security-Policy.
    """

    content: bytes
    kind: str
    status: HTTPStatus = HTTPStatus.OK
    policy: str = "default-src 'none'"


def json_answer(value: Any, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """Return a value as JSON."""
    return Answer(json.dumps(value).encode(), "application/json", status)


def page_answer(template: str, script: str, **values: Any) -> Answer:
    """Return a page (see `render_page`) whose own script, images and requests are allowed, and nothing else."""
    page = render_page(template, script, **values)
    policy = (
        f"default-src 'none'; script-src '{script_hash(script)}'; style-src 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Answer(page.encode(), "text/html; charset=utf-8", policy=policy)


class LocalPage(Protocol):
    """What a page answers; requests come from several threads."""

    def get(self, path: str) -> Answer | None:
        """Return what is at a path, "" for the page itself; None where nothing is."""
        ...

    def post(self, path: str, value: Mapping[str, Any]) -> Answer | None:
        """Do what the page asks for."""
        ...


@dataclass
class LocalServer:
    """A running server.

    Attributes:
        address: with the token; whoever has it can use the page.
    """

    address: str
    _server: ThreadingHTTPServer = field(repr=False)

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        stop = threading.Event()
        while not stop.wait(3600):
            pass


@contextmanager
def serving_locally(page: LocalPage, port: int | None = None) -> Iterator[LocalServer]:
    """Serve a page on this machine for the length of the block.

    Args:
        port: None = any free one.

    Raises:
        UserError: the port is taken.
    """
    token = secrets.token_urlsafe(16)
    handler = type("Handler", (_Handler,), {"page": page, "token": token, "timeout": _SECONDS})
    try:
        server = ThreadingHTTPServer((_HOST, port or 0), handler)
    except OSError as error:
        raise UserError(f"--port {port}: cannot be listened on ({error.strerror}); give another one") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield LocalServer(f"http://{_HOST}:{server.server_address[1]}/{token}/", server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _object(body: bytes) -> dict[str, Any]:
    value = parse_json(body.decode("utf-8", "replace"), "request")
    if not isinstance(value, dict):
        raise UserError("request: must be a JSON object")
    return value


class _Handler(BaseHTTPRequestHandler):
    page: LocalPage
    token: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with what the page has."""
        path = self._path()
        if path is not None:
            self._answer(lambda: self.page.get(path))

    def do_POST(self) -> None:
        """Let the page do something, where its own script asks."""
        path = self._path()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        own_origin = self.headers.get("Origin") == f"http://{self.headers.get('Host')}"
        if not own_origin or self.headers.get("Content-Type", "").partition(";")[0] != "application/json":
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not length.isdecimal() or int(length) > _MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            body = self.rfile.read(int(length))
            self._answer(lambda: self.page.post(path, _object(body)))

    def _answer(self, ask: Callable[[], Answer | None]) -> None:
        try:
            answer = ask()
        except UserError as error:
            answer = json_answer({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
        except OSError as error:
            answer = json_answer({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
        self._send(answer)

    def _path(self) -> str | None:
        """Return what follows the token; None where the request was refused."""
        port = self.connection.getsockname()[1]
        _, token, path = (*self.path.split("/", 2), "", "")[:3]
        known = secrets.compare_digest(token.encode(), self.token.encode())
        if self.headers.get("Host") not in (f"{_HOST}:{port}", f"localhost:{port}") or not known:
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        return path.partition("?")[0]

    def _send(self, answer: Answer | None) -> None:
        if answer is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        self.send_response(answer.status)
        headers = {**_HEADERS, "Content-Type": answer.kind, "Content-Security-Policy": answer.policy}
        for name, value in {**headers, "Content-Length": str(len(answer.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    def _refuse(self, status: HTTPStatus) -> None:
        # A body that was not read would be taken for the next request.
        self.close_connection = True
        self._send(json_answer({"error": status.phrase}, status))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the address is a secret, and the terminal is the person's."""
