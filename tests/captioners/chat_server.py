"""A small OpenAI-compatible server inside the test, which says what colour an image has, and fails as it is told."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

COLOURS = ("red", "green", "blue")


@dataclass
class Fault:
    """An answer in place of the usual one."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


@dataclass
class ChatServer:
    """Attributes that tests set and read.

    Attributes:
        faults: taken one after the other by requests for captions, before any usual answer.
        answer: changes the usual answer, whose message and finish_reason it gets.
        asked: bodies of requests for captions. paths, keys: of all requests (keys: the Authorization header).
        at_once: most requests that were answered at the same time.
    """

    address: str = ""
    models: list[str] = field(default_factory=lambda: ["colours"])
    faults: list[Fault] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice
    seconds: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"


def sent_image(body: dict[str, Any]) -> Image.Image:
    """The image in a request."""
    (content,) = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return Image.open(io.BytesIO(base64.b64decode(content["image_url"]["url"].partition(",")[2])))


def said_of(image: Image.Image) -> str:
    """The caption of an image: its strongest colour."""
    means = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert isinstance(means, tuple)
    return f"a {COLOURS[means.index(max(means))]} image"


class _Handler(BaseHTTPRequestHandler):
    chat: ChatServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._note()
        rows = [{"id": name, "object": "model"} for name in self.chat.models]
        self._send(Fault(body=json.dumps({"object": "list", "data": rows})))

    def do_POST(self) -> None:
        self._note()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.chat
        with chat.lock:
            fault = chat.faults.pop(0) if chat.faults else None
            if fault is None:
                chat.asked.append(body)
                chat.images.append(sent_image(body))
            chat.now += 1
            chat.at_once = max(chat.at_once, chat.now)
        time.sleep(chat.seconds)
        with chat.lock:
            chat.now -= 1
        if fault is not None and fault.hang_up:
            self.connection.close()
            return
        self._send(fault or Fault(body=json.dumps(self._completion(body))))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": said_of(sent_image(body))}
        choice = self.chat.answer({"message": message, "finish_reason": "stop"})
        usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
        return {"object": "chat.completion", "choices": [{"index": 0, **choice}], "usage": usage}

    def _note(self) -> None:
        self.chat.paths.append(self.path)
        self.chat.keys.append(self.headers.get("Authorization"))

    def _send(self, fault: Fault) -> None:
        content = fault.body.encode()
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)


@contextlib.contextmanager
def chatting() -> Iterator[ChatServer]:
    """A server for the length of the block."""
    chat = ChatServer()
    handler = type("Handler", (_Handler,), {"chat": chat})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        chat.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield chat
        finally:
            server.shutdown()
            thread.join()
