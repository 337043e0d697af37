"""A large file belongs to who sent it and to the repositories that have it; hash and size alone give it to nobody."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from tests.hub.test_server import ask as ask_server
from tests.hub_server import Hub

SECRET = b"private weights" * 1000


def ask(hub: Hub, method: str, path: str, body: Any, token: str | None = None) -> tuple[int, Any]:
    """Status and answer of one request; a list is sent as lines of JSON."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if isinstance(body, list):
        body = "".join(json.dumps(line) + "\n" for line in body).encode()
    status, answer, _ = ask_server(hub, method, path, body, **headers)
    return status, json.loads(answer or b"{}")


def put(api: HfApi, repo_id: str, content: bytes = SECRET) -> None:
    operations = [CommitOperationAdd("model.safetensors", content)]
    api.create_commit(repo_id, operations, commit_message="weights")


@pytest.fixture
def private(hub: Hub) -> str:
    """Alice's private repository with a large file; returns the SHA-256 of the file."""
    alice = HfApi()
    alice.create_repo("alice/private", private=True)
    put(alice, "alice/private")
    return hashlib.sha256(SECRET).hexdigest()


def test_hash_and_size_give_nobody_a_private_file(hub: Hub, private: str) -> None:
    mallory = HfApi(token=hub.mallory)
    mallory.create_repo("mallory/mine")
    value = {"path": "a.safetensors", "algo": "sha256", "oid": private, "size": len(SECRET)}
    lines = [{"key": "header", "value": {"summary": "steal"}}, {"key": "lfsFile", "value": value}]
    assert ask(hub, "POST", "/api/models/mallory/mine/commit/main", lines, token=hub.mallory)[0] == 400
    assert "a.safetensors" not in hub.store.repository("mallory/mine").tree("main")
    # Nor does the server say whether somebody has such a file: it asks for the content, as of any other.
    objects = {"objects": [{"oid": private, "size": len(SECRET)}]}
    status, answer = ask(hub, "POST", "/mallory/mine.git/info/lfs/objects/batch", objects, token=hub.mallory)
    assert status == 200 and "actions" in answer["objects"][0]
    verify = {"oid": private, "size": len(SECRET)}
    assert ask(hub, "POST", "/lfs-storage/models/mallory/mine/verify", verify, token=hub.mallory)[0] == 400


def test_who_has_the_content_may_have_the_file(hub: Hub, private: str, tmp_path: Path) -> None:
    mallory = HfApi(token=hub.mallory)
    mallory.create_repo("mallory/mine")
    put(mallory, "mallory/mine")
    found = hf_hub_download("mallory/mine", "model.safetensors", local_dir=tmp_path, token=hub.mallory)
    assert Path(found).read_bytes() == SECRET


def test_what_a_repository_has_is_not_sent_again(hub: Hub, private: str) -> None:
    sent = hub.calls("lfs_upload")
    hub.uploads.clear()  # as after a restart of the server
    alice = HfApi()
    alice.create_commit(
        "alice/private", [CommitOperationAdd("again.safetensors", SECRET)], commit_message="the same file again"
    )
    assert hub.calls("lfs_upload") == sent
    assert {"model.safetensors", "again.safetensors"} <= set(hub.store.repository("alice/private").tree("main"))


def test_an_upload_address_is_for_one_account(hub: Hub, private: str) -> None:
    content = b"other weights" * 1000
    oid = hashlib.sha256(content).hexdigest()
    objects = {"objects": [{"oid": oid, "size": len(content)}]}
    _, answer = ask(hub, "POST", "/alice/private.git/info/lfs/objects/batch", objects, token=hub.alice)
    path = answer["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    assert "/alice/" in path
    assert ask(hub, "PUT", path.replace("/alice/", "/mallory/"), content)[0] == 403
    assert ask(hub, "PUT", path, content)[0] == 200
    assert ("alice", oid) in hub.uploads and ("mallory", oid) not in hub.uploads


def test_a_file_that_is_not_there_cannot_be_committed(hub: Hub, private: str) -> None:
    alice = HfApi()
    value = {"path": "x.safetensors", "algo": "sha256", "oid": "0" * 64, "size": 1}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": value}]
    assert ask(hub, "POST", "/api/models/alice/private/commit/main", lines, token=hub.alice)[0] == 400
    assert alice.file_exists("alice/private", "model.safetensors")
