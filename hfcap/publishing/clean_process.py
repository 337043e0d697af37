"""Runs captioning code as a stranger would: a fresh interpreter, an empty cache, hfcap blocked from import."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfcap.children import environment_without_secrets, run_program
from hfcap.errors import WorkError
from hfcap.files import read_json
from hfcap.progress import progress_bar
from hfcap.publishing.secrets import redact

TIMEOUT_SECONDS = 3600

_RUNNER = """
import contextlib, io, json, pathlib, sys, traceback
import torch
sys.modules["hfcap"] = None
def refuse(*_, **__):
    raise RuntimeError("its weights are a pickle, which can run code; only safetensors are loaded here")
torch.load = refuse
results = {}
for name, job in json.load(sys.stdin).items():
    names, captions, error = {"__name__": "card"}, [], None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(job["load"], names)
        for picture in job["pictures"]:
            pathlib.Path("photo.jpg").write_bytes(pathlib.Path(picture).read_bytes())
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(job["caption"], names)
            captions.append(printed.getvalue())
    except Exception:
        error = traceback.format_exc()
    results[name] = {"captions": captions, "error": error}
    pathlib.Path("results.json").write_text(json.dumps(results))
"""
"""Runs each job's code: what loads the model once, what captions photo.jpg for each picture.

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
    """Code that loads a model, code that prints a caption of photo.jpg, and pictures that take photo.jpg's place."""

    load: str
    caption: str
    pictures: Sequence[Path]


@dataclass(frozen=True, slots=True)
class JobResult:
    """What was printed for each picture (white space joined); or the last lines of the failure."""

    captions: list[str]
    error: str | None


def run_clean(jobs: Mapping[str, Job], token: str | None = None) -> dict[str, JobResult]:
    """Run jobs one after the other in one clean process; an error of one leaves the others alone.

    Args:
        token: for private repositories; without it the process is signed out, so that code of strangers finds none.

    Raises:
        WorkError: the process was killed or did not end in time.
    """
    task = {
        name: {"load": job.load, "caption": job.caption, "pictures": [str(path.resolve()) for path in job.pictures]}
        for name, job in jobs.items()
    }
    with tempfile.TemporaryDirectory(prefix="hfcap-clean-") as temporary, progress_bar() as progress:
        progress.add_task("Captioning in a clean process", total=None)
        work = Path(temporary) / "work"
        work.mkdir()
        try:
            done = run_program(
                [sys.executable, "-c", _RUNNER],
                folder=work,
                send=json.dumps(task),
                timeout=TIMEOUT_SECONDS,
                environment=_environment(Path(temporary) / "cache", token),
            )
        except subprocess.TimeoutExpired:
            raise WorkError(f"the clean process did not end within {TIMEOUT_SECONDS} s") from None
        results = read_json(work / "results.json", "results") if (work / "results.json").is_file() else {}
    if set(results) != set(jobs):
        raise WorkError(f"the clean process ended with code {done.returncode}: {_last_lines(done.stderr)}")
    return {name: _result(value) for name, value in results.items()}


def _environment(cache: Path, token: str | None) -> dict[str, str]:
    # A repository's own code may run there: it gets no secret of whoever verifies it, whatever service it is for.
    values = {name: value for name, value in environment_without_secrets().items() if name not in _DROPPED}
    values |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return values | ({"HF_TOKEN": token} if token else {})


def _result(value: dict[str, Any]) -> JobResult:
    captions = [" ".join(text.split()) for text in value["captions"]]
    return JobResult(captions, _last_lines(value["error"]) if value["error"] else None)


def _last_lines(text: str) -> str:
    return "\n".join(redact(text).strip().splitlines()[-6:])
