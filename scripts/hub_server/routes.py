"""Which function answers which address, as huggingface_hub 2.4 calls them."""

from __future__ import annotations

from scripts.hub_server import contents, repositories
from scripts.hub_server.messages import Route

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_REPO}"
_FILES = rf"/(?P<kind>datasets/|spaces/)?{_REPO}"
_DISCUSSION = rf"{_API}/discussions/(?P<number>\d{{1,9}})"

_LARGE_FILE = r"/lfs-storage/(?P<oid>[0-9a-f]{64})/(?P<account>[\w.-]+)/(?P<signature>[0-9a-f]{64})"
ROUTES: list[tuple[str, tuple[str, ...], str, Route]] = [
    ("whoami", ("GET",), r"/api/whoami-v2", repositories.whoami),
    ("validate_yaml", ("POST",), r"/api/validate-yaml", repositories.validate_yaml),
    ("create_repo", ("POST",), r"/api/repos/create", repositories.create_repository),
    ("delete_repo", ("DELETE",), r"/api/repos/delete", repositories.delete_repository),
    ("move_repo", ("POST",), r"/api/repos/move", repositories.move_repository),
    ("list", ("GET",), r"/api/(?P<kind>models|datasets|spaces)", repositories.list_repositories),
    ("auth_check", ("GET",), rf"{_API}/auth-check(?P<write>/write)?", repositories.authorisation),
    ("settings", ("PUT",), rf"{_API}/settings", repositories.update_settings),
    ("refs", ("GET",), rf"{_API}/refs", repositories.refs),
    ("create_ref", ("POST",), rf"{_API}/(?P<sort>branch|tag)/(?P<name>.+)", repositories.create_ref),
    ("delete_ref", ("DELETE",), rf"{_API}/(?P<sort>branch|tag)/(?P<name>.+)", repositories.delete_ref),
    ("discussions", ("GET",), rf"{_API}/discussions", repositories.discussions),
    ("discussion", ("GET",), _DISCUSSION, repositories.discussion),
    ("merge", ("POST",), rf"{_DISCUSSION}/merge", repositories.merge_pull_request),
    ("change_status", ("POST",), rf"{_DISCUSSION}/status", repositories.change_status),
    ("tree", ("GET",), rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?", contents.tree),
    ("paths_info", ("POST",), rf"{_API}/paths-info/{_REVISION}", contents.paths_info),
    ("commits", ("GET",), rf"{_API}/commits/{_REVISION}", contents.commits),
    ("preupload", ("POST",), rf"{_API}/preupload/{_REVISION}", contents.preupload),
    ("commit", ("POST",), rf"{_API}/commit/{_REVISION}", contents.commit),
    ("no_xet", ("GET",), rf"{_API}/xet-(?:read|write)-token/{_REVISION}", contents.no_xet),
    ("repo_info", ("GET",), rf"{_API}(?:/revision/{_REVISION})?", repositories.repository_info),
    ("lfs_batch", ("POST",), rf"{_FILES}\.git/info/lfs/objects/batch", contents.lfs_batch),
    ("lfs_verify", ("POST",), rf"/lfs-storage/(?P<kind>models|datasets|spaces)/{_REPO}/verify", contents.lfs_verify),
    ("lfs_upload", ("PUT",), _LARGE_FILE, contents.lfs_upload),
    ("resolve", ("GET", "HEAD"), rf"{_FILES}/resolve/{_REVISION}/(?P<path>.+)", contents.resolve),
]
"""(name, methods, path, function); the first match answers."""
