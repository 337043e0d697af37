"""Pictures from the web, out of a loopback server: what is fetched, what is refused, and within which bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from hfcap.data import web_images
from hfcap.data.images import UnreadableImageError, decode_image
from hfcap.data.web_images import MAX_REDIRECTS, web_image
from hfcap.errors import UserError
from tests.data.http_server import FileServer, serving
from tests.data.pictures import encoded

PICTURE = encoded(Image.new("RGB", (8, 6), "blue"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(web_images, "PAUSE_SECONDS", 0.0)
    with serving(a_png=PICTURE) as running:
        yield running


def refused(url: str) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        web_image(url).read()
    assert str(caught.value).startswith(url)
    return str(caught.value)


def test_the_bytes_of_a_picture(server: FileServer) -> None:
    image = web_image(f"{server.url}/a.png")
    assert image.read() == PICTURE and decode_image(image).size == (8, 6)
    assert image.describe() == f"{server.url}/a.png"


def test_addresses_are_encoded_as_servers_want_them(server: FileServer) -> None:
    server.files["/caf%C3%A9%20au/x.png?a=1%202"] = PICTURE
    assert web_image(f"{server.url}/café au/x.png?a=1%202#part").read() == PICTURE


def test_what_the_server_does_not_give_out(server: FileServer) -> None:
    assert refused(f"{server.url}/gone.png").endswith("the server answers 404 Not Found")
    assert len(server.gets("/gone.png")) == 1  # it would say the same again


def test_an_overloaded_server_is_asked_once_more(server: FileServer) -> None:
    server.failures["/a.png"] = [503]
    assert web_image(f"{server.url}/a.png").read() == PICTURE
    server.failures["/a.png"] = [503, 429, 503]
    assert "the server answers 429 Too Many Requests" in refused(f"{server.url}/a.png")
    assert server.failures["/a.png"] == [503]


def test_a_connection_that_breaks(server: FileServer) -> None:
    server.cut_after["/a.png"] = [10]
    assert web_image(f"{server.url}/a.png").read() == PICTURE
    server.cut_after["/a.png"] = [10, 12]
    assert f"broke after 12 of {len(PICTURE)} bytes" in refused(f"{server.url}/a.png")
    assert "cannot be fetched" in refused("http://127.0.0.1:9/a.png")


def test_redirects_end_somewhere(server: FileServer) -> None:
    server.redirects |= {"/old.png": "a.png", "/older.png": f"{server.url}/old.png", "/circle": "/circle"}
    assert web_image(f"{server.url}/older.png").read() == PICTURE
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
            web_images._redirected(outside, outside, target)
    assert web_images._redirected(outside, outside, "/y") == "http://93.184.215.14/y"
    inside = "http://127.0.0.1:1/x"
    assert web_images._redirected(inside, inside, "http://10.0.0.1/y") == "http://10.0.0.1/y"


class Endless:
    """A server that never says how much is coming."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.sent = 0

    def read1(self, size: int) -> bytes:
        self.sent += size
        return b"x" * size


def test_size_and_time_are_bounded(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_images, "MAX_WEB_BYTES", len(PICTURE) - 1)
    assert "save the picture smaller" in refused(f"{server.url}/a.png")
    monkeypatch.setattr(web_images, "MAX_WEB_BYTES", 10**6)
    endless: Any = Endless()
    with pytest.raises(UnreadableImageError, match="more than 1,000,000 bytes"):
        web_images._content("there", endless, float("inf"))
    assert endless.sent < 1.2e6
    monkeypatch.setattr(web_images, "TOTAL_SECONDS", -1.0)
    assert "not complete after" in refused(f"{server.url}/a.png")


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
def test_what_is_no_address_of_a_picture(url: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        web_image(url)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match=r"https://\.\.\.@host/a\.png: holds a user name or password") as caught:
        web_image("https://me:secret@host/a.png")
    assert "secret" not in str(caught.value)
