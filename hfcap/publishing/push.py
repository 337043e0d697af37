"""Pushing a staged folder to the Hub in one commit that appears completely or not at all.

A lost answer can mean 'committed': after every failure the remote files are compared with the staged ones before
anything is sent again, so a retry, or a rerun after a kill, never makes a second commit of the same content.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import tempfile
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hfcap.errors import UserError, WorkError
from hfcap.files import read_json, sha256_of
from hfcap.publishing import hub
from hfcap.publishing.secrets import redact
from hfcap.publishing.sections import merge_sections, split_front_matter
from hfcap.publishing.staging import MODEL_PATTERNS, StagedFile, stage, staged_files
from hfcap.run_directory import RunDirectory

DEFAULT_BRANCH = "main"
LARGEST_GIT_FILE = 10 * 2**20
"""Larger files always go to the Hub's large-file storage, which names them by SHA-256 only."""
NEWEST_PULL_REQUESTS = 10
"""So many are compared with the staged files before a new one is opened."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What `publish` did or, in a dry run, would do.

    Attributes:
        files: everything in the staging folder.
        uploaded: paths that were new or different on the Hub; empty in a dry run.
        deleted: stale weight and configuration files that were removed from the Hub.
        url: page of the repository, or of the pull request.
        commit: commit id that holds the files; None in a dry run.
    """

    repo_id: str
    revision: str
    folder: Path
    files: list[StagedFile]
    uploaded: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    url: str | None = None
    commit: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class _Remote:
    """Head commit and files (path -> git or LFS SHA-256 id) of a revision."""

    head: str
    files: dict[str, str]


def publish(
    run: RunDirectory,
    repo_id: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    force: bool = False,
    model: Path | None = None,
) -> PublishResult:
    """Stage a run and push it to the Hub.

    Args:
        repo_id: namespace/name; default: the recipe's publish.repo_id.
        private: create the repository as private; default: the recipe's publish.private. An existing repository keeps
            its visibility, but is refused if it is public and private was asked for.
        create_pr: open a pull request instead of committing to the branch.
        dry_run: stage only; needs no network and no token.
        revision: branch to commit to; must exist unless it is main.
        force: replace a published model whose scores are better.
        model: folder with merged weights, if not run.model.

    Raises:
        UserError: not signed in, no permission, wrong names, a secret in a file, better scores on the Hub.
        WorkError: the Hub or the network failed.
    """
    from hfcap.recipe_loading import load_recipe

    options = load_recipe(run.recipe).publish
    repo_id = repo_id or options.repo_id
    if repo_id is None and not dry_run:
        raise UserError(f"{run.recipe}: publish.repo_id: say where to publish: --repo-id namespace/name")
    if repo_id is not None:
        check_repo_id(repo_id)
    folder = stage(run, model, repo_id)
    result = PublishResult(
        repo_id or run.path.name, revision or DEFAULT_BRANCH, folder, staged_files(folder), dry_run=True
    )
    if dry_run or repo_id is None:
        return result
    wants_private = options.private if private is None else private
    return push_folder(folder, repo_id, wants_private, create_pr, revision or DEFAULT_BRANCH, force)


def check_repo_id(repo_id: str) -> None:
    """Raise UserError unless `repo_id` is namespace/name as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--repo-id: {error}") from None
    if "/" not in repo_id:
        raise UserError(f"--repo-id: {repo_id!r} lacks the namespace; write your-name/{repo_id}")


def check_may_publish(repo_id: str) -> str:
    """Check sign-in and write permission before long work starts; returns the account's name.

    Raises:
        UserError: not signed in, a token that may only read, or a namespace of other people.
        WorkError: the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    doing = f"checking the permission to publish {repo_id}"
    if get_token() is None:
        raise UserError(f"{doing}: not signed in; run 'hf auth login' or set HF_TOKEN")
    account = hub.with_retries(lambda: HfApi().whoami(), doing)
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise UserError(f"{doing}: the token may only read; make one with the write role, then 'hf auth login'")
    namespace = repo_id.split("/")[0]
    organizations = {entry["name"]: entry.get("roleInOrg") for entry in account.get("orgs", [])}
    if namespace != account["name"] and organizations.get(namespace, "read") == "read":
        raise UserError(
            f"{doing}: {account['name']} may not write in the namespace {namespace!r}; publish as "
            f"{account['name']}/{repo_id.split('/')[1]}, or ask the organisation for the write role"
        )
    return str(account["name"])


def push_folder(
    folder: Path,
    repo_id: str,
    private: bool,
    create_pr: bool = False,
    revision: str = DEFAULT_BRANCH,
    force: bool = False,
) -> PublishResult:
    """Push a staging folder: create the repository if needed, commit what differs, check what the Hub then holds.

    Raises:
        UserError, WorkError: as `publish`.
    """
    if not create_pr:
        check_may_publish(repo_id)
    api = HfApi()
    _open_repository(api, repo_id, private, create_pr)
    if not force:
        _refuse_worse_scores(api, folder, repo_id, revision)
    push = _Push(api, folder, repo_id, revision, create_pr, _card_with_remote_sections(api, folder, repo_id, revision))
    before = push.read(revision)
    target = push.commit()
    after = push.read(target)
    if different := push.different(after):
        raise WorkError(
            f"publishing {repo_id}: the Hub holds other content than was sent in {', '.join(different[:5])}; "
            "somebody else commits at the same time, or the upload was damaged: run the command again"
        )
    url = f"{api.endpoint}/{repo_id}"
    if target.startswith("refs/pr/"):
        url += f"/discussions/{target.removeprefix('refs/pr/')}"
    return PublishResult(
        repo_id=repo_id,
        revision=target,
        folder=folder,
        files=staged_files(folder),
        uploaded=push.different(before),
        deleted=sorted(path for path in before.files if path not in after.files),
        url=url,
        commit=after.head,
    )


class _Push:
    """One staging folder on its way to one revision of one repository."""

    def __init__(self, api: HfApi, folder: Path, repo_id: str, revision: str, create_pr: bool, card: bytes) -> None:
        self.api, self.folder, self.repo_id, self.revision, self.create_pr = api, folder, repo_id, revision, create_pr
        self.content: dict[str, bytes | Path] = {file.path: folder / file.path for file in staged_files(folder)}
        self.content["README.md"] = card
        self.ids = {path: content_ids(content) for path, content in self.content.items()}

    def read(self, revision: str) -> _Remote:
        """Return head and files of a revision."""

        def read() -> _Remote:
            head = self.api.model_info(self.repo_id, revision=revision).sha
            assert head is not None
            entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=head)
            files = {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}
            return _Remote(head, files)

        return hub.with_retries(read, f"reading {self.repo_id} at {revision}")

    def different(self, remote: _Remote) -> list[str]:
        """Return the staged paths whose content the Hub does not hold at their place."""
        return sorted(path for path, ids in self.ids.items() if remote.files.get(path) not in ids)

    def stale(self, remote: _Remote) -> list[str]:
        """Return model files on the Hub that this model does not have; a loader would pick them up. Others stay."""
        return sorted(
            path
            for path in remote.files
            if path not in self.ids and any(fnmatch.fnmatch(path, pattern) for pattern in MODEL_PATTERNS)
        )

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
                return self._send(different, stale, remote.head)
            except hub.failures() as error:
                cause = hub.root_cause(error)
                if not hub.is_transient(cause) and hub.status_of(cause) != HTTPStatus.PRECONDITION_FAILED:
                    raise _refusal(cause, f"publishing {self.repo_id}") from None
            hub.wait_before(attempt)
        raise AssertionError("unreachable: the last look returns or raises")

    def _send(self, different: list[str], stale: list[str], head: str) -> str:
        operations = [CommitOperationAdd(path, self.content[path]) for path in different]
        info = self.api.create_commit(
            self.repo_id,
            [*operations, *(CommitOperationDelete(path) for path in stale)],
            commit_message="Publish with hfcap",
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=head,
        )
        return info.pr_revision or self.revision

    def _pull_request_with_content(self) -> str | None:
        """Return the newest pull request that already holds all staged files: an earlier try whose answer was lost."""
        refs = hub.with_retries(
            lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True), f"reading {self.repo_id}"
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


def _open_repository(api: HfApi, repo_id: str, private: bool, create_pr: bool) -> None:
    """Make sure that the repository exists and is not more public than was asked for."""
    doing = f"opening {repo_id}"

    def find() -> ModelInfo | None:
        try:
            return api.model_info(repo_id)
        except RepositoryNotFoundError:
            return None

    info = hub.with_retries(find, doing)
    if info is None and create_pr:
        raise UserError(f"{doing}: no such repository; publish once without --create-pr")
    if info is None:
        hub.with_retries(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"creating {repo_id}")
        info = hub.with_retries(lambda: api.model_info(repo_id), doing)
    if private and not info.private:
        raise UserError(f"{doing}: the repository is public, and --private was asked for; make it private on its page")


def _download(api: HfApi, repo_id: str, path: str, revision: str) -> bytes | None:
    """Return a small file of the repository, or None where there is none."""

    def read() -> bytes | None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(api.hf_hub_download(repo_id, path, revision=revision, local_dir=folder)).read_bytes()
            except EntryNotFoundError:
                return None

    return hub.with_retries(read, f"reading {path} of {repo_id}")


def _card_with_remote_sections(api: HfApi, folder: Path, repo_id: str, revision: str) -> bytes:
    """Return the staged card with sections that somebody wrote on the Hub's page since the last publication."""
    staged = (folder / "README.md").read_text(encoding="utf-8")
    content = _download(api, repo_id, "README.md", revision)
    if content is None:
        return staged.encode()
    metadata, body = split_front_matter(staged)
    merged = merge_sections(body, split_front_matter(content.decode("utf-8", "replace"))[1])
    return f"---\n{metadata}---\n\n{merged.strip()}\n".encode()


def _refuse_worse_scores(api: HfApi, folder: Path, repo_id: str, revision: str) -> None:
    """Raise where the Hub's scores, measured under the same split and signature, are better than the staged ones."""
    for path in sorted(folder.glob("scores/*.json")):
        if path.stem.count(".") > 0:
            continue  # a baseline
        content = _download(api, repo_id, f"scores/{path.name}", revision)
        if content is None:
            continue
        try:
            old = json.loads(content)
        except ValueError:
            continue
        new = read_json(path, "scores")
        pair = [scores.get("metrics", {}).get("cider") for scores in (old, new)]
        same = old.get("n_images") == new.get("n_images")
        if same and None not in pair and pair[0] > pair[1]:
            raise UserError(
                f"{repo_id} at {revision} has a better CIDEr-D on {path.stem} ({100 * pair[0]:.1f}) than this run "
                f"({100 * pair[1]:.1f}); publish elsewhere or to another --revision, or give --force"
            )
