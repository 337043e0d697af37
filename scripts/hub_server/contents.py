"""Routes about files: trees, commits, uploads and downloads."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import json
import re
from typing import Any
from urllib.parse import parse_qs

from scripts.hub_server.card_rules import check_card
from scripts.hub_server.messages import Answer, Request
from scripts.hub_server.store import HEADS, PULLS, HubError, Repository, Tree, now

LARGEST_GIT_FILE = 10 * 2**20
NO_XET = "/this-hub-has-no-xet-storage/set-HF_HUB_DISABLE_XET=1-and-try-again"
"""Where requests for Xet storage are led; no route answers there."""


def _listed(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
    if "lfs" in entry:
        row["lfs"] = {**entry["lfs"], "pointerSize": 134}
    return row


def tree(request: Request) -> Answer:
    """Files and folders of a revision, or of a folder in it."""
    files = request.repository().tree(request.groups["revision"])
    prefix = request.groups["path"] + "/" if request.groups.get("path") else ""
    inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
    if prefix and not inside:
        raise HubError(404, f"{prefix[:-1]} does not exist", "EntryNotFound")
    recursive = (request.parameter("recursive") or "false").lower() in ("true", "1")
    rows, folders = [], set()
    for path, entry in sorted(inside.items()):
        steps = path[len(prefix) :].split("/")
        folders |= {prefix + "/".join(steps[:depth]) for depth in range(1, len(steps))}
        if recursive or len(steps) == 1:
            rows.append(_listed(path, entry))
    if not recursive:
        folders = {folder for folder in folders if "/" not in folder[len(prefix) :]}
    rows += [
        {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()}
        for path in sorted(folders)
    ]
    return Answer.of(rows)


def paths_info(request: Request) -> Answer:
    """Some files of a revision; the client asks with a form."""
    files = request.repository().tree(request.groups["revision"])
    is_form = "form-urlencoded" in request.headers.get("content-type", "")
    body: dict[str, Any] = parse_qs(request.body.decode()) if is_form else request.json()
    return Answer.of([_listed(path, files[path]) for path in body.get("paths", []) if path in files])


def commits(request: Request) -> Answer:
    """History of a revision, newest first."""
    rows = [
        {key: commit[key] for key in ("id", "title", "message", "date")} | {"authors": [{"user": commit["author"]}]}
        for commit in request.repository().history(request.groups["revision"])
    ]
    return Answer.of(rows)


def _ref_for_writing(repository: Repository, revision: str) -> str:
    names = repository.refs()
    if revision in names:
        return revision
    if HEADS + revision not in names:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return HEADS + revision


def _writable(request: Request, create_pr: bool) -> Repository:
    # Anyone who is signed in and can read may open a pull request, and the author may add to it.
    if create_pr:
        request.signed_in()
        return request.repository()
    if request.groups["revision"].startswith(PULLS):
        repository = request.repository()
        opened = repository.settings()["discussions"].get(request.groups["revision"].removeprefix(PULLS), {})
        if opened.get("author") == request.signed_in().name:
            return repository
    return request.repository(write=True)


def preupload(request: Request) -> Answer:
    """Say for each file whether it goes into the commit or to the large-file storage."""
    create_pr = request.parameter("create_pr") == "1"
    repository = _writable(request, create_pr)
    ref = _ref_for_writing(repository, request.groups["revision"])
    files = repository.tree(ref)
    attributes = repository.content(ref, ".gitattributes") if ".gitattributes" in files else b""
    lines = attributes.decode("utf-8", "replace").splitlines()
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    rows = []
    for item in request.json()["files"]:
        name = item["path"].rsplit("/", 1)[-1]
        is_binary = b"\0" in base64.b64decode(item["sample"])
        large = any(fnmatch.fnmatch(name, pattern) for pattern in patterns) or item["size"] > LARGEST_GIT_FILE
        mode = "lfs" if large or is_binary else "regular"
        entry = files.get(item["path"], {})
        oid = entry.get("lfs", {}).get("oid") or entry.get("oid")
        rows.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer.of({"files": rows})


def no_xet(request: Request) -> Answer:
    """Lead a client that asks for Xet storage to an address that does not exist and says what to do.

    huggingface_hub 2.4 takes Xet wherever hf_xet is installed, and of this answer it shows only where it ended.
    """
    return Answer(status=307, headers={"Location": f"{request.base_url}{NO_XET}"})


def lfs_batch(request: Request) -> Answer:
    """Say for each large file where to send it; nothing for one that is here."""
    user, repository = request.signed_in(), request.repository()
    rows = []
    for item in request.json()["objects"]:
        row = {"oid": item["oid"], "size": item["size"]}
        if not _may_use(request, repository, user.name, item["oid"]):
            base = f"{request.base_url}/lfs-storage"
            signature = request.server.upload_signature(item["oid"], user.name)
            row["actions"] = {
                "upload": {"href": f"{base}/{item['oid']}/{user.name}/{signature}"},
                "verify": {"href": f"{base}/{repository.kind}s/{repository.repo_id}/verify"},
            }
        rows.append(row)
    return Answer.of({"transfer": "basic", "objects": rows})


def lfs_upload(request: Request) -> Answer:
    """Receive one large file at an address that lfs_batch gave out."""
    oid, account = request.groups["oid"], request.groups["account"]
    if not hmac.compare_digest(request.server.upload_signature(oid, account), request.groups["signature"]):
        raise HubError(403, "this upload address was not given out by this server")
    request.server.receive(request.stream, oid, account)
    return Answer()


def lfs_verify(request: Request) -> Answer:
    """Confirm that a large file arrived."""
    user, body = request.signed_in(), request.json()
    _large_file(request, request.repository(), user.name, str(body.get("oid")), body.get("size", -1))
    return Answer.of({})


def _may_use(request: Request, repository: Repository, account: str, oid: str) -> bool:
    """Whether an account may commit a large file that is here: it sent the content itself, or the repository has it.

    Who only knows the hash and the size of somebody else's private file must not get its content by naming them.
    """
    path = request.server.store.lfs_path(oid)
    return path.is_file() and ((account, oid) in request.server.uploads or repository.has_large_file(oid))


def _large_file(request: Request, repository: Repository, account: str, oid: str, size: int) -> dict[str, Any]:
    """Return the tree entry of a large file that the account may use; others look as if they had not been sent."""
    if not _may_use(request, repository, account, oid):
        raise HubError(400, f"LFS object {oid} was not uploaded")
    return request.server.store.lfs_entry(oid, size)


def _checked_path(path: Any) -> str:
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..", ".git") or re.search(r"[\x00-\x1f\x7f\\]", part) for part in parts):
        raise HubError(400, f"invalid path {path!r}")
    return str(path)


def _apply(
    request: Request, repository: Repository, account: str, files: Tree, key: str, value: dict[str, Any]
) -> None:
    store = request.server.store
    path = _checked_path(value["path"].rstrip("/") if key == "deletedFolder" else value["path"])
    if key == "file":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except binascii.Error:
            raise HubError(400, f"{path}: the content is not base64") from None
        if path == "README.md":
            errors = check_card(content.decode("utf-8", "replace"), request.kind)[0]
            if errors:
                raise HubError(400, "invalid metadata in README.md: " + "; ".join(errors))
        files[path] = store.add_blob(content)
    elif key == "lfsFile":
        files[path] = _large_file(request, repository, account, value["oid"], value["size"])
    elif key == "deletedFile":
        if path not in files:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        del files[path]
    elif key == "deletedFolder":
        for inside in [name for name in files if name.startswith(f"{path}/")]:
            del files[inside]
    else:
        raise HubError(400, f"unknown operation {key!r}")


def _operations(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """Return the header and the operations of a commit's NDJSON."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        rows = [(line["key"], dict(line["value"])) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise HubError(400, "a commit is lines of JSON with key and value") from None
    if not rows or rows[0][0] != "header" or not rows[0][1].get("summary"):
        raise HubError(400, "the first line must be a header with a summary")
    return rows[0][1], rows[1:]


def commit(request: Request) -> Answer:
    """Apply all operations in one step, on a branch or as a new pull request."""
    create_pr = request.parameter("create_pr") == "1"
    repository, user = _writable(request, create_pr), request.signed_in()
    header, operations = _operations(request.body)
    number = 0
    with request.server.store.lock:
        ref = _ref_for_writing(repository, request.groups["revision"])
        parent = repository.resolve(ref)
        if header.get("parentCommit") not in (None, parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.tree(ref))
        for key, value in operations:
            _apply(request, repository, user.name, files, key, value)
        title, description = str(header["summary"]), str(header.get("description", ""))
        if create_pr:
            number = 1 + max((int(r.removeprefix(PULLS)) for r in repository.refs() if r.startswith(PULLS)), default=0)
            ref = f"{PULLS}{number}"
        sha = repository.add_commit(ref, parent, files, title, description, user.name)
        if create_pr:
            opened = {"title": title, "status": "open", "author": user.name, "createdAt": now(), "base": parent}
            known = repository.settings()["discussions"]
            repository.update(discussions={**known, str(number): opened})
    base = f"{request.base_url}/{repository.repo_id}"
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{base}/commit/{sha}", "hookOutput": ""}
    return Answer.of(answer | ({"pullRequestUrl": f"{base}/discussions/{number}"} if create_pr else {}))


def resolve(request: Request) -> Answer:
    """Send a file, or a range of it, with the headers by which the client names its cache."""
    repository = request.repository()
    request.refuse_if_gated(repository)
    sha = repository.resolve(request.groups["revision"])
    entry = repository.tree(sha).get(request.groups["path"])
    if entry is None:
        message = f"Entry not found: {request.groups['path']}"
        headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha}
        answer = Answer.of({"error": message}, 404)
        answer.headers |= headers
        return answer
    headers = {
        "ETag": f'"{entry["oid"]}"',
        "X-Repo-Commit": sha,
        "Accept-Ranges": "bytes",
        # What strangers uploaded is never shown as a page of this server.
        "Content-Type": "application/octet-stream",
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    if "lfs" in entry:
        headers |= {"X-Linked-ETag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(entry["size"])}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Answer(status=304, headers=headers)
    size = int(entry["size"])
    start, end = _range(request.headers.get("range", ""), size)
    answer = Answer(status=200, headers=headers, file=request.server.store.path_of(entry), start=0, length=size)
    if (start, end) != (0, size):
        answer.status, answer.start, answer.length = 206, start, end - start
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return answer


def _range(header: str, size: int) -> tuple[int, int]:
    """Return start and end (after the last byte) of a request's Range; everything without one."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if match is None or not any(match.groups()):
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    start, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    if start >= end:
        raise HubError(416, f"the file has {size} bytes")
    return start, end
