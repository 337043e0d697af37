"""Open and serve the small Hub for rooms without internet, as `python -m scripts.hub_server` does."""

from __future__ import annotations

import ipaddress
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from hfcap.errors import UserError
from hfcap.files import read_text, write_json
from scripts.hub_server.messages import User
from scripts.hub_server.server import HubServer
from scripts.hub_server.store import is_name

_MARK = "hub.json"


def read_accounts(path: Path) -> dict[str, User]:
    """Read accounts: lines of name, token, `write` or `read`, then organisations; '#' starts a comment.

    Raises:
        UserError: a line is wrong; the message names it, never the token.
    """
    accounts: dict[str, User] = {}
    for number, line in enumerate(read_text(path, "accounts").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) < 3 or words[2] not in ("read", "write"):
            raise UserError(f"{path}: line {number}: write: name token write|read [organisation ...]")
        name, token, role, *organisations = words
        if len(token) < 12 or not token.isascii():
            raise UserError(f"{path}: line {number}: the token is too short (12 characters at least)")
        if token in accounts:
            raise UserError(f"{path}: line {number}: another account has this token")
        accounts[token] = User(name, role, dict.fromkeys(organisations, "write"))
    if not accounts:
        raise UserError(f"{path}: holds no account; write: name token write|read [organisation ...]")
    return accounts


def open_hub(folder: Path, host: str, port: int, accounts: Path | None, owner: str) -> HubServer:
    """Return a server over `folder` that does not answer yet.

    Args:
        host: address to listen on; with other than loopback addresses accounts are required.
        port: 0 takes a free one.
        accounts: file of accounts (`read_accounts`); without it everybody is `owner`, who may do everything.

    Raises:
        UserError: the folder holds something else, the address is not possible, or strangers could write.
    """
    tokens = read_accounts(accounts) if accounts else {}
    if not tokens and not _is_loopback(host):
        raise UserError(f"--host {host}: anyone in reach could change this Hub; give --accounts FILE as well")
    if not is_name(owner):
        raise UserError(f"--owner {owner!r}: not a name for an account; use letters, digits, '-', '_' and '.'")
    if folder.is_dir() != folder.exists() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / _MARK).is_file()
    ):
        raise UserError(f"{folder}: holds something else than a Hub; give a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _MARK).is_file():
            write_json(folder / _MARK, {"format": 1, "is": "a folder of hfcap's small Hub"})
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: cannot be made or written ({reason}); give a folder of your own") from None
    try:
        return HubServer(folder, tokens, owner, (host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {reason}; choose another --port") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(server: HubServer, say: Callable[[str], None]) -> None:
    """Answer until SIGINT or SIGTERM.

    Raises:
        UserError: another server uses the folder.
    """
    lock = FileLock(server.store.root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        server.server_close()
        raise UserError(f"{server.store.root}: another Hub serves this folder") from None
    except OSError as error:
        server.server_close()
        raise UserError(
            f"{server.store.root}: cannot be written ({error.strerror}); give a folder of your own"
        ) from None
    token = "" if server.tokens else " HF_TOKEN=any-text"
    say(f"Hub over {server.store.root} at {server.endpoint}; Ctrl-C stops it. Before using it in another terminal:")
    say(f"  export HF_ENDPOINT={server.endpoint}{token}")
    say("  export HF_HUB_DISABLE_XET=1   # for uploads by other programs than hfcap: this Hub speaks Git LFS, not Xet")
    if not server.tokens:
        say(f"Every token is accepted and stands for the account {server.owner!r}: publish as {server.owner}/name.")
    for number in (signal.SIGINT, signal.SIGTERM):
        # `shutdown` waits for the loop, which runs in this thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()
        lock.release()
