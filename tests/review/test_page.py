"""The review page: who is let in, and how a real browser uses it."""

from __future__ import annotations

import base64
import hashlib
import html
import http.client
import io
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hfcap.data.marks import Mark, add_marks, marks_of
from hfcap.errors import UserError
from hfcap.files import read_json_lines
from hfcap.pages import local_server
from hfcap.pages.local_server import Answer, LocalServer, serving_locally
from hfcap.review import ReviewFolder, ReviewPage
from hfcap.review.folder import PAIRS_FILE
from tests.browser import chromium
from tests.data.sample_images import write_jpeg
from tests.interrupting import serving

HOSTILE = "</textarea><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos <b>"
    for number in range(4):
        write_jpeg(photos / f"{number}.jpg", f"hsl({90 * number}, 80%, 50%)", size=(900, 600))
    (photos / "0.txt").write_text("a red square\n")
    (photos / "1.txt").write_text(f"{HOSTILE}\n")
    (photos / "2.txt").write_text("a blue\n")
    add_marks(photos, {"2.jpg": Mark("score -2.1 is below -1.5")})
    return photos


@pytest.fixture
def server(folder: Path) -> Iterator[LocalServer]:
    with serving_locally(ReviewPage(ReviewFolder(folder))) as running:
        yield running


def ask(
    address: str, method: str = "GET", path: str = "", body: Any = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and content; headers as keywords with underscores."""
    parts = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"Host": parts.netloc, "Origin": f"http://{parts.netloc}", "Content-Type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, parts.path + path, content, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_only_whoever_knows_the_address_is_let_in(server: LocalServer, folder: Path) -> None:
    parts = urllib.parse.urlsplit(server.address)
    assert parts.hostname == "127.0.0.1" and len(parts.path.strip("/")) >= 20
    assert ask(server.address)[0] == 200
    base = f"http://{parts.netloc}"
    for path in ("/", "/items", "/image/0", f"{parts.path[:-2]}/items", "/x/items", "//"):
        assert ask(base, path=path)[0] == 403, path
    # A name of a stranger that resolves to this machine, and another port.
    assert ask(server.address, path="items", Host=f"evil.example:{parts.port}")[0] == 403
    assert ask(server.address, path="items", Host="127.0.0.1:1")[0] == 403
    assert ask(server.address, path="items", Host=f"localhost:{parts.port}")[0] == 200
    edit = {"number": 0, "text": "owned", "version": ReviewFolder(folder).item(0).version}
    for wrong in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Content_Type": "text/plain"},
    ):
        assert ask(server.address, "POST", "save", edit, **wrong)[0] == 403, wrong
    assert (folder / "0.txt").read_text() == "a red square\n"
    assert ask(server.address, "POST", "save", edit)[0] == 200
    assert (folder / "0.txt").read_text() == "owned\n"


def test_requests_that_no_page_of_ours_sends(server: LocalServer, folder: Path) -> None:
    version = ReviewFolder(folder).item(0).version
    good = {"number": 0, "text": "x", "version": version}
    for wrong in ({"number": 4}, {"number": -1}, {"number": True}, {"number": "0"}, {"text": 1}, {"version": None}):
        status, _, content = ask(server.address, "POST", "save", {**good, **wrong})
        assert status == 422 and json.loads(content)["error"].startswith("request: "), wrong
    for body in (b"[1]", b"{", b"\xff", b'{"text": "\\ud800"}', b"[" * 100_000):
        assert ask(server.address, "POST", "save", body)[0] == 422
    assert ask(server.address, "POST", "save", b"", Content_Length=str(2**21))[0] == 413
    assert ask(server.address, "POST", "other", good)[0] == 404
    for path in ("other", "image/4", "image/-1", "image/0/..", "image/../items", "small/x", "image/"):
        assert ask(server.address, path=path)[0] == 404, path
    assert ask(server.address, "DELETE", "items")[0] == 501
    assert (folder / "0.txt").read_text() == "a red square\n"


def test_what_the_browser_is_told(server: LocalServer, folder: Path) -> None:
    status, headers, page = ask(server.address)
    [script] = re.findall(rb"<script>(.*)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert status == 200 and f"script-src 'sha256-{digest}';" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe-inline'; img" in str(headers)
    assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Content-Type-Options"] == "nosniff"
    assert b"photos &lt;b&gt;" in page and b"photos <b>" not in page
    _, headers, content = ask(server.address, path="image/0")
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG" and image.size == (900, 600)
    with Image.open(io.BytesIO(ask(server.address, path="small/0")[2])) as image:
        assert max(image.size) == 160
    (folder / "3.jpg").write_bytes(b"<svg onload=alert(1)>")
    assert ask(server.address, path="image/3")[0] == 404
    (folder / "review.jsonl").write_text("no JSON")
    assert ask(server.address, path="items")[0] == 422


def test_saving_what_another_program_changed_is_a_conflict(server: LocalServer, folder: Path) -> None:
    seen = ReviewFolder(folder).item(0)
    (folder / "0.txt").write_text("meanwhile")
    status, _, content = ask(server.address, "POST", "save", {"number": 0, "text": "mine", "version": seen.version})
    assert status == 409 and json.loads(content)["item"]["text"] == "meanwhile"
    assert (folder / "0.txt").read_text() == "meanwhile"


def test_the_command_says_its_address_and_ends_with_ctrl_c(folder: Path) -> None:
    with serving("review", str(folder)) as (said, _):
        address = re.search(r"4 images; open this address, Ctrl-C ends: (http://127\.0\.0\.1:\d+/[\w-]+/)", said)
        assert address is not None, said
        assert b"photos &lt;b&gt;" in ask(address[1])[2]


def test_a_port_that_is_taken(server: LocalServer, folder: Path) -> None:
    port = urllib.parse.urlsplit(server.address).port
    taken = pytest.raises(UserError, match=f"--port {port}: cannot be listened on")
    with taken, serving_locally(ReviewPage(ReviewFolder(folder)), port):
        pass


def test_many_at_once_write_whole_files(server: LocalServer, folder: Path) -> None:
    def edit(number: int) -> None:
        for _ in range(20):
            item = json.loads(ask(server.address, path="items")[2])[number % 4]
            ask(server.address, "POST", "save", {**item, "text": f"caption {number} " * 50})

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        text = (folder / f"{number}.txt").read_text().strip()
        assert text in {" ".join([f"caption {one}"] * 50) for one in (number, number + 4)}
    assert list(read_json_lines(folder / PAIRS_FILE, "pairs"))


# ---- in a browser -----------------------------------------------------------------------------------------------

_DRIVER = """
const wait = until => new Promise(done => {
  const look = () => until() ? done() : setTimeout(look, 20); look();
});
const press = (key, target, more) => target.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...more}));
const write = text => { at("text").value = text; at("text").dispatchEvent(new Event("input", {bubbles: true})); };
(async () => {
  const found = {};
  await wait(() => document.body.dataset.ready);
  await wait(() => at("image").complete && at("image").naturalWidth > 0);
  found.first = [at("name").textContent, at("text").value, at("place").textContent, at("previous").disabled];
  press("j", document.body);
  found.hostile = at("text").value;
  press("k", document.body);
  press("e", document.body);
  found.focus = document.activeElement.id;
  write("a red square by hand");
  press("a", at("text"));
  found.state = at("state").textContent;
  press("Enter", at("text"), {ctrlKey: true});
  await wait(() => at("name").textContent === "1.jpg");
  found.saved = at("list").querySelector("small").textContent;
  press("Escape", at("text"));
  found.blurred = document.activeElement.id;
  at("filter").value = "missing"; at("filter").dispatchEvent(new Event("change"));
  found.missing = [at("name").textContent, at("place").textContent, at("accept").disabled];
  at("filter").value = "flagged"; at("filter").dispatchEvent(new Event("change"));
  found.flagged = [at("name").textContent, at("why").textContent];
  press("a", document.body);
  await wait(() => at("state").textContent === "accepted");
  at("filter").value = "all"; at("filter").dispatchEvent(new Event("change"));
  found.images = [...document.images].map(image => image.getAttribute("src")).slice(0, 2);
  found.title = document.title;
  found.width = innerWidth;
  found.scroll = document.documentElement.scrollWidth;
  found.wide = [...document.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
  found.low = [...document.querySelectorAll(".keys button")].filter(e => e.offsetHeight < 40).length;
  found.paper = getComputedStyle(document.body).backgroundColor;
  (window.parent === window ? document : window.parent.document).body.dataset.found = JSON.stringify(found);
})();
"""


class DrivenPage(ReviewPage):
    """The page with a script at its end that uses it; at `phone` in a frame as narrow as a telephone."""

    def get(self, path: str) -> Answer | None:
        if path == "phone":
            frame = b'<!doctype html><body><iframe src="." width="390" height="844" style="border:0"></iframe>'
            return Answer(frame, "text/html", policy="default-src 'self' 'unsafe-inline'")
        answer = super().get(path)
        if path or answer is None:
            return answer
        driver = b"<script>" + _DRIVER.encode() + b"</script></body>"
        digest = base64.b64encode(hashlib.sha256(_DRIVER.encode()).digest()).decode()
        policy = answer.policy.replace("frame-ancestors 'none'", "frame-ancestors 'self'")
        policy = policy.replace("script-src ", f"script-src 'sha256-{digest}' ")
        return replace(answer, content=answer.content.replace(b"</body>", driver), policy=policy)


@pytest.mark.parametrize(("place", "dark"), [("", False), ("phone", True)], ids=["desktop", "telephone"])
def test_a_browser_uses_it_by_keys(
    place: str, dark: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    framed = {name: value for name, value in local_server._HEADERS.items() if name != "X-Frame-Options"}
    monkeypatch.setattr(local_server, "_HEADERS", framed)
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    with serving_locally(DrivenPage(ReviewFolder(folder))) as running:
        shown = chromium(
            running.address + place, tmp_path, "--virtual-time-budget=20000", "--window-size=1200,900", dark=dark
        )
    said = re.search(r'data-found="([^"]*)"', shown)
    assert said is not None, shown[-3000:]
    found = json.loads(html.unescape(said[1]))
    assert found["first"] == ["0.jpg", "a red square", "1 of 4", True]
    assert found["hostile"] == HOSTILE and found["title"] == "Captions of photos <b>"
    assert found["focus"] == "text" and found["state"] == "not saved" and found["saved"] == "accepted"
    assert found["blurred"] == ""
    assert found["missing"] == ["3.jpg", "1 of 1", True]
    assert found["flagged"] == ["2.jpg", "score -2.1 is below -1.5"]
    assert found["scroll"] <= found["width"] and found["wide"] == [] and found["low"] == 0
    assert found["width"] == (390 if place else 1200)
    assert found["paper"] == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
    after = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    assert after == {**before, "0.txt": b"a red square by hand\n"}
    assert marks_of(folder) == {"0.jpg": Mark(accepted=True), "2.jpg": Mark(accepted=True)}
    [(_, pair)] = read_json_lines(folder / PAIRS_FILE, "pairs")
    assert pair == {"file_name": "0.jpg", "chosen": "a red square by hand", "rejected": "a red square"}
