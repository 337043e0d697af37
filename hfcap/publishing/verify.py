"""Proof that what was published works for a stranger: a clean process, an empty cache, no hfcap, the card's own code.

Every publication carries a few pictures with the captions that hfcap's own decoding gave (pictures.py); `verify`
downloads the repository and captions them with the code that the card shows. After `publish` the run's
sample pictures are captioned too, and compared with the recorded predictions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_token, snapshot_download

from hfcap.errors import UserError, WorkError
from hfcap.files import read_json
from hfcap.publishing import hub
from hfcap.publishing.pictures import RECORD, read_record
from hfcap.publishing.secrets import redact
from hfcap.publishing.snippet import usage_code

TIMEOUT_SECONDS = 3600
TOLERATED_SHARE = 0.4
"""Of the run's own pictures: hfcap may have scored them from half-precision features and faster JPEG decoding."""

_RUNNER = """
import contextlib, io, json, pathlib, sys
sys.modules["hfcap"] = None
task = json.load(sys.stdin)
load, caption = task["load"], task["caption"]
names = {"__name__": "card"}
captions = {}
for picture in task["pictures"]:
    pathlib.Path("photo.jpg").write_bytes(pathlib.Path(picture).read_bytes())
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if not captions:
            exec(load, names)
        exec(caption, names)
    captions[picture] = printed.getvalue()
pathlib.Path("captions.json").write_text(json.dumps(captions))
"""
"""Runs the card's code: what loads the model once, what captions photo.jpg for each picture."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A caption that the run recorded and the one that the published model gave; white space does not count."""

    picture: str
    recorded: str
    published: str

    @property
    def agrees(self) -> bool:
        """Whether both are the same caption."""
        return self.recorded.split() == self.published.split()


def verify(
    repo_id: str,
    revision: str | None = None,
    pictures: Mapping[Path, str] | None = None,
    trust_remote_code: bool = False,
) -> list[Comparison]:
    """Caption pictures with a published model as a stranger would, and compare with the recorded captions.

    Args:
        revision: branch, pull request or commit; default: main.
        pictures: more picture files with the captions that the run recorded; some may differ (TOLERATED_SHARE), the
            published ones may not.
        trust_remote_code: run modelling code of the repository; only needed where it brings its own.

    Raises:
        UserError: no such repository, nothing recorded in it, or it brings code and trust_remote_code is off.
        WorkError: the card's code fails, or a caption differs.
    """
    with tempfile.TemporaryDirectory(prefix="hfcap-verify-") as temporary:
        folder = Path(temporary)
        small = _download_records(repo_id, revision, folder)
        code = _card_code(repo_id, revision, small, trust_remote_code)
        record = read_record(small)
        expected = {small / name: caption for name, caption in record["captions"].items()}
        expected |= dict(pictures or {})
        captions = _run_clean(repo_id, code, list(expected), folder)
        compared = [Comparison(path.name, expected[path], captions[path]) for path in expected]
    if record["deterministic"]:
        n_published = len(record["captions"])
        _refuse_differences(repo_id, compared[:n_published], 0.0)
        _refuse_differences(repo_id, compared[n_published:], TOLERATED_SHARE)
    return compared


def _download_records(repo_id: str, revision: str | None, folder: Path) -> Path:
    """Fetch everything but the weights."""
    with hub.quiet_unless_terminal():
        hub.with_retries(
            lambda: snapshot_download(
                repo_id, revision=revision, local_dir=folder / "repository", ignore_patterns=["*.safetensors", "*.bin"]
            ),
            f"reading {repo_id}",
        )
    if not (folder / "repository" / RECORD).is_file():
        raise UserError(f"{repo_id}: no {RECORD}; only repositories that hfcap published can be verified")
    return folder / "repository"


def _card_code(repo_id: str, revision: str | None, repository: Path, trust_remote_code: bool) -> tuple[str, str]:
    """Return the card's code in two parts: loading the model, captioning one picture.

    The code is written anew from the repository's configuration and must stand in the card letter by letter: text that
    somebody else wrote into a card is never executed.
    """
    has_code = any(repository.glob("*.py"))
    if has_code and not trust_remote_code:
        raise UserError(f"{repo_id}: brings its own modelling code; read it, then give --trust-remote-code")
    config = _optional_json(repository / "config.json")
    adapter = _optional_json(repository / "adapter_config.json")
    base = (adapter["base_model_name_or_path"], adapter.get("revision")) if adapter else None
    shown = usage_code(repo_id, repository, has_code, config.get("model_type"), base)
    if shown not in (repository / "README.md").read_text(encoding="utf-8"):
        raise WorkError(f"{repo_id}: the card shows other code than hfcap writes for this model; publish it again")
    executed = usage_code(repo_id, repository, has_code, config.get("model_type"), base, revision)
    load, separator, caption = executed.partition("image = ")
    return load, separator + caption


def _optional_json(path: Path) -> dict[str, Any]:
    return dict(read_json(path, "configuration")) if path.is_file() else {}


def _run_clean(repo_id: str, code: tuple[str, str], pictures: list[Path], folder: Path) -> dict[Path, str]:
    """Run the card's code in a fresh interpreter with an empty cache and without hfcap; returns what it printed."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_MODULES_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if token := get_token():
        environment["HF_TOKEN"] = token
    work = folder / "work"
    work.mkdir()
    task = {"load": code[0], "caption": code[1], "pictures": [str(path.resolve()) for path in pictures]}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RUNNER],
            input=json.dumps(task),
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise WorkError(f"{repo_id}: the card's code did not end within {TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        reason = "\n".join(redact(done.stderr).strip().splitlines()[-6:])
        raise WorkError(f"{repo_id}: the card's code fails in a clean process:\n{reason}")
    captions = read_json(work / "captions.json", "captions of the published model")
    return {path: " ".join(captions[str(path.resolve())].split()) for path in pictures}


def _refuse_differences(repo_id: str, compared: list[Comparison], tolerated_share: float) -> None:
    different = [item for item in compared if not item.agrees]
    if len(different) > tolerated_share * len(compared):
        lines = "\n".join(f"  {c.picture}: recorded {c.recorded!r}, published {c.published!r}" for c in different[:5])
        raise WorkError(
            f"{repo_id}: {len(different)} of {len(compared)} captions of the published model differ from the recorded "
            f"ones:\n{lines}\nlook at prompt, processor and decoding: what was measured is not what was published"
        )
