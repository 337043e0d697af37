"""The Hub's routes for models, as huggingface_hub 2.4 calls them."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from typing import Any

from tests.hub.card_rules import check_card
from tests.hub.server import Answer, Request, Route
from tests.hub.store import HubError, Repository, Tree

LARGEST_GIT_FILE = 10 * 2**20


def whoami(request: Request) -> Answer:
    user = request.signed_in()
    organizations = [{"type": "org", "name": name, "roleInOrg": role} for name, role in user.organizations.items()]
    access = {"displayName": "test", "role": user.role}
    return Answer.of({"type": "user", "name": user.name, "orgs": organizations, "auth": {"accessToken": access}})


def create_repository(request: Request) -> Answer:
    user, body = request.signed_in(), request.json()
    namespace = body.get("organization") or user.name
    if body.get("type") not in (None, "model"):
        raise HubError(400, "this loopback Hub keeps models only")
    if not user.may_write(namespace):
        raise HubError(403, f"You don't have the rights to create a model under the namespace {namespace!r}.")
    repo_id = f"{namespace}/{body['name']}"
    url = f"{request.server.endpoint}/{repo_id}"
    with request.server.store.lock:
        try:
            private = body.get("visibility") == "private" or bool(body.get("private"))
            request.server.store.create(repo_id, private)
        except HubError as error:
            if error.status != 409:
                raise
            return Answer.of({"error": error.message, "url": url}, 409)
    return Answer.of({"url": url, "name": repo_id})


def delete_repository(request: Request) -> Answer:
    import shutil

    body = request.json()
    request.groups["repo"] = f"{body.get('organization') or request.signed_in().name}/{body['name']}"
    with request.server.store.lock:
        shutil.rmtree(request.repository(write=True).folder)
    return Answer.of({})


def update_settings(request: Request) -> Answer:
    body = request.json()
    changes: dict[str, Any] = {}
    if "visibility" in body or "private" in body:
        changes["private"] = body.get("visibility") == "private" or bool(body.get("private"))
    if "gated" in body:
        changes["gated"] = body["gated"]
    with request.server.store.lock:
        request.repository(write=True).update(**changes)
    return Answer.of({})


def validate_yaml(request: Request) -> Answer:
    errors, warnings = check_card(request.json()["content"])
    value = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Answer.of(value, 400 if errors else 200)


def _info(repository: Repository, revision: str) -> dict[str, Any]:
    commit = repository.resolve(revision)
    settings = repository.settings()
    return {
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.repo_id.split("/")[0],
        "sha": commit,
        "private": settings["private"],
        "gated": settings["gated"],
        "disabled": False,
        "lastModified": repository.commit(commit)["date"],
        "createdAt": repository.history("main")[-1]["date"],
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path} for path in sorted(repository.tree(commit))],
    }


def list_models(request: Request) -> Answer:
    visible = []
    for repository in request.server.store.list():
        namespace = repository.repo_id.split("/")[0]
        owns = request.user is not None and namespace in (request.user.name, *request.user.organizations)
        if (owns or not repository.settings()["private"]) and request.query.get("author", namespace) == namespace:
            visible.append(_info(repository, "main"))
    return Answer.of(visible)


def model_info(request: Request) -> Answer:
    return Answer.of(_info(request.repository(), request.groups.get("revision", "main")))


def authorisation(request: Request) -> Answer:
    repository = request.repository(write="write" in request.groups)
    request.refuse_if_gated(repository)
    return Answer.of({})


def _listed(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
    if "lfs" in entry:
        row["lfs"] = {**entry["lfs"], "pointerSize": 134}
    return row


def tree(request: Request) -> Answer:
    files = request.repository().tree(request.groups["revision"])
    prefix = request.groups["path"] + "/" if request.groups.get("path") else ""
    inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
    if prefix and not inside:
        raise HubError(404, f"{prefix[:-1]} does not exist", "EntryNotFound")
    rows, folders = [], set()
    for path, entry in sorted(inside.items()):
        steps = path[len(prefix) :].split("/")
        folders |= {prefix + "/".join(steps[:depth]) for depth in range(1, len(steps))}
        if request.query.get("recursive", "false").lower() in ("true", "1") or len(steps) == 1:
            rows.append(_listed(path, entry))
    if request.query.get("recursive", "false").lower() not in ("true", "1"):
        folders = {folder for folder in folders if "/" not in folder[len(prefix) :]}
    rows += [{"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()} for path in folders]
    return Answer.of(rows)


def paths_info(request: Request) -> Answer:
    files = request.repository().tree(request.groups["revision"])
    return Answer.of([_listed(path, files[path]) for path in request.json()["paths"] if path in files])


def refs(request: Request) -> Answer:
    found: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    kinds = {"refs/heads/": "branches", "refs/tags/": "tags", "refs/pr/": "pullRequests"}
    for ref, sha in request.repository().refs().items():
        for prefix, kind in kinds.items():
            if ref.startswith(prefix):
                name = ref.removeprefix("refs/pr/") if kind == "pullRequests" else ref.removeprefix(prefix)
                found[kind].append({"name": name, "ref": ref, "targetCommit": sha})
    if "include_prs" not in request.query:
        del found["pullRequests"]
    return Answer.of(found)


def commits(request: Request) -> Answer:
    rows = [
        {key: commit[key] for key in ("id", "title", "message", "date")} | {"authors": [{"user": commit["author"]}]}
        for commit in request.repository().history(request.groups["revision"])
    ]
    return Answer.of(rows)


def create_ref(request: Request) -> Answer:
    body = request.json()
    repository = request.repository(write=True)
    kind = {"branch": "refs/heads/", "tag": "refs/tags/"}[request.groups["kind"]]
    name = kind + (body["tag"] if request.groups["kind"] == "tag" else request.groups["name"])
    with request.server.store.lock:
        if name in repository.refs():
            raise HubError(409, f"Reference {name} already exists")
        start = request.groups["name"] if request.groups["kind"] == "tag" else body.get("startingPoint", "main")
        repository.set_ref(name, repository.resolve(start))
    return Answer.of({})


def _ref_for_writing(repository: Repository, revision: str) -> str:
    names = repository.refs()
    if revision in names:
        return revision
    if f"refs/heads/{revision}" not in names:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return f"refs/heads/{revision}"


def preupload(request: Request) -> Answer:
    create_pr = request.query.get("create_pr") == "1"
    repository = _writable(request, create_pr)
    ref = _ref_for_writing(repository, request.groups["revision"])
    files = repository.tree(ref)
    attributes = repository.content(ref, ".gitattributes").decode() if ".gitattributes" in files else ""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
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


def _writable(request: Request, create_pr: bool) -> Repository:
    # Anyone who is signed in and can read may open a pull request.
    if create_pr:
        request.signed_in()
        return request.repository()
    return request.repository(write=True)


def lfs_batch(request: Request) -> Answer:
    request.signed_in()
    repository = request.repository()
    rows = []
    for item in request.json()["objects"]:
        row = {"oid": item["oid"], "size": item["size"]}
        if not request.server.store.lfs_path(item["oid"]).is_file():
            base = f"{request.server.endpoint}/lfs-storage"
            row["actions"] = {
                "upload": {"href": f"{base}/{item['oid']}"},
                "verify": {"href": f"{base}/{repository.repo_id}/verify"},
            }
        rows.append(row)
    return Answer.of({"transfer": "basic", "objects": rows})


def lfs_upload(request: Request) -> Answer:
    from hfcap.files import write_bytes

    oid = request.groups["oid"]
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(400, "the content does not have this SHA-256")
    write_bytes(request.server.store.lfs_path(oid), request.body)
    return Answer()


def lfs_verify(request: Request) -> Answer:
    request.signed_in()
    body = request.json()
    request.server.store.lfs_entry(body["oid"], body["size"])
    return Answer.of({})


def _apply(request: Request, files: Tree, key: str, value: dict[str, Any]) -> None:
    store, path = request.server.store, value["path"]
    if path.startswith("/") or ".." in path.split("/"):
        raise HubError(400, f"invalid path {path!r}")
    if key == "file":
        content = base64.b64decode(value["content"], validate=True)
        if path == "README.md" and (errors := check_card(content.decode())[0]):
            raise HubError(400, "invalid metadata in README.md: " + "; ".join(errors))
        files[path] = store.add_blob(content)
    elif key == "lfsFile":
        files[path] = store.lfs_entry(value["oid"], value["size"])
    elif key == "deletedFile":
        if path not in files:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        del files[path]
    elif key == "deletedFolder":
        for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
            del files[inside]
    else:
        raise HubError(400, f"unknown operation {key!r}")


def commit(request: Request) -> Answer:
    create_pr = request.query.get("create_pr") == "1"
    repository, user = _writable(request, create_pr), request.signed_in()
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
        raise HubError(400, "the first line must be a header with a summary")
    header = lines[0]["value"]
    with request.server.store.lock:
        ref = _ref_for_writing(repository, request.groups["revision"])
        parent = repository.resolve(ref)
        if header.get("parentCommit") not in (None, parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.tree(ref))
        for line in lines[1:]:
            _apply(request, files, line["key"], line["value"])
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs())
        ref = f"refs/pr/{number}" if create_pr else ref
        sha = repository.add_commit(ref, parent, files, header["summary"], header.get("description", ""), user.name)
    base = f"{request.server.endpoint}/{repository.repo_id}"
    value = {"success": True, "commitOid": sha, "commitUrl": f"{base}/commit/{sha}", "hookOutput": ""}
    return Answer.of(value | ({"pullRequestUrl": f"{base}/discussions/{number}"} if create_pr else {}))


def resolve(request: Request) -> Answer:
    repository = request.repository()
    request.refuse_if_gated(repository)
    sha = repository.resolve(request.groups["revision"])
    entry = repository.tree(sha).get(request.groups["path"])
    if entry is None:
        error = HubError(404, f"Entry not found: {request.groups['path']}", "EntryNotFound")
        answer = Answer.of({"error": error.message}, 404)
        answer.headers |= {"X-Error-Code": error.code, "X-Error-Message": error.message, "X-Repo-Commit": sha}
        return answer
    headers = {"ETag": f'"{entry["oid"]}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
    if "lfs" in entry:
        headers |= {"X-Linked-ETag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(entry["size"])}
    if request.method == "HEAD":
        return Answer(b"", 200, headers | {"Content-Length": str(entry["size"])})
    return Answer(request.server.store.content(entry), 200, headers)


REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, tuple[str, ...], str, Route]] = [
    ("whoami", ("GET",), r"/api/whoami-v2", whoami),
    ("validate_yaml", ("POST",), r"/api/validate-yaml", validate_yaml),
    ("create_repo", ("POST",), r"/api/repos/create", create_repository),
    ("delete_repo", ("DELETE",), r"/api/repos/delete", delete_repository),
    ("list_models", ("GET",), r"/api/models", list_models),
    ("auth_check", ("GET",), rf"/api/models/{REPO}/auth-check(?P<write>/write)?", authorisation),
    ("settings", ("PUT",), rf"/api/models/{REPO}/settings", update_settings),
    ("tree", ("GET",), rf"/api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?", tree),
    ("paths_info", ("POST",), rf"/api/models/{REPO}/paths-info/{REVISION}", paths_info),
    ("refs", ("GET",), rf"/api/models/{REPO}/refs", refs),
    ("commits", ("GET",), rf"/api/models/{REPO}/commits/{REVISION}", commits),
    ("create_ref", ("POST",), rf"/api/models/{REPO}/(?P<kind>branch|tag)/(?P<name>.+)", create_ref),
    ("preupload", ("POST",), rf"/api/models/{REPO}/preupload/{REVISION}", preupload),
    ("commit", ("POST",), rf"/api/models/{REPO}/commit/{REVISION}", commit),
    ("model_info", ("GET",), rf"/api/models/{REPO}(?:/revision/{REVISION})?", model_info),
    ("lfs_batch", ("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("lfs_verify", ("POST",), rf"/lfs-storage/{REPO}/verify", lfs_verify),
    ("lfs_upload", ("PUT",), r"/lfs-storage/(?P<oid>[0-9a-f]{64})", lfs_upload),
    ("resolve", ("GET", "HEAD"), rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", resolve),
]
"""(name for faults, methods, path, function); the first match answers."""
