"""What the Hub server keeps on disk: repositories, commits, git blobs, large files; a new process reads it back.

Every file is written under a temporary name and renamed; a commit becomes visible by one rename (refs.json), so a kill
leaves the state before or after it. Names from requests never become paths unchecked.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hfcap.files import write_bytes, write_json

Tree = dict[str, dict[str, Any]]
"""Path in the repository -> {"oid", "size", "lfs": {"oid", "size"} or absent}."""

KINDS = ("model", "dataset", "space")
DEFAULT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"

_NAME = re.compile(r"(?!.*\.git$)(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REF = re.compile(r"(?!.*(?:\.\.|//|@\{|\.lock$|/$|\.$))[^\x00-\x20~^:?*\[\\\x7f/.-][^\x00-\x20~^:?*\[\\\x7f]{0,200}")


def is_name(text: str) -> bool:
    """Whether an account or repository may have this name."""
    return _NAME.fullmatch(text) is not None


class HubError(Exception):
    """A refusal: HTTP status, the Hub's X-Error-Code and its message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def git_blob_id(content: bytes) -> str:
    """Git's SHA-1 name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository; all state is in its folder."""

    store: Store
    repo_id: str
    kind: str

    @property
    def folder(self) -> Path:
        """Where it is on disk."""
        return self.store.root / f"{self.kind}s" / self.repo_id

    @property
    def namespace(self) -> str:
        """The account or organisation that it belongs to."""
        return self.repo_id.split("/")[0]

    def settings(self) -> dict[str, Any]:
        """Return {"private", "gated", "discussions": number -> {"title", "status", ...}}."""
        return json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))

    def update(self, **changes: Any) -> None:
        """Change settings."""
        write_json(self.folder / "settings.json", {**self.settings(), **changes})

    def refs(self) -> dict[str, str]:
        """Return full name of a branch, tag or pull request -> commit."""
        return json.loads((self.folder / "refs.json").read_text(encoding="utf-8"))

    def commit(self, sha: str) -> dict[str, Any]:
        """Return the record of a commit that exists."""
        return json.loads((self.folder / "commits" / f"{sha}.json").read_text(encoding="utf-8"))

    def resolve(self, revision: str) -> str:
        """Commit of a branch, pull request ref, tag or commit id."""
        refs = self.refs()
        for name in (revision, HEADS + revision, TAGS + revision):
            if name in refs:
                return refs[name]
        if _COMMIT.fullmatch(revision) and (self.folder / "commits" / f"{revision}.json").is_file():
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, revision: str) -> Tree:
        """Return the files of a revision."""
        return self.commit(self.resolve(revision))["tree"]

    def history(self, revision: str) -> list[dict[str, Any]]:
        """Commits from the newest to the first."""
        found, sha = [], self.resolve(revision)
        while sha:
            commit = self.commit(sha)
            found.append({**commit, "id": sha})
            sha = commit["parent"]
        return found

    def has_large_file(self, sha256: str) -> bool:
        """Whether any commit of this repository holds a large file."""
        commits = (self.folder / "commits").glob("*.json")
        named = (path.stem for path in commits if sha256.encode() in path.read_bytes())
        trees = (self.commit(sha)["tree"].values() for sha in named)
        return any(entry.get("lfs", {}).get("oid") == sha256 for tree in trees for entry in tree)

    def content(self, revision: str, path: str) -> bytes:
        """Return a file."""
        entry = self.tree(revision).get(path)
        if entry is None:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return self.store.path_of(entry).read_bytes()

    def add_commit(self, ref: str, parent: str, tree: Tree, title: str, body: str, author: str) -> str:
        """Write a commit, then move the ref: the one step that makes it visible."""
        record = {"parent": parent, "tree": tree, "title": title, "message": body, "author": author, "date": now()}
        sha = hashlib.sha1(json.dumps(record, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        write_json(self.folder / "commits" / f"{sha}.json", record)
        self.set_ref(ref, sha)
        return sha

    def set_ref(self, ref: str, sha: str | None) -> None:
        """Let a ref name a commit, or with None remove it."""
        if not _REF.fullmatch(ref):
            raise HubError(400, f"invalid reference name {ref!r}")
        refs = {**self.refs(), ref: sha}
        write_json(self.folder / "refs.json", {name: value for name, value in refs.items() if value is not None})


class Store:
    """All repositories under one folder; `lock` makes each change one step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()

    def named(self, repo_id: str, kind: str) -> Repository:
        """Return the repository of this name, whether it exists or not.

        Raises:
            HubError: not a name that the Hub allows.
        """
        parts = repo_id.split("/")
        if kind not in KINDS or len(parts) != 2 or not all(_NAME.fullmatch(part) for part in parts):
            raise HubError(400, f"invalid repository name {repo_id!r}")
        return Repository(self, repo_id, kind)

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        """Return a repository that exists."""
        repository = self.named(repo_id, kind)
        if not (repository.folder / "settings.json").is_file():
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def list(self, kind: str = "model") -> list[Repository]:
        """All repositories of a kind by name."""
        found = sorted((self.root / f"{kind}s").glob("*/*/settings.json"))
        return [Repository(self, f"{path.parent.parent.name}/{path.parent.name}", kind) for path in found]

    def create(self, repo_id: str, private: bool, kind: str = "model") -> Repository:
        """Make a repository with its first commit; the settings come last and make it visible."""
        repository = self.named(repo_id, kind)
        if (repository.folder / "settings.json").is_file():
            raise HubError(409, f"You already created this {kind} repo")
        write_json(repository.folder / "refs.json", {})
        attributes = self.add_blob(DEFAULT_ATTRIBUTES)
        tree = {".gitattributes": attributes}
        repository.add_commit(f"{HEADS}main", "", tree, "initial commit", "", repository.namespace)
        write_json(repository.folder / "settings.json", {"private": private, "gated": False, "discussions": {}})
        return repository

    def delete(self, repository: Repository) -> None:
        """Remove a repository; its blobs stay, because others may share them."""
        bin_ = Path(tempfile.mkdtemp(prefix=".deleted-", dir=self.root))
        repository.folder.replace(bin_ / "repository")
        shutil.rmtree(bin_)

    def move(self, repository: Repository, new_id: str) -> None:
        """Give a repository another name."""
        target = self.named(new_id, repository.kind)
        if target.folder.exists():
            raise HubError(409, f"{new_id} already exists")
        target.folder.parent.mkdir(parents=True, exist_ok=True)
        repository.folder.replace(target.folder)

    def add_blob(self, content: bytes) -> dict[str, Any]:
        """Keep a small file; returns its tree entry."""
        oid = git_blob_id(content)
        if not self.blob_path(oid).is_file():
            write_bytes(self.blob_path(oid), content)
        return {"oid": oid, "size": len(content)}

    def blob_path(self, oid: str) -> Path:
        """Where a small file is kept."""
        return self.root / "blobs" / oid

    def lfs_path(self, sha256: str) -> Path:
        """Where a large file is kept."""
        if not _SHA256.fullmatch(sha256):
            raise HubError(400, f"{sha256!r} is not a SHA-256")
        return self.root / "lfs" / sha256

    def lfs_entry(self, sha256: str, size: int) -> dict[str, Any]:
        """Return the tree entry of a large file that was uploaded."""
        path = self.lfs_path(sha256)
        if not path.is_file() or path.stat().st_size != size:
            raise HubError(400, f"LFS object {sha256} was not uploaded")
        return {"oid": git_blob_id(lfs_pointer(sha256, size)), "size": size, "lfs": {"oid": sha256, "size": size}}

    def path_of(self, entry: dict[str, Any]) -> Path:
        """Where the content of a tree entry is kept."""
        return self.lfs_path(entry["lfs"]["oid"]) if "lfs" in entry else self.blob_path(entry["oid"])
