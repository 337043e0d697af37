"""One commit that appears completely or not at all, however often it is tried.

A lost answer can mean 'committed': before anything is sent again the remote files are compared with the staged ones, so
a retry, or a rerun after a kill, never makes a second commit of the same content.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from hfcap.errors import UserError, WorkError
from hfcap.files import sha256_of
from hfcap.publishing import hub
from hfcap.publishing.secrets import redact
from hfcap.publishing.staging import MODEL_PATTERNS, staged_files

LARGEST_GIT_FILE = 10 * 2**20
"""Larger files always go to the Hub's large-file storage, which names them by SHA-256 only."""
NEWEST_PULL_REQUESTS = 10
"""So many are compared with the staged files before a new one is opened."""
_REPLACED = {"model": MODEL_PATTERNS, "dataset": ("images/*",)}


@dataclass(frozen=True, slots=True)
class Remote:
    """Head commit and files (path -> git or LFS SHA-256 id) of a revision."""

    head: str
    files: dict[str, str]


Content = Mapping[str, bytes | Path]
"""Path in the repository -> what it holds, or the file that does."""


def staged_content(folder: Path, card: bytes) -> Content:
    """Return the content of a staging folder, with `card` in place of its README.md."""
    return {**{file.path: folder / file.path for file in staged_files(folder)}, "README.md": card}


class Push:
    """Some files on their way to one revision of one repository.

    Args:
        kind: "model", "space" or "dataset".
        replaces: patterns of files that go away where they are not among `content` and `kept`; None = those that a
            loader of this kind would pick up.
        kept: other paths that stay.
    """

    def __init__(
        self,
        api: HfApi,
        content: Content,
        repo_id: str,
        revision: str,
        create_pr: bool = False,
        kind: str = "model",
        replaces: Sequence[str] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        self.api, self.content, self.repo_id, self.revision, self.create_pr = api, content, repo_id, revision, create_pr
        self.kind, self.kept = kind, kept
        self.replaces = _REPLACED.get(kind, ()) if replaces is None else replaces
        self.ids = {path: content_ids(content) for path, content in self.content.items()}

    def read(self, revision: str) -> Remote:
        """Return head and files of a revision."""

        def read() -> Remote:
            head = self.api.repo_info(self.repo_id, revision=revision, repo_type=self.kind).sha
            assert head is not None
            entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=head, repo_type=self.kind)
            files = {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}
            return Remote(head, files)

        return hub.with_retries(read, f"reading {self.repo_id} at {revision}")

    def different(self, remote: Remote) -> list[str]:
        """Return the staged paths whose content the Hub does not hold at their place."""
        return sorted(path for path, ids in self.ids.items() if remote.files.get(path) not in ids)

    def stale(self, remote: Remote) -> list[str]:
        """Return model files, or images, on the Hub that are not staged; a loader would pick them up. Others stay."""
        others = [path for path in remote.files if path not in self.ids and path not in self.kept]
        return sorted(path for path in others if any(fnmatch.fnmatch(path, pattern) for pattern in self.replaces))

    def commit(self) -> str:
        """Commit what differs and return the revision that holds it; a commit that is already there is found."""
        cause: BaseException = WorkError("nothing was sent")
        for attempt in range(1, hub.ATTEMPTS + 2):
            # One look more than tries: the answer to the last try may have been lost after the commit.
            if self.create_pr and (pull_request := self._pull_request_with_content()):
                return pull_request
            remote = self.read(self.revision)
            different, stale = self.different(remote), self.stale(remote)
            if not different and not stale:
                return self.revision
            if attempt > hub.ATTEMPTS:
                raise hub.explained(cause, f"publishing {self.repo_id}") from None
            try:
                with hub.quiet_unless_terminal():
                    return self._send(different, stale, remote.head)
            except hub.failures() as error:
                cause = hub.root_cause(error)
                again = hub.is_transient(cause) or hub.is_damaged_upload(cause)
                if not again and hub.status_of(cause) != HTTPStatus.PRECONDITION_FAILED:
                    raise _refusal(cause, f"publishing {self.repo_id}") from None
            hub.wait_before(attempt)
        raise AssertionError("unreachable: the last look returns or raises")

    def _send(self, different: list[str], stale: list[str], head: str) -> str:
        operations = [CommitOperationAdd(path, self.content[path]) for path in different]
        with hub.large_files_as_the_hub_takes_them(self.repo_id, self.kind, self.revision):
            info = self.api.create_commit(
                self.repo_id,
                [*operations, *(CommitOperationDelete(path) for path in stale)],
                commit_message="Publish with hfcap",
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=head,
                repo_type=self.kind,
            )
        return info.pr_revision or self.revision

    def _pull_request_with_content(self) -> str | None:
        """Return the newest pull request that already holds all staged files: an earlier try whose answer was lost."""
        refs = hub.with_retries(
            lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True, repo_type=self.kind),
            f"reading {self.repo_id}",
        )
        numbers = sorted((int(ref.ref.rsplit("/", 1)[-1]) for ref in refs.pull_requests or []), reverse=True)
        for number in numbers[:NEWEST_PULL_REQUESTS]:
            if not self.different(self.read(f"refs/pr/{number}")):
                return f"refs/pr/{number}"
        return None


def content_ids(content: bytes | Path) -> frozenset[str]:
    """Return the ids under which the Hub may list a content: SHA-256 (large files) and git's SHA-1 (small ones)."""
    if isinstance(content, Path):
        if content.stat().st_size > LARGEST_GIT_FILE:
            return frozenset({sha256_of(content)})
        content = content.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return frozenset({git, hashlib.sha256(content).hexdigest()})


def _refusal(cause: BaseException, doing: str) -> UserError | WorkError:
    if isinstance(cause, ValueError) and not isinstance(cause, (UserError, HfHubHTTPError)):
        # huggingface_hub raises ValueError when the Hub refuses the card's metadata.
        return UserError(f"{doing}: the Hub refuses the files: {redact(str(cause)).strip()}")
    return hub.explained(cause, doing)
