"""What the loopback Hub keeps on disk: repositories, commits, git blobs, LFS objects; a new process reads it back."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfcap.files import write_bytes, write_json

Tree = dict[str, dict[str, Any]]
"""Path in the repository -> {"oid", "size", "lfs": {"oid", "size"} or absent}."""

DEFAULT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"


class HubError(Exception):
    """A refusal: HTTP status, the Hub's X-Error-Code and its message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_blob_id(content: bytes) -> str:
    """Git's SHA-1 name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True, slots=True)
class Repository:
    """One model repository; all state is in its folder."""

    store: Store
    repo_id: str

    @property
    def folder(self) -> Path:
        return self.store.root / "repositories" / self.repo_id

    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "settings.json").read_text())

    def update(self, **changes: Any) -> None:
        write_json(self.folder / "settings.json", {**self.settings(), **changes})

    def refs(self) -> dict[str, str]:
        return json.loads((self.folder / "refs.json").read_text())

    def commit(self, sha: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / f"{sha}.json").read_text())

    def resolve(self, revision: str) -> str:
        """Commit of a branch, pull request ref, tag or commit id."""
        refs = self.refs()
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in refs:
                return refs[name]
        if (self.folder / "commits" / f"{revision}.json").is_file():
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, revision: str) -> Tree:
        return self.commit(self.resolve(revision))["tree"]

    def history(self, revision: str) -> list[dict[str, Any]]:
        """Commits from the newest to the first."""
        found, sha = [], self.resolve(revision)
        while sha:
            commit = self.commit(sha)
            found.append({**commit, "id": sha})
            sha = commit["parent"]
        return found

    def content(self, revision: str, path: str) -> bytes:
        entry = self.tree(revision).get(path)
        if entry is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return self.store.content(entry)

    def add_commit(self, ref: str, parent: str, tree: Tree, title: str, body: str, author: str) -> str:
        """Write a commit, then move the ref: the one step that makes it visible."""
        record = {
            "parent": parent,
            "tree": tree,
            "title": title,
            "message": body,
            "author": author,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        }
        sha = hashlib.sha1(json.dumps(record, sort_keys=True).encode()).hexdigest()
        write_json(self.folder / "commits" / f"{sha}.json", record)
        write_json(self.folder / "refs.json", {**self.refs(), ref: sha})
        return sha

    def set_ref(self, ref: str, sha: str) -> None:
        write_json(self.folder / "refs.json", {**self.refs(), ref: sha})


class Store:
    """All repositories under one folder; `lock` makes each commit one step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()

    def repository(self, repo_id: str) -> Repository:
        repository = Repository(self, repo_id)
        if not (repository.folder / "settings.json").is_file():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def list(self) -> list[Repository]:
        found = sorted((self.root / "repositories").glob("*/*/settings.json"))
        return [Repository(self, f"{path.parent.parent.name}/{path.parent.name}") for path in found]

    def create(self, repo_id: str, private: bool) -> Repository:
        repository = Repository(self, repo_id)
        if (repository.folder / "settings.json").is_file():
            raise HubError(409, "You already created this model repo")
        write_json(repository.folder / "refs.json", {})
        attributes = self.add_blob(DEFAULT_ATTRIBUTES)
        repository.add_commit(
            "refs/heads/main", "", {".gitattributes": attributes}, "initial commit", "", repo_id.split("/")[0]
        )
        write_json(repository.folder / "settings.json", {"private": private, "gated": False})
        return repository

    def add_blob(self, content: bytes) -> dict[str, Any]:
        oid = git_blob_id(content)
        write_bytes(self.root / "blobs" / oid, content)
        return {"oid": oid, "size": len(content)}

    def lfs_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def lfs_entry(self, sha256: str, size: int) -> dict[str, Any]:
        path = self.lfs_path(sha256)
        if not path.is_file() or path.stat().st_size != size:
            raise HubError(400, f"LFS object {sha256} was not uploaded")
        return {"oid": git_blob_id(lfs_pointer(sha256, size)), "size": size, "lfs": {"oid": sha256, "size": size}}

    def content(self, entry: dict[str, Any]) -> bytes:
        if "lfs" in entry:
            return self.lfs_path(entry["lfs"]["oid"]).read_bytes()
        return (self.root / "blobs" / entry["oid"]).read_bytes()
