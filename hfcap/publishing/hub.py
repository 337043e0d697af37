"""Calls to the Hub: bounded retries where repeating is harmless, and messages that say what to do without any token."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from hfcap.data.web.network_errors import transport_errors
from hfcap.errors import UserError, WorkError
from hfcap.failures.hub import give_up_soon, out_of_reach
from hfcap.publishing.secrets import redact

Result = TypeVar("Result")

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 1.0
"""Doubled after each failed attempt."""

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@contextlib.contextmanager
def large_files_as_the_hub_takes_them(repo_id: str, kind: str, revision: str) -> Iterator[None]:
    """Send large files by Git LFS where the Hub has no Xet storage (`scripts/hub_server`, mirrors).

    huggingface_hub 2.4 takes Xet wherever hf_xet is installed and asks the Hub nothing: uploads to a Hub without it
    end at status 404 for the address of the write token.

    Args:
        repo_id, revision: exist, so that status 404 can only mean that there is no such address.
    """
    chosen = constants.HF_HUB_DISABLE_XET
    if not chosen:
        address = f"{HfApi().endpoint}/api/{kind}s/{repo_id}/xet-write-token/{quote(revision, safe='')}"
        answer = with_retries(
            lambda: get_session().get(address, headers=build_hf_headers()), f"asking how {repo_id} takes large files"
        )
        constants.HF_HUB_DISABLE_XET = answer.status_code == HTTPStatus.NOT_FOUND
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = chosen


@contextlib.contextmanager
def quiet_unless_terminal() -> Iterator[None]:
    """Silence huggingface_hub's progress bars where standard error is not a terminal."""
    silence = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()


def failures() -> tuple[type[Exception], ...]:
    """Everything that a call of huggingface_hub raises when the Hub, the network or the user's sign-in is at fault."""
    return (*transport_errors(), LocalTokenNotFoundError, RuntimeError, ValueError)


def root_cause(error: BaseException) -> BaseException:
    """Return the Hub or transport error after the RuntimeError that huggingface_hub raises for a failed upload."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the Hub's refusal; None where it gave none."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: overload, broken connection, no answer."""
    if isinstance(error, HfHubHTTPError):
        return status_of(error) in TRANSIENT
    if isinstance(error, OfflineModeIsEnabled):
        return False  # asked often enough (failures/hub.py), or not to be asked
    return isinstance(error, transport_errors())


def is_damaged_upload(error: BaseException) -> bool:
    """Whether the storage for large files refused what arrived: it was damaged on the way, or came too late."""
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return False
    # Files are put there and nowhere else; what the Hub itself is asked is posted.
    return error.response.request.method == "PUT"


def wait_before(attempt: int) -> None:
    """Sleep before the given attempt (counted from 1): 1, 2, 4 ... seconds."""
    time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))


def with_retries(action: Callable[[], Result], doing: str) -> Result:
    """Run an action that may be repeated without harm (reading, or creating with exist_ok).

    Args:
        doing: what is being done, for the message: "reading alice/model".

    Raises:
        UserError: not signed in, no permission, no such repository.
        WorkError: the Hub or the network failed, after `ATTEMPTS` tries where a retry makes sense.
    """
    give_up_soon()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except failures() as error:
            if attempt == ATTEMPTS or not is_transient(error):
                raise explained(error, doing) from None
            wait_before(attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def check_repo_id(repo_id: str, what: str = "--repo-id") -> None:
    """Raise UserError unless `repo_id` is namespace/name as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{what}: {error}; write namespace/name") from None
    if Path(repo_id).is_dir() or Path(repo_id).is_file():
        raise UserError(f"{what}: {repo_id} is on this machine; give a repository of the Hub, namespace/name")
    if "/" not in repo_id:
        raise UserError(f"{what}: {repo_id!r} lacks the namespace; write your-name/{repo_id}")


def card_errors(card: str, kind: str = "model") -> list[str]:
    """Return what the Hub has against the metadata of a card (its own check); empty if nothing.

    Raises:
        WorkError: the Hub or the network failed.
    """

    def ask() -> list[str]:
        address = f"{HfApi().endpoint}/api/validate-yaml"
        response = get_session().post(address, json={"repoType": kind, "content": card})
        if response.status_code != HTTPStatus.BAD_REQUEST:
            hf_raise_for_status(response)
        return [str(error.get("message")) for error in response.json().get("errors", [])]

    return with_retries(ask, "checking the card")


def explained(error: BaseException, doing: str) -> UserError | WorkError:
    """Return the error to raise for a failed call: what failed, why, what to do; never with a token in it."""
    error = root_cause(error)
    if isinstance(error, (UserError, WorkError)):
        return error
    if isinstance(error, LocalTokenNotFoundError):
        return UserError(f"{doing}: not signed in; run 'hf auth login' or set HF_TOKEN")
    if isinstance(error, GatedRepoError):
        return UserError(f"{doing}: the repository is gated; ask for access on its page, then run the command again")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{doing}: no such revision; create the branch on the Hub first, or leave --revision out")
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        reason = redact(out_of_reach(error) or str(error) or type(error).__name__)
        return WorkError(
            f"{doing}: the connection failed ({reason}); files become visible all together or not at all: run it again"
        )
    status = error.response.status_code
    reason = redact((error.server_message or "").strip().split("\n")[0])
    detail = f" ({reason})" if reason else ""
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{doing}: no such repository, or the token may not see it; check the name, and 'hf auth whoami'"
        )
    if status == 401:
        return UserError(f"{doing}: the Hub does not accept the token{detail}; run 'hf auth login' or renew HF_TOKEN")
    if status == 403:
        return UserError(
            f"{doing}: no permission{detail}; use a token with the write role, and a namespace you belong to"
        )
    if status == 412:
        return WorkError(f"{doing}: somebody else commits to the repository at the same time; run the command again")
    if status == 429:
        return WorkError(f"{doing}: the Hub's rate limit is reached{detail}; wait some minutes, then run it again")
    return WorkError(f"{doing}: the Hub answered {status}{detail}; run the command again later")
