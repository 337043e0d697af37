"""Routes about accounts and repositories: who am I, create, delete, move, settings, lists, discussions."""

from __future__ import annotations

from typing import Any

from scripts.hub_server.card_rules import check_card
from scripts.hub_server.messages import Answer, Request
from scripts.hub_server.store import HEADS, PULLS, TAGS, HubError, Repository, now


def whoami(request: Request) -> Answer:
    """Name, role and organisations of the token."""
    user = request.signed_in()
    organizations = [{"type": "org", "name": name, "roleInOrg": role} for name, role in user.organizations.items()]
    access = {"displayName": "token", "role": user.role}
    return Answer.of({"type": "user", "name": user.name, "orgs": organizations, "auth": {"accessToken": access}})


def _named(request: Request, body: dict[str, Any]) -> Request:
    """Let the request name the repository of its body, as create and delete write it."""
    namespace = body.get("organization") or request.signed_in().name
    request.groups["repo"] = f"{namespace}/{body.get('name') or ''}"
    request.groups["kind"] = f"{body.get('type') or 'model'}s"
    return request


def create_repository(request: Request) -> Answer:
    """Make a repository; 409 if it is there."""
    user, body = request.signed_in(), request.json()
    request = _named(request, body)
    repo_id, kind = request.groups["repo"], request.kind
    repository = request.server.store.named(repo_id, kind)
    if not user.may_write(repository.namespace):
        raise HubError(403, f"You don't have the rights to create a {kind} under {repository.namespace!r}.")
    prefix = "" if kind == "model" else f"{kind}s/"
    value = {"url": f"{request.base_url}/{prefix}{repo_id}", "name": repo_id}
    with request.server.store.lock:
        try:
            request.server.store.create(repo_id, _is_private(body), kind)
        except HubError as error:
            if error.status != 409:
                raise
            return Answer.of({**value, "error": error.message}, 409)
    return Answer.of(value)


def _is_private(body: dict[str, Any]) -> bool:
    return body.get("visibility") == "private" or bool(body.get("private"))


def delete_repository(request: Request) -> Answer:
    """Delete a repository."""
    request = _named(request, request.json())
    with request.server.store.lock:
        request.server.store.delete(request.repository(write=True))
    return Answer.of({})


def move_repository(request: Request) -> Answer:
    """Give a repository another name; the old one is free again."""
    body = request.json()
    request.groups |= {"repo": str(body.get("fromRepo")), "kind": f"{body.get('type') or 'model'}s"}
    target = request.server.store.named(str(body.get("toRepo")), request.kind)
    if not request.signed_in().may_write(target.namespace):
        raise HubError(403, f"You don't have the rights to write in the namespace {target.namespace!r}")
    with request.server.store.lock:
        request.server.store.move(request.repository(write=True), target.repo_id)
    return Answer.of({})


def update_settings(request: Request) -> Answer:
    """Change private and gated."""
    body = request.json()
    changes: dict[str, Any] = {}
    if "visibility" in body or "private" in body:
        changes["private"] = _is_private(body)
    if "gated" in body:
        if body["gated"] not in (False, "auto", "manual"):
            raise HubError(400, "gated must be false, auto or manual")
        changes["gated"] = body["gated"]
    with request.server.store.lock:
        request.repository(write=True).update(**changes)
    return Answer.of({})


def validate_yaml(request: Request) -> Answer:
    """Check a card's metadata."""
    body = request.json()
    errors, warnings = check_card(str(body.get("content", "")), str(body.get("repoType") or "model"))
    value = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Answer.of(value, 400 if errors else 200)


def _info(repository: Repository, revision: str) -> dict[str, Any]:
    commit = repository.resolve(revision)
    settings = repository.settings()
    return {
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "author": repository.namespace,
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


def list_repositories(request: Request) -> Answer:
    """Repositories that the user may see, newest change first; filters: author, search, limit."""
    author, search = request.parameter("author"), (request.parameter("search") or "").lower()
    limit = request.parameter("limit") or "1000"
    if not limit.isdecimal():
        raise HubError(400, "limit must be a number")
    visible = []
    for repository in request.server.store.list(request.kind):
        allowed = not repository.settings()["private"] or (
            request.user is not None and request.user.belongs_to(repository.namespace)
        )
        if allowed and author in (None, repository.namespace) and search in repository.repo_id.lower():
            visible.append(_info(repository, "main"))
    visible.sort(key=lambda info: info["lastModified"], reverse=True)
    return Answer.of(visible[: int(limit)])


def repository_info(request: Request) -> Answer:
    """Head commit, settings and file names."""
    return Answer.of(_info(request.repository(), request.groups.get("revision", "main")))


def authorisation(request: Request) -> Answer:
    """Whether the user may read or write."""
    request.refuse_if_gated(request.repository(write="write" in request.groups))
    return Answer.of({})


def refs(request: Request) -> Answer:
    """Branches, tags and, if asked for, pull requests."""
    found: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
    kinds = {HEADS: "branches", TAGS: "tags", PULLS: "pullRequests"}
    for ref, sha in request.repository().refs().items():
        for prefix, kind in kinds.items():
            if ref.startswith(prefix):
                found[kind].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha})
    if "include_prs" not in request.query:
        del found["pullRequests"]
    return Answer.of(found)


def create_ref(request: Request) -> Answer:
    """Make a branch (of a revision) or a tag (on a revision)."""
    body, repository = request.json(), request.repository(write=True)
    is_tag = request.groups["sort"] == "tag"
    name = TAGS + str(body.get("tag")) if is_tag else HEADS + request.groups["name"]
    start = request.groups["name"] if is_tag else str(body.get("startingPoint") or "main")
    with request.server.store.lock:
        if name in repository.refs():
            raise HubError(409, f"Reference {name} already exists")
        repository.set_ref(name, repository.resolve(start))
    return Answer.of({})


def delete_ref(request: Request) -> Answer:
    """Delete a branch or tag; main stays."""
    repository = request.repository(write=True)
    name = (TAGS if request.groups["sort"] == "tag" else HEADS) + request.groups["name"]
    with request.server.store.lock:
        if name not in repository.refs():
            raise HubError(404, f"Invalid rev id: {request.groups['name']}", "RevisionNotFound")
        if name == f"{HEADS}main":
            raise HubError(403, "the branch main cannot be deleted")
        repository.set_ref(name, None)
    return Answer.of({})


def discussions(request: Request) -> Answer:
    """Pull requests of a repository (there are no other discussions here)."""
    repository = request.repository()
    status = request.parameter("status")
    rows = [_discussion(request, repository, int(number)) for number in reversed(repository.settings()["discussions"])]
    rows = [row for row in rows if status in (None, "all", row["status"])]
    return Answer.of({"discussions": rows, "count": len(rows), "start": 0})


def discussion(request: Request) -> Answer:
    """One pull request with its commits."""
    repository, number = request.repository(), int(request.groups["number"])
    row = _discussion(request, repository, number)
    base = {entry["id"] for entry in repository.history("main")}
    events = [
        {"id": entry["id"], "type": "commit", "createdAt": entry["date"], "author": {"name": entry["author"]}}
        | {"data": {"subject": entry["title"], "oid": entry["id"]}}
        for entry in reversed(repository.history(f"{PULLS}{number}"))
        if entry["id"] not in base
    ]
    changes = {"base": f"{HEADS}main", "mergeCommitId": row.pop("merged", None)}
    return Answer.of({**row, "events": events, "filesWithConflicts": [], "changes": changes})


def _discussion(request: Request, repository: Repository, number: int) -> dict[str, Any]:
    found = repository.settings()["discussions"].get(str(number))
    if found is None:
        raise HubError(404, f"no pull request {number}", "EntryNotFound")
    row = {"num": number, "isPullRequest": True, "repo": {"name": repository.repo_id, "type": repository.kind}}
    return {**row, **found, "author": {"name": found["author"]}}


def merge_pull_request(request: Request) -> Answer:
    """Put the pull request's changes onto main in one commit; 409 where main changed the same files since."""
    user, number = request.signed_in(), request.groups["number"]
    with request.server.store.lock:
        repository = request.repository(write=True)
        row = _discussion(request, repository, int(number))
        if row["status"] != "open":
            raise HubError(400, f"pull request {number} is {row['status']}")
        start, ours = repository.commit(row["base"])["tree"], repository.tree("main")
        theirs = repository.tree(f"{PULLS}{number}")
        changed = {path for path in {*start, *theirs} if start.get(path) != theirs.get(path)}
        if conflicts := sorted(path for path in changed if ours.get(path) not in (start.get(path), theirs.get(path))):
            raise HubError(409, f"changed on main too: {', '.join(conflicts[:5])}")
        kept = {path: entry for path, entry in ours.items() if path not in changed}
        files = kept | {path: theirs[path] for path in changed if path in theirs}
        title = f"{row['title']} (#{number})"
        sha = repository.add_commit(f"{HEADS}main", repository.resolve("main"), files, title, "", user.name)
        _change_discussion(repository, number, status="merged", merged=sha)
    return Answer.of({})


def change_status(request: Request) -> Answer:
    """Close or reopen a pull request."""
    number, status = request.groups["number"], request.json().get("status")
    if status not in ("open", "closed"):
        raise HubError(400, "status must be open or closed")
    with request.server.store.lock:
        repository = request.repository(write=True)
        if _discussion(request, repository, int(number))["status"] == "merged":
            raise HubError(400, f"pull request {number} is merged")
        _change_discussion(repository, number, status=status)
    event = {"id": number, "type": "status-change", "createdAt": now(), "data": {"status": status}}
    return Answer.of({"newStatus": {**event, "author": {"name": request.signed_in().name}}})


def _change_discussion(repository: Repository, number: str, **changes: Any) -> None:
    known = repository.settings()["discussions"]
    repository.update(discussions={**known, number: {**known[number], **changes}})
