"""Every fault at every call of a publication: afterwards all or nothing is visible, and a rerun completes."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils._runtime import is_xet_available

from hfcap.errors import StoppedError, UserError, WorkError
from hfcap.publishing import hub as hub_calls
from hfcap.publishing.push import push_folder
from hfcap.publishing.staging import stage_files
from hfcap.run_directory.paths import RunDirectory
from scripts.hub_server.messages import BodyStream
from scripts.hub_server.store import HubError
from tests.hub.faults import KINDS
from tests.hub_server import Hub

CALLS = [
    "whoami",
    "repo_info",
    "create_repo",
    "validate_yaml",
    "preupload",
    "lfs_batch",
    "lfs_upload",
    "commit",
    "tree",
]
FOR_EVER = 1000
CASES = [(call, kind, 1) for call in CALLS for kind in KINDS]
CASES += [(call, kind, FOR_EVER) for call in CALLS for kind in ("401", "503", "drop_after")]


@pytest.fixture(scope="module")
def staged(finished_run: RunDirectory) -> Path:
    return stage_files(finished_run, verifiable=False)


@pytest.mark.parametrize(("call", "kind", "times"), CASES)
def test_everything_or_nothing(
    call: str, kind: str, times: int, staged: Path, hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.slow_seconds = 0.02
    hub.faults.add(kind, call, times)
    messages = []
    with caplog.at_level(logging.DEBUG):
        try:
            push_folder(staged, "alice/tiny", private=False)
        except (UserError, WorkError) as error:
            messages = [str(error), "".join(traceback.format_exception(error))]
    visible = published_files(hub)
    complete = {path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file()}
    assert visible in (set(), complete)
    if not messages:
        assert visible == complete
    else:
        assert any(remedy in messages[0] for remedy in ("run", "token", "hf auth", "--force")), messages[0]

    hub.faults.clear()
    result = push_folder(staged, "alice/tiny", private=False)
    assert published_files(hub) == complete
    history = hub.store.repository("alice/tiny").history("main")
    assert [commit["title"] for commit in history] == ["Publish with hfcap", "initial commit"]
    assert result.commit == history[0]["id"]
    secret = hub.alice
    assert secret not in caplog.text and all(secret not in message for message in messages)
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holders == []


@pytest.mark.parametrize("kind", ["503", "drop_before", "drop_after", "truncated", "412"])
def test_no_second_pull_request_after_a_lost_answer(kind: str, staged: Path, hub: Hub) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo("alice/tiny")
    hub.faults.add(kind, "commit")
    with contextlib.suppress(WorkError):
        push_folder(staged, "alice/tiny", private=False, create_pr=True)
    push_folder(staged, "alice/tiny", private=False, create_pr=True)
    refs = hub.store.repository("alice/tiny").refs()
    assert [ref for ref in refs if ref.startswith("refs/pr/")] == ["refs/pr/1"]


def test_large_files_are_not_sent_again_after_a_failure(staged: Path, hub: Hub) -> None:
    hub.faults.add("403", "commit")
    with pytest.raises(UserError):
        push_folder(staged, "alice/tiny", private=False)
    sent = hub.calls("lfs_upload")
    push_folder(staged, "alice/tiny", private=False)
    assert hub.calls("lfs_upload") == sent >= 1


def test_somebody_elses_commit_in_between_is_kept(staged: Path, hub: Hub) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("alice/tiny")
    repository = hub.store.repository("alice/tiny")
    original = hub.faults.take

    def interfere(call: str) -> str | None:
        if call == "commit":
            hub.faults.take = original  # type: ignore[method-assign]
            tree = {**repository.tree("main"), "notes.md": hub.store.add_blob(b"mine")}
            repository.add_commit("refs/heads/main", repository.resolve("main"), tree, "notes", "", "club")
        return original(call)

    hub.faults.take = interfere  # type: ignore[method-assign]
    push_folder(staged, "alice/tiny", private=False)
    assert {"notes.md", "model.safetensors"} <= set(repository.tree("main"))
    assert [commit["title"] for commit in repository.history("main")] == [
        "Publish with hfcap",
        "notes",
        "initial commit",
    ]


def test_the_hubs_refusal_of_a_card_is_explained(run: RunDirectory, hub: Hub) -> None:
    folder = stage_files(run, verifiable=False)
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: my-own"))
    with pytest.raises(UserError, match='"license" must be one of'):
        push_folder(folder, "alice/tiny", private=False)
    assert published_files(hub) == set()


def test_tokens_in_answers_of_the_hub_are_not_repeated(staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.hub import faults

    monkeypatch.setitem(faults.STATUS_FAULTS, "403", (403, f"token {hub.alice} may not", ""))
    hub.faults.add("403", "commit")
    with pytest.raises(UserError) as caught:
        push_folder(staged, "alice/tiny", private=False)
    assert hub.alice not in "".join(traceback.format_exception(caught.value))
    assert "[secret]" in str(caught.value)


def published_files(hub: Hub) -> set[str]:
    if not hub.store.list():
        return set()
    return set(hub.store.repository("alice/tiny").tree("main")) - {".gitattributes"}


PUSH = """
import sys
from pathlib import Path
from hfcap.publishing.push import push_folder
push_folder(Path(sys.argv[1]), "alice/tiny", private=False)
"""


@pytest.mark.parametrize("call", ["lfs_batch", "commit"])
def test_a_killed_push_is_completed_by_the_next(call: str, staged: Path, hub: Hub, tmp_path: Path) -> None:
    hub.slow_seconds = 5.0
    hub.faults.add("slow", call)
    environment = {**os.environ, **hub.environment(tmp_path / "home", hub.alice)}
    with subprocess.Popen([sys.executable, "-c", PUSH, str(staged)], env=environment) as pushing:
        while not hub.calls(call):
            assert pushing.poll() is None
            time.sleep(0.02)
        pushing.kill()
    assert published_files(hub) == set()
    sent = hub.calls("lfs_upload")
    push_folder(staged, "alice/tiny", private=False)
    assert [c["title"] for c in hub.store.repository("alice/tiny").history("main")] == [
        "Publish with hfcap",
        "initial commit",
    ]
    if call == "commit":
        assert hub.calls("lfs_upload") == sent


def test_a_hub_without_xet_needs_no_variable(staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert is_xet_available()
    push_folder(staged, "alice/tiny", private=False)
    assert "model.safetensors" in published_files(hub)
    assert constants.HF_HUB_DISABLE_XET is False


def test_a_failed_first_publication_says_what_it_left(staged: Path, hub: Hub) -> None:
    left = r"alice/tiny was made for this.*'hf repos delete alice/tiny'"
    hub.faults.add("503", "commit", FOR_EVER)
    with pytest.raises(WorkError, match=rf"(?s)the Hub answered 503.*{left}"):
        push_folder(staged, "alice/tiny", private=False)
    with pytest.raises(WorkError) as again:
        push_folder(staged, "alice/tiny", private=False)
    assert "was made for this" not in str(again.value)


def test_another_program_that_takes_xet_is_led_to_the_remedy(
    staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub cannot be told by a server to send by Git LFS; what it shows of the refusal says how."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    HfApi().create_repo("alice/tiny")
    with pytest.raises(ConnectionError, match=r"this-hub-has-no-xet-storage/set-HF_HUB_DISABLE_XET=1-and-try-again"):
        HfApi().upload_file(
            path_or_fileobj=staged / "model.safetensors", path_in_repo="model.safetensors", repo_id="alice/tiny"
        )


def test_a_first_publication_that_is_stopped_says_what_it_left(
    staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", interrupted)
        with pytest.raises(StoppedError, match=r"alice/tiny was made for this.*'hf repos delete alice/tiny'"):
            push_folder(staged, "alice/tiny", private=False)
        with pytest.raises(KeyboardInterrupt):
            push_folder(staged, "alice/tiny", private=False)
    push_folder(staged, "alice/tiny", private=False)
    assert "model.safetensors" in published_files(hub)


def test_a_connection_that_xet_loses_is_no_mistake_of_ours(
    staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("Network error")

    monkeypatch.setattr(HfApi, "create_commit", lost)
    with pytest.raises(WorkError, match="the connection failed"):
        push_folder(staged, "alice/tiny", private=False)


@pytest.mark.parametrize("times", [1, 2])
def test_an_upload_that_arrives_damaged_is_sent_again(
    times: int, staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage for large files refuses what has another hash; once that ended the publication."""
    receive = hub.receive
    damaged: list[str] = []

    class Damaged:
        def __init__(self, stream: BodyStream) -> None:
            self.stream = stream

        def read(self, size: int) -> bytes:
            return bytes(byte ^ 1 for byte in self.stream.read(size))

    def receive_damaged(stream: Any, sha256: str, account: str) -> None:
        if len(damaged) < times:
            damaged.append(sha256)
            stream = Damaged(stream)
        receive(stream, sha256, account)

    monkeypatch.setattr(hub, "receive", receive_damaged)
    push_folder(staged, "alice/tiny", private=False)
    assert len(damaged) == times
    assert "model.safetensors" in published_files(hub)


def test_an_upload_that_is_always_damaged_is_given_up(staged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def refuse(stream: BodyStream, sha256: str, account: str) -> None:
        tries.append(sha256)
        stream.read_all(2**30)
        raise HubError(400, "the content does not have this SHA-256")

    monkeypatch.setattr(hub, "receive", refuse)
    with pytest.raises(WorkError, match=r"SHA-256[\s\S]*was made for this and may still be empty"):
        push_folder(staged, "alice/tiny", private=False)
    assert len(tries) >= hub_calls.ATTEMPTS


def test_no_message_denies_the_repository_that_was_made(staged: Path, hub: Hub) -> None:
    """'nothing half-finished is visible' was said although an empty repository was there."""
    hub.faults.add("drop_before", "commit", FOR_EVER)
    with pytest.raises(WorkError) as failed:
        push_folder(staged, "alice/tiny", private=False)
    assert "nothing half-finished" not in str(failed.value)
    assert "all together or not at all" in str(failed.value) and "may still be empty" in str(failed.value)
