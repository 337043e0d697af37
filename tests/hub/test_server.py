"""The Hub server against raw and hostile requests, and the command that starts it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfcap.errors import UserError
from scripts.hub_server.contents import _range
from scripts.hub_server.serve import open_hub, read_accounts
from scripts.hub_server.server import HubServer
from scripts.hub_server.store import HubError, Store

CONTENT = b"0123456789" * 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub without tokens that holds alice/tiny with one file."""
    with HubServer(tmp_path / "hub", {}) as server:
        repository = server.store.create("alice/tiny", private=False)
        tree = {**repository.tree("main"), "a.txt": server.store.add_blob(CONTENT)}
        repository.add_commit("refs/heads/main", repository.resolve("main"), tree, "files", "", "alice")
        (tmp_path / "secret.txt").write_text("TOP SECRET")
        yield server


def ask(server: HubServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    """One request exactly as written: status, body, headers."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)  # type: ignore[arg-type]
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, content, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    result = answer.status, answer.read(), answer.headers
    connection.close()
    return result


FILE = "/alice/tiny/resolve/main/a.txt"


def test_ranges_and_etags(server: HubServer) -> None:
    status, body, headers = ask(server, "GET", FILE)
    etag = hashlib.sha1(b"blob 100\0" + CONTENT).hexdigest()
    assert (status, body, headers["ETag"]) == (200, CONTENT, f'"{etag}"')
    assert headers["X-Repo-Commit"] == server.store.repository("alice/tiny").resolve("main")
    for asked, start, end in (("10-19", 10, 20), ("90-", 90, 100), ("-5", 95, 100), ("95-500", 95, 100)):
        status, body, headers = ask(server, "GET", FILE, Range=f"bytes={asked}")
        assert (status, body) == (206, CONTENT[start:end])
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/100"
    assert ask(server, "GET", FILE, Range="bytes=100-")[0] == 416
    assert ask(server, "GET", FILE, If_None_Match=f'"{etag}"')[:2] == (304, b"")
    status, body, headers = ask(server, "HEAD", FILE)
    assert (status, body, headers["Content-Length"]) == (200, b"", "100")


@given(st.text("0123456789-=bytes, ", max_size=20), st.integers(0, 1000))
def test_a_range_is_always_inside_the_file(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            start, end = _range(header, size)
        except HubError as error:
            assert error.status == 416
        else:
            assert 0 <= start <= end <= size


@pytest.mark.parametrize(
    "path",
    [
        "/%2e%2e/%2e%2e/resolve/main/secret.txt",
        "/alice/%2e%2e%2f%2e%2e%2fx/resolve/main/secret.txt",
        "/alice/tiny/resolve/main/%2e%2e/%2e%2e/secret.txt",
        "/alice/tiny/resolve/..%2f..%2fsettings/a.txt",
        "/alice/tiny/resolve/..%2fsettings/a.txt",
        "/api/models/..%2f../tiny",
        "/api/models/alice/tiny/revision/..%2f..%2fsettings",
        "/api/models/alice/tiny/tree/main/%2e%2e",
        "/api/models/alice%00/tiny",
        "/../../../../etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_address_leads_out_of_the_folder(path: str, server: HubServer) -> None:
    status, body, _ = ask(server, "GET", path)
    assert status in (400, 404) and b"TOP SECRET" not in body and b"private" not in body


@pytest.mark.parametrize("name", ["..", "a/b/c", "", ".", "a..b", "x.git", "a\nb", "a b", "ä", "-a", "a" * 100])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for repo_id in (f"alice/{name}", f"{name}/tiny"):
        with pytest.raises(HubError, match="invalid repository name"):
            store.create(repo_id, private=False)
    assert list(tmp_path.iterdir()) == []


def commit_lines(*operations: dict[str, Any]) -> bytes:
    header = {"key": "header", "value": {"summary": "x"}}
    return b"\n".join(json.dumps(line).encode() for line in (header, *operations))


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a//b", ".git/config", "a\\b", "a\u0000b", "", 5])
def test_no_file_of_a_commit_has_a_dangerous_name(path: object, server: HubServer) -> None:
    body = commit_lines({"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}})
    assert ask(server, "POST", "/api/models/alice/tiny/commit/main", body)[0] == 400
    assert len(server.store.repository("alice/tiny").history("main")) == 2


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/repos/create", b"not json"),
        ("POST", "/api/repos/create", b"[1]"),
        ("POST", "/api/repos/create", {"name": None}),
        ("POST", "/api/repos/create", {"name": "../x", "organization": ".."}),
        ("POST", "/api/repos/create", {"name": "x", "type": "kernel"}),
        ("POST", "/api/repos/move", {}),
        ("DELETE", "/api/repos/delete", {"name": ".."}),
        ("POST", "/api/models/alice/tiny/commit/main", b""),
        ("POST", "/api/models/alice/tiny/commit/main", b"{}"),
        ("POST", "/api/models/alice/tiny/commit/main", commit_lines({"key": "file", "value": {"path": "x"}})),
        ("POST", "/api/models/alice/tiny/preupload/main", {"files": [{"path": "x"}]}),
        ("POST", "/alice/tiny.git/info/lfs/objects/batch", {"objects": [{"oid": "../x", "size": 1}]}),
        ("POST", "/api/models/alice/tiny/branch/..%2f..%2fx", {}),
        ("POST", "/api/models/alice/tiny/branch/a%20b", {}),
        ("PUT", "/api/models/alice/tiny/settings", {"gated": "yes"}),
        ("GET", "/api/models?limit=many", None),
    ],
)
def test_malformed_requests_are_refused(method: str, path: str, body: Any, server: HubServer) -> None:
    before = sorted(server.store.root.rglob("*"))
    assert ask(server, method, path, body)[0] in (400, 404)
    assert sorted(server.store.root.rglob("*")) == before
    assert ask(server, "GET", FILE)[0] == 200


def test_large_files_need_a_given_address_and_the_right_bytes(server: HubServer) -> None:
    content = b"x" * 100_000
    oid = hashlib.sha256(content).hexdigest()
    address = f"/lfs-storage/{oid}/alice/"
    assert ask(server, "PUT", address + "0" * 64, content)[0] == 403
    signed = address + server.upload_signature(oid, "alice")
    assert ask(server, "PUT", signed, b"y" * 100_000)[0] == 400
    assert list((server.store.root / "lfs").iterdir()) == []
    with socket.create_connection(server.server_address[:2]) as half:  # type: ignore[arg-type]
        half.sendall(f"PUT {signed} HTTP/1.1\r\nContent-Length: 100000\r\n\r\nxxx".encode())
        half.shutdown(socket.SHUT_WR)
        assert b" 400 " in half.recv(1000)
    assert list((server.store.root / "lfs").iterdir()) == []
    pieces = iter([content[:7], content[7:]])
    assert ask(server, "PUT", signed, pieces)[0] == 200  # chunked
    assert server.store.lfs_path(oid).read_bytes() == content


def test_web_pages_cannot_change_anything(server: HubServer) -> None:
    body = {"name": "x", "organization": "alice"}
    assert ask(server, "POST", "/api/repos/create", body, Origin="http://evil.example")[0] == 403
    assert [repository.repo_id for repository in server.store.list()] == ["alice/tiny"]


def test_files_are_never_shown_as_pages(server: HubServer) -> None:
    headers = ask(server, "GET", FILE)[2]
    assert headers["Content-Disposition"] == "attachment" and headers["X-Content-Type-Options"] == "nosniff"


def test_accounts(tmp_path: Path) -> None:
    path = tmp_path / "accounts.txt"
    path.write_text("# who\nalice token-of-alice write club\n\nrita token-of-rita0 read\n")
    accounts = read_accounts(path)
    assert accounts["token-of-alice"].may_write("club") and not accounts["token-of-rita0"].may_write("rita")
    for text, message in (
        ("alice token-of-alice admin", "line 1: write: name"),
        ("alice short write", "line 1: the token is too short"),
        ("a token-of-alice write\nb token-of-alice read", "line 2: another account"),
        ("# nobody", "holds no account"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            read_accounts(path)
        assert "token-of" not in str(caught.value)


def test_what_is_refused_at_the_start(tmp_path: Path, server: HubServer) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    port = server.server_address[1]
    for folder, host, port_, message in (
        ("mine", "127.0.0.1", 0, "something else than a Hub"),
        ("new", "0.0.0.0", 0, "--accounts"),
        ("new", "127.0.0.1", port, "in use"),
        ("new", "nonsense", 0, "--accounts"),
    ):
        with pytest.raises(UserError, match=message):
            open_hub(tmp_path / folder, host, port_, None, "local")
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_an_owner_that_can_own_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--owner 'a b': not a name"):
        open_hub(tmp_path / "hub", "127.0.0.1", 0, None, "a b")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/hub", "/proc/hub"])
def test_an_impossible_folder(folder: str) -> None:
    with pytest.raises(UserError, match=rf"^{folder}: .*give a (new or empty folder|folder of your own)$"):
        open_hub(Path(folder), "127.0.0.1", 0, None, "local")


def test_the_command_serves_and_stops_cleanly(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    command = [sys.executable, "-m", "scripts.hub_server", str(folder), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None and first.stderr is not None
        said = [first.stdout.readline() for _ in range(3)]
        endpoint = next(word for word in said[0].split() if word.startswith("http")).rstrip(";")
        assert f"HF_ENDPOINT={endpoint}" in said[1] and "HF_HUB_DISABLE_XET=1" in said[2]
        host, port = endpoint.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("GET", "/api/whoami-v2")
        assert json.loads(connection.getresponse().read())["name"] == "local"
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2 and "another Hub serves this folder" in second.stderr
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=20) == 0
        assert first.stderr.read() == ""
