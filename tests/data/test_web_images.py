"""Images from the web, out of a loopback server: what is fetched, what is refused, and within which bounds."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from hfcap.data.images import UnreadableImageError, decode_image
from hfcap.data.web import web_images
from hfcap.data.web.web_images import MAX_REDIRECTS, web_image
from hfcap.errors import UserError
from tests.data.http_server import FileServer, serving
from tests.data.sample_images import encoded

IMAGE = encoded(Image.new("RGB", (8, 6), "blue"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(web_images, "PAUSE_SECONDS", 0.0)
    with serving(a_png=IMAGE) as running:
        yield running


def refused(url: str) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        web_image(url).read()
    assert str(caught.value).startswith(url)
    return str(caught.value)


def test_the_bytes_of_a_image(server: FileServer) -> None:
    image = web_image(f"{server.url}/a.png")
    assert image.read() == IMAGE and decode_image(image).size == (8, 6)
    assert image.describe() == f"{server.url}/a.png"


def test_addresses_are_encoded_as_servers_want_them(server: FileServer) -> None:
    server.files["/caf%C3%A9%20au/x.png?a=1%202"] = IMAGE
    assert web_image(f"{server.url}/café au/x.png?a=1%202#part").read() == IMAGE


def test_what_the_server_does_not_give_out(server: FileServer) -> None:
    assert refused(f"{server.url}/gone.png").endswith("the server answers 404 Not Found")
    assert len(server.gets("/gone.png")) == 1  # it would say the same again


def test_an_overloaded_server_is_asked_once_more(server: FileServer) -> None:
    server.failures["/a.png"] = [503]
    assert web_image(f"{server.url}/a.png").read() == IMAGE
    server.failures["/a.png"] = [503, 429, 503]
    assert "the server answers 429 Too Many Requests" in refused(f"{server.url}/a.png")
    assert server.failures["/a.png"] == [503]


def test_a_connection_that_breaks(server: FileServer) -> None:
    server.cut_after["/a.png"] = [10]
    assert web_image(f"{server.url}/a.png").read() == IMAGE
    server.cut_after["/a.png"] = [10, 12]
    assert f"broke after 12 of {len(IMAGE)} bytes" in refused(f"{server.url}/a.png")
    assert "cannot be fetched" in refused("http://127.0.0.1:9/a.png")


def test_redirects_end_somewhere(server: FileServer) -> None:
    server.redirects |= {"/old.png": "a.png", "/older.png": f"{server.url}/old.png", "/circle": "/circle"}
    assert web_image(f"{server.url}/older.png").read() == IMAGE
    assert f"redirected more than {MAX_REDIRECTS} times" in refused(f"{server.url}/circle")
    assert len(server.gets("/circle")) == MAX_REDIRECTS + 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://a:b@127.0.0.1/", "http://[::1"])
def test_redirects_lead_to_http_only(server: FileServer, target: str) -> None:
    server.redirects["/a.png"] = target
    assert "redirected to" in refused(f"{server.url}/a.png")


def test_strangers_do_not_send_us_into_the_local_network() -> None:
    outside = "http://93.184.215.14/x"
    for target in ("http://127.0.0.1/x", "http://10.0.0.1/", "http://169.254.169.254/latest", "http://[::1]/"):
        with pytest.raises(UnreadableImageError, match="into the local network"):
            web_images._redirected(outside, outside, target, outside=True)
    assert web_images._redirected(outside, outside, "/y", outside=True) == "http://93.184.215.14/y"
    inside = "http://127.0.0.1:1/x"
    assert web_images._redirected(inside, inside, "http://10.0.0.1/y", outside=False) == "http://10.0.0.1/y"


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("93.184.215.14", False),
        ("10.0.0.1", True),
        ("fe80::1%eth0", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", False),
        ("::ffff:127.0.0.1", True),
        ("2002:7f00:1::", True),  # 6to4 of 127.0.0.1
        ("64:ff9b::7f00:1", True),  # NAT64 of 127.0.0.1
        ("64:ff9b::5db8:d70e", False),  # NAT64 of 93.184.215.14
        ("64:ff9b:1::5db8:d70e", True),
    ],
)
def test_local_addresses_also_behind_ipv6(address: str, local: bool) -> None:
    assert web_images._is_local(address) is local


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host names -> what they mean, each time the next; all of this machine but 127.0.0.1 passes for the internet."""
    names: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        answers = names.get(host, [host])
        return real(answers.pop(0) if len(answers) > 1 else answers[0], *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(web_images, "_is_local", lambda address: address == "127.0.0.1")
    return names


@pytest.mark.skipif(sys.platform != "linux", reason="only there every 127.x.y.z is this machine")
def test_where_a_connection_leads_decides_not_what_the_name_meant_before(internet: dict[str, list[str]]) -> None:
    with serving("0.0.0.0", a_png=IMAGE) as server:
        _lead_inside(server, internet)


def _lead_inside(server: FileServer, internet: dict[str, list[str]]) -> None:
    port = server.url.rpartition(":")[2]
    outside = f"http://outside.test:{port}"
    internet["outside.test"] = ["127.0.0.2"]
    server.redirects["/next.png"] = "/a.png"
    assert web_image(f"{outside}/next.png").read() == IMAGE
    # The name is a stranger's: it means this machine as soon as the redirect is followed.
    internet["outside.test"] = ["127.0.0.2", "127.0.0.1"]
    server.redirects["/in.png"] = f"{server.url}/a.png"
    before = len(server.gets("/a.png"))
    assert "redirected from the internet into the local network" in refused(f"{outside}/in.png")
    # It means the internet when it is looked at, and this machine when it is asked.
    internet["outside.test"], internet["other.test"] = ["127.0.0.2"], ["127.0.0.2", "127.0.0.1"]
    server.redirects["/in.png"] = f"http://other.test:{port}/a.png"
    with pytest.raises(UnreadableImageError, match=r"other\.test: local, and no server"):
        web_image(f"{outside}/in.png").read()
    assert len(server.gets("/a.png")) == before
    # Who names an address of this network means it.
    assert web_image(f"{server.url}/next.png").read() == IMAGE


@pytest.mark.parametrize("url", [f"http://{'a' * 70}.test/x", "http://.test/x", "http://a..test/x", "http://a/\udcff"])
def test_impossible_names_are_a_image_that_cannot_be_read(server: FileServer, url: str) -> None:
    assert "not a possible web address" in refused(url)
    if url.isascii():
        server.redirects["/a.png"] = url
        with pytest.raises(UnreadableImageError, match="not a possible web address"):
            web_image(f"{server.url}/a.png").read()


class Endless:
    """A server that never says how much is coming."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.sent = 0

    def read1(self, size: int) -> bytes:
        self.sent += size
        return b"x" * size


def test_size_and_time_are_bounded(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "MAX_WEB_BYTES", len(IMAGE) - 1)
    assert "save the image smaller" in refused(f"{server.url}/a.png")
    monkeypatch.setattr(web_images, "MAX_WEB_BYTES", 10**6)
    endless: Any = Endless()
    with pytest.raises(UnreadableImageError, match="more than 1,000,000 bytes"):
        web_images._content("there", endless, float("inf"))
    assert endless.sent < 1.2e6
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", -1.0)
    assert "not complete after" in refused(f"{server.url}/a.png")


def test_a_size_of_thousands_of_digits(server: FileServer) -> None:
    answer: Any = Endless()
    answer.headers["Content-Length"] = "9" * 5000
    with pytest.raises(UnreadableImageError, match="more than"):
        web_images._content("there", answer, float("inf"))


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_is_never_silent_and_never_done(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            with listening.accept()[0] as connection, contextlib.suppress(OSError):
                connection.sendall(head)
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        assert "not complete after" in refused(f"http://127.0.0.1:{listening.getsockname()[1]}/a.png")
        thread.join()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///etc/passwd", "by http and https only"),
        ("hf://datasets/a/b", "by http and https only"),
        ("http:///a.png", "needs a host"),
        ("http://[::1/a.png", "not a web address"),
        ("http://host:port/a.png", "not a web address"),
    ],
)
def test_what_is_no_address_of_a_image(url: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        web_image(url)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match=r"https://\.\.\.@host/a\.png: holds a user name or password") as caught:
        web_image("https://me:secret@host/a.png")
    assert "secret" not in str(caught.value)
