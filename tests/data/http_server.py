"""A loopback web server with faults on demand, for tests of downloads."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """Files by path, and what goes wrong with them.

    Attributes:
        supports_ranges: False answers every GET with the whole file.
        cut_after: per path, after how many body bytes each of the next GETs loses its connection.
        failures: per path, status codes of the next requests (HEAD or GET).
        redirects: per path, where else it is.
        etags: False sends neither ETag nor Last-Modified.
        requests: (method, path, Range header) in order of arrival.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    supports_ranges: bool = True
    etags: bool = True
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, list[int]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    bytes_sent: int = 0
    url: str = ""

    def gets(self, path: str) -> list[str | None]:
        """Range headers of the GET requests of one path."""
        return [ranges for method, asked, ranges in self.requests if method == "GET" and asked == path]


class _Handler(BaseHTTPRequestHandler):
    state: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        ranges = self.headers.get("Range")
        self.state.requests.append((self.command, self.path, ranges))
        if self.state.failures.get(self.path):
            return self._empty(self.state.failures[self.path].pop(0))
        if self.path in self.state.redirects:
            return self._empty(302, {"Location": self.state.redirects[self.path]})
        if self.path not in self.state.files:
            return self._empty(404)
        content = self.state.files[self.path]
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        if ranges and self.state.supports_ranges and self.headers.get("If-Range") in (None, etag):
            match = re.fullmatch(r"bytes=(\d+)-", ranges)
            assert match, ranges
            start = int(match[1])
            if start >= len(content):
                return self._empty(416, {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        if self.state.etags:
            self.send_header("ETag", etag)
        self.end_headers()
        if with_body:
            self._send(content[start:])

    def _send(self, body: bytes) -> None:
        cuts = self.state.cut_after.get(self.path, [])
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
        self.state.bytes_sent += len(body)

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serving(bind: str = "127.0.0.1", /, **files: bytes) -> Iterator[FileServer]:
    """Serve on a free port, of loopback unless `bind` says more; keyword names become paths (`a_zip` -> `/a.zip`)."""
    server = FileServer({"/" + name.replace("_", "."): content for name, content in files.items()})
    http_server = ThreadingHTTPServer((bind, 0), type("Handler", (_Handler,), {"state": server}))
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http_server.server_address[1]}"
    try:
        yield server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()
