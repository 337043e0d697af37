"""Runs captioning code as a stranger would: a fresh interpreter, an empty cache, no hfcap, only the packages named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from hfcap.card.requirements import brought_by, modules_of, owners_of_modules
from hfcap.children import environment_without_secrets, run_program
from hfcap.errors import WorkError
from hfcap.files import read_json, read_text
from hfcap.progress import progress_bar
from hfcap.publishing import import_guard
from hfcap.publishing.secrets import redact

TIMEOUT_SECONDS = 3600

_RUNNER = """
import contextlib, io, json, pathlib, sys, traceback
task = json.load(sys.stdin)
guard = None if task["allowed"] is None else ImportGuard(**task["allowed"])
if guard is not None:
    guard.install()
sys.modules["hfcap"] = None
import torch
def refuse(*_, **__):
    raise RuntimeError("its weights are a pickle, which can run code; only safetensors are loaded here")
torch.load = refuse
def messages(error):
    found = []
    while error is not None:
        found.append("".join(traceback.format_exception_only(error)))
        error = error.__cause__ or error.__context__
    return found
results = {}
for name, job in task["jobs"].items():
    names, captions, error, said = {"__name__": "card"}, [], None, []
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(job["load"], names)
        for image in job["images"]:
            pathlib.Path("photo.jpg").write_bytes(pathlib.Path(image).read_bytes())
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(job["caption"], names)
            captions.append(printed.getvalue())
    except Exception as failure:
        error, said = traceback.format_exc(), messages(failure)
    hidden = sorted(guard.asked_for) if guard is not None else []
    results[name] = {"captions": captions, "error": error, "messages": said, "hidden": hidden}
    pathlib.Path("results.json").write_text(json.dumps(results))
"""
"""Runs, after import_guard.py, each job's code: what loads the model once, what captions photo.jpg for each image.

Without torch.load: transformers and PEFT fall back to pickles where a repository, or the base of an adapter, has no
safetensors by the name they look for.
"""

_DROPPED = (
    "PYTHONPATH",
    "PYTHONHOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "TRANSFORMERS_CACHE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_MODULES_CACHE",
    "HF_XET_CACHE",
)


@dataclass(frozen=True, slots=True)
class Job:
    """Code that loads a model, code that prints a caption of photo.jpg, and images that take photo.jpg's place."""

    load: str
    caption: str
    images: Sequence[Path]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What was printed for each image (white space joined); or the last lines of the failure.

    Attributes:
        unnamed: packages that are installed here, were hidden, and are what the failure speaks of.
    """

    captions: list[str]
    error: str | None
    unnamed: tuple[str, ...] = ()


def run_clean(
    jobs: Mapping[str, Job], token: str | None = None, packages: Sequence[str] | None = None
) -> dict[str, JobResult]:
    """Run jobs one after the other in one clean process; an error of one leaves the others alone.

    Args:
        token: for private repositories; without it the process is signed out, so that code of strangers finds none.
        packages: requirements; the process finds these and what they bring along, and nothing else that is installed
            here. None: everything but hfcap.

    Raises:
        WorkError: the process was killed or did not end in time.
    """
    allowed: dict[str, list[str]] | None = None
    if packages is not None:
        distributions = brought_by(packages)
        allowed = {"modules": sorted(modules_of(distributions)), "distributions": sorted(distributions)}
    task = {
        "allowed": allowed,
        "jobs": {
            name: {"load": job.load, "caption": job.caption, "images": [str(path.resolve()) for path in job.images]}
            for name, job in jobs.items()
        },
    }
    runner = read_text(Path(import_guard.__file__), "part of hfcap") + _RUNNER
    with tempfile.TemporaryDirectory(prefix="hfcap-clean-") as temporary, progress_bar() as progress:
        progress.add_task("Captioning in a clean process", total=None)
        work = Path(temporary) / "work"
        work.mkdir()
        try:
            done = run_program(
                [sys.executable, "-c", runner],
                folder=work,
                send=json.dumps(task),
                timeout=TIMEOUT_SECONDS,
                environment=_environment(Path(temporary) / "cache", token),
            )
        except subprocess.TimeoutExpired:
            raise WorkError(
                f"the clean process did not end within {TIMEOUT_SECONDS} s; try again on a faster machine"
            ) from None
        results = read_json(work / "results.json", "results") if (work / "results.json").is_file() else {}
    if set(results) != set(jobs):
        raise WorkError(
            f"the clean process ended with code {done.returncode}; check memory and installed packages: "
            f"{_last_lines(done.stderr)}"
        )
    shown = set(owners_of_modules()) - {"hfcap"} if allowed is None else set(allowed["modules"])
    return {name: _result(value, shown) for name, value in results.items()}


def _environment(cache: Path, token: str | None) -> dict[str, str]:
    # A repository's own code may run there: it gets no secret of whoever verifies it, whatever service it is for.
    values = {name: value for name, value in environment_without_secrets().items() if name not in _DROPPED}
    values |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return values | ({"HF_TOKEN": token} if token else {})


def _result(value: dict[str, Any], shown: set[str]) -> JobResult:
    captions = [" ".join(text.split()) for text in value["captions"]]
    if not value["error"]:
        return JobResult(captions, None)
    unnamed = next(filter(None, (_named_in(message, value["hidden"], shown) for message in value["messages"])), ())
    return JobResult(captions, _last_lines(value["error"]), unnamed)


def _named_in(message: str, asked_for: Sequence[str], shown: set[str]) -> tuple[str, ...]:
    """Return hidden packages that a message speaks of: 'requires the Torchvision library', 'pip install timm'.

    Args:
        asked_for: modules that the process looked for in vain. shown: modules that it could find.
    """
    found: set[str] = set()
    for module, owners in owners_of_modules().items():
        # transformers may not even look for a package, because it misses another one that this one needs.
        before = r"(?<![\w/])" if module in asked_for else r"(?:requires (?:the )?|pip install )"
        names = "|".join(re.escape(name) for name in {*owners, module})
        if module not in shown and re.search(rf"{before}(?:{names})(?![\w/])", message, re.IGNORECASE):
            found.update(map(canonicalize_name, owners))
    return tuple(sorted(found))


def _last_lines(text: str) -> str:
    return "\n".join(redact(text).strip().splitlines()[-6:])
