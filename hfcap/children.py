"""Starting other programs: what they get of this process's environment, and what they do not."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_SECRET_NAMES = re.compile(r"(?i)token|secret|password|passwd|(?:api|access|private)_?key|credential")

TOKENS = {
    "a Hugging Face token": re.compile(rb"(?:hf_|api_org_)[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,})"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Google API key": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}"),
    "a GitLab, npm, PyPI or Stripe token": re.compile(
        rb"\b(?:glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|[sr]k_live_[A-Za-z0-9]{20,})"
    ),
    "a signed web token": re.compile(rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    "a Slack token": re.compile(rb"\bxox[abprs]-[0-9A-Za-z-]{10,}"),
    "an OpenAI or Anthropic key": re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}"),
}
"""What a text is -> how it looks, for secrets that are known by their shape."""


def names_secret(variable: str) -> bool:
    """Whether an environment variable holds a secret, judged by its name."""
    return _SECRET_NAMES.search(variable) is not None


def environment_without_secrets() -> dict[str, str]:
    """Return this process's environment for another program: no variable that is, or looks like, a secret."""
    return {
        name: value
        for name, value in os.environ.items()
        if not names_secret(name) and not any(shape.search(os.fsencode(value)) for shape in TOKENS.values())
    }


def run_program(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    send: str | None = None,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without this process's secrets, and return what it printed.

    Args:
        folder: where it works; None = here.
        send: its standard input; None = nothing.
        timeout: seconds after which it is killed; None = never.
        environment: all of its environment, in place of `environment_without_secrets()`.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it was not done in time.
    """
    return subprocess.run(
        list(command),
        cwd=folder,
        input="" if send is None else send,
        env=environment_without_secrets() if environment is None else dict(environment),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
    )


def start_this_program(command: Sequence[str], additions: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start this program once more; it gets this process's environment, tokens among it, and its standard error.

    Args:
        command: of hfcap itself, no other program. additions: environment variables of its own.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(list(command), env={**os.environ, **additions}, stdout=subprocess.DEVNULL)
