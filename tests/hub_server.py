"""Fixture `hub`: a loopback Hub for the real huggingface_hub client, in this process and in subprocesses.

Use: `from tests.hub_server import hub` in a conftest.py. Tokens are random per test, so that a search for their bytes
in logs and files proves something.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.hub_server.messages import User
from tests.hub.faults import FaultyHub


class Hub(FaultyHub):
    """The loopback Hub with three accounts: alice may write, rita may only read, mallory is somebody else."""

    def __init__(self, root: Path) -> None:
        self.alice, self.rita, self.mallory = (f"hf_{secrets.token_hex(17)}" for _ in range(3))
        users = {
            self.alice: User("alice", organizations={"club": "write", "museum": "read"}),
            self.rita: User("alice", role="read"),
            self.mallory: User("mallory"),
        }
        super().__init__(root, users)

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Environment variables for a subprocess that talks to this Hub with a fresh cache in `home`."""
        values = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return values | ({"HF_TOKEN": token} if token else {})


@contextlib.contextmanager
def client_of_transformers_renewed() -> Iterator[None]:
    """From 5.24 on transformers keeps one client with the address of its first use, in every test of a process."""

    def forget() -> None:
        module = sys.modules.get("transformers.utils.hub")
        if module is not None and "_hf_api" in vars(module):
            vars(module)["_hf_api"] = None

    forget()
    try:
        yield
    finally:
        forget()


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """A running Hub over folder/hub; this process is signed in as alice, without xet or waits between retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with Hub(folder / "hub") as server, pytest.MonkeyPatch.context() as patch:
        home = folder / "hf-home"
        for name, value in server.environment(home, server.alice).items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        # Only the client's clock: the Hub's own `slow` fault must stay slow.
        impatient = SimpleNamespace(**{**vars(time), "sleep": lambda _seconds: None})
        patch.setattr(_http, "time", impatient)
        with client_of_transformers_renewed():
            yield server
    assert server.crashes == []


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A Hub for one test."""
    with running_hub(tmp_path) as server:
        yield server
