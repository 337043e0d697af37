"""The real huggingface_hub client against the Hub server: everything that people do with repositories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from scripts.hub_server.server import HubServer
from scripts.hub_server.store import Store
from tests.hub_server import Hub

CARD = b"---\nlicense: mit\n---\n# A model\n"


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi()
    api.create_repo("alice/tiny")
    return api


def commit(api: HfApi, files: dict[str, bytes], repo_id: str = "alice/tiny", **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    options = {"commit_message": "files", **options}
    return str(api.create_commit(repo_id, operations, **options).oid)  # type: ignore[call-overload]


def test_create_twice_delete_and_lists(api: HfApi, hub: Hub) -> None:
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/tiny")
    assert str(api.create_repo("alice/tiny", exist_ok=True)) == f"{hub.endpoint}/alice/tiny"
    api.create_repo("club/secret", private=True)
    assert {model.id for model in api.list_models()} == {"alice/tiny", "club/secret"}
    assert [model.id for model in api.list_models(author="alice")] == ["alice/tiny"]
    assert [model.id for model in api.list_models(search="SECR")] == ["club/secret"]
    assert len(list(api.list_models(limit=1))) == 1
    stranger = HfApi(token=hub.mallory)
    assert {model.id for model in stranger.list_models()} == {"alice/tiny"}
    api.delete_repo("alice/tiny")
    assert not api.repo_exists("alice/tiny")
    assert sorted(path.name for path in hub.store.root.iterdir()) == ["blobs", "models"]


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_every_kind_of_repository_takes_small_and_large_files(kind: str, hub: Hub, tmp_path: Path) -> None:
    api = HfApi()
    api.create_repo("club/x", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    large = bytes(range(256)) * 8000
    for path, content in (("a/small.txt", "grüße".encode()), ("large.bin", large)):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="club/x", repo_type=kind)
    assert set(api.list_repo_files("club/x", repo_type=kind)) == {".gitattributes", "a/small.txt", "large.bin"}
    folder = Path(snapshot_download("club/x", repo_type=kind, cache_dir=tmp_path))
    assert (folder / "a" / "small.txt").read_text() == "grüße"
    assert (folder / "large.bin").read_bytes() == large
    assert not api.repo_exists("club/x", repo_type="model" if kind != "model" else "dataset")


def test_trees_paths_history_and_refs(api: HfApi) -> None:
    first = commit(api, {"a.txt": b"1", "b/c.txt": b"2", "b/d/e.txt": b"3"}, commit_message="first")
    second = commit(api, {"a.txt": b"new"}, commit_message="second")
    assert {entry.path for entry in api.list_repo_tree("alice/tiny")} == {".gitattributes", "a.txt", "b"}
    assert {entry.path for entry in api.list_repo_tree("alice/tiny", "b")} == {"b/c.txt", "b/d"}
    assert "b/d/e.txt" in api.list_repo_files("alice/tiny")
    assert [info.path for info in api.get_paths_info("alice/tiny", ["a.txt", "none"])] == ["a.txt"]
    assert [entry.title for entry in api.list_repo_commits("alice/tiny")] == ["second", "first", "initial commit"]
    api.create_branch("alice/tiny", branch="old/one", revision=first)
    api.create_tag("alice/tiny", tag="v1", revision=second)
    refs = api.list_repo_refs("alice/tiny")
    assert {(ref.name, ref.target_commit) for ref in refs.branches} == {("main", second), ("old/one", first)}
    assert {(ref.name, ref.target_commit) for ref in refs.tags} == {("v1", second)}
    assert Path(hf_hub_download("alice/tiny", "a.txt", revision="old/one")).read_bytes() == b"1"
    assert Path(hf_hub_download("alice/tiny", "a.txt", revision="v1")).read_bytes() == b"new"
    api.delete_branch("alice/tiny", branch="old/one")
    api.delete_tag("alice/tiny", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("alice/tiny", revision="v1")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch("alice/tiny", branch="main")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("alice/tiny", "none.txt")


def test_commits_delete_and_refuse_old_parents(api: HfApi) -> None:
    first = commit(api, {"a.txt": b"1", "b/c.txt": b"2", "b/d.txt": b"3"})
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("b/", is_folder=True)]
    api.create_commit("alice/tiny", operations, commit_message="delete")
    assert api.list_repo_files("alice/tiny") == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, {"x": b"1"}, parent_commit=first)


def test_a_pull_request_is_opened_amended_merged_and_closed(api: HfApi, hub: Hub) -> None:
    commit(api, {"a.txt": b"1", "kept.txt": b"1"})
    stranger = HfApi(token=hub.mallory)
    commit(stranger, {"a.txt": b"better"}, create_pr=True, commit_message="Improve a")
    commit(stranger, {"b.txt": b"too"}, revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(stranger, {"b.txt": b"too"})
    commit(api, {"kept.txt": b"2"})
    (opened,) = api.get_repo_discussions("alice/tiny")
    assert (opened.num, opened.title, opened.status, opened.author) == (1, "Improve a", "open", "mallory")
    details = api.get_discussion_details("alice/tiny", 1)
    assert [event.type for event in details.events] == ["commit", "commit"]
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.merge_pull_request("alice/tiny", 1)
    api.merge_pull_request("alice/tiny", 1)
    contents = {
        path: hub.store.repository("alice/tiny").content("main", path) for path in ("a.txt", "b.txt", "kept.txt")
    }
    assert contents == {"a.txt": b"better", "b.txt": b"too", "kept.txt": b"2"}
    assert api.get_discussion_details("alice/tiny", 1).status == "merged"
    commit(stranger, {"a.txt": b"mine"}, create_pr=True)
    commit(api, {"a.txt": b"ours"})
    with pytest.raises(HfHubHTTPError, match="409"):
        api.merge_pull_request("alice/tiny", 2)
    api.change_discussion_status("alice/tiny", 2, "closed")
    assert [(entry.num, entry.status) for entry in api.get_repo_discussions("alice/tiny")] == [
        (2, "closed"),
        (1, "merged"),
    ]


def test_private_and_gated(api: HfApi, hub: Hub) -> None:
    commit(api, {"a.txt": b"1"})
    api.update_repo_settings("alice/tiny", gated="manual")
    stranger = HfApi(token=hub.mallory)
    assert stranger.repo_info("alice/tiny").gated == "manual"
    for who in (hub.mallory, False):
        with pytest.raises(GatedRepoError):
            hf_hub_download("alice/tiny", "a.txt", token=who)
    with pytest.raises(GatedRepoError):
        stranger.auth_check("alice/tiny")
    api.auth_check("alice/tiny", write=True)
    api.update_repo_settings("alice/tiny", gated=False, private=True)
    for other in (stranger, HfApi(token=False)):
        with pytest.raises(RepositoryNotFoundError):
            other.repo_info("alice/tiny")
    reader = HfApi(token=hub.rita)
    assert Path(hf_hub_download("alice/tiny", "a.txt", token=hub.rita)).read_bytes() == b"1"
    for forbidden in (lambda: reader.create_repo("alice/x"), lambda: commit(reader, {"a.txt": b"2"})):
        with pytest.raises(HfHubHTTPError, match="403"):
            forbidden()


def test_move(api: HfApi, hub: Hub) -> None:
    commit(api, {"a.txt": b"1"})
    api.move_repo("alice/tiny", "club/renamed")
    assert not api.repo_exists("alice/tiny")
    assert Path(hf_hub_download("club/renamed", "a.txt")).read_bytes() == b"1"
    api.create_repo("alice/tiny")
    for source, target, status in (
        ("alice/tiny", "club/renamed", "409"),
        ("alice/tiny", "mallory/x", "403"),
        ("museum/x", "alice/y", "404"),
    ):
        with pytest.raises(HfHubHTTPError, match=status):
            api.move_repo(source, target)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: my-own", "license"),
        ("license: other", "license_name"),
        ("base_model: /home/me/blip", "base_model"),
        ("base_model_relation: child", "base_model_relation"),
        ("pipeline_tag: captioning", "pipeline_tag"),
        ("tags: [1]", "tags"),
        ("language: English", "language"),
        ("datasets: a b", "datasets"),
        ("model-index: []", "model-index"),
        ("model-index:\n- name: x\n  results:\n  - task: {type: image-to-text}\n    metrics: []", "dataset.type"),
        ("a: [", "YAML"),
        ("x: !!python/object:os.system {}", "YAML"),
    ],
)
def test_cards_that_the_hub_refuses(metadata: str, message: str, api: HfApi) -> None:
    with pytest.raises((ValueError, BadRequestError), match=message):
        commit(api, {"README.md": f"---\n{metadata}\n---\n".encode()})
    assert "README.md" not in api.list_repo_files("alice/tiny")
    commit(api, {"README.md": CARD})


def test_a_space_needs_its_settings(hub: Hub) -> None:
    api = HfApi()
    api.create_repo("alice/demo", repo_type="space", space_sdk="gradio")
    good = {"title": "x", "sdk": "gradio", "app_file": "app.py", "colorFrom": "blue", "colorTo": "green"}
    for change in ({"sdk": "flask"}, {"colorFrom": "navy"}, {"sdk_version": "new"}, {"short_description": "x" * 61}):
        card = f"---\n{json.dumps({**good, **change})}\n---\n".encode()
        with pytest.raises((ValueError, BadRequestError)):
            commit(api, {"README.md": card}, "alice/demo", repo_type="space")
    commit(api, {"README.md": f"---\n{json.dumps(good)}\n---\n".encode()}, "alice/demo", repo_type="space")


def test_everything_is_there_after_a_restart(api: HfApi, hub: Hub) -> None:
    sha = commit(api, {"a.txt": b"1", "large.bin": b"\0" * 100_000}, create_pr=True)
    again = Store(hub.store.root).repository("alice/tiny")
    assert again.resolve("refs/pr/1") == sha and again.content("refs/pr/1", "large.bin") == b"\0" * 100_000
    with HubServer(hub.store.root, {}, owner="me") as other:
        assert [d.title for d in HfApi(other.endpoint, token="any").get_repo_discussions("alice/tiny")] == ["files"]


def test_without_tokens_everybody_is_the_owner(tmp_path: Path) -> None:
    with HubServer(tmp_path, {}, owner="me") as server:
        api = HfApi(server.endpoint, token="whatever")
        api.create_repo("Salesforce/blip")
        me = api.whoami()
        assert me["name"] == "me" and [org["name"] for org in me["orgs"]] == ["Salesforce"]
