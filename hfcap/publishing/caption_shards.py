"""A finished folder of captions in shards as a dataset of the Hub, in commits of so many files.

The card and the manifest go up last: before, nothing says that the dataset is complete. Each commit compares what the
Hub holds with what is here (`publishing.commit`), so that one whose answer was lost is not made twice, and the same
command after a stop sends what is missing.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

import hfcap
from hfcap.captioning.sharded.folder import JOB, MANIFEST
from hfcap.errors import UserError, WorkError
from hfcap.files import read_json_lines, read_json_object
from hfcap.pages.markdown import code, escape
from hfcap.publishing.commit import Content, Push
from hfcap.publishing.push import DEFAULT_BRANCH, check_may_publish, open_repository
from hfcap.publishing.secrets import Finding, Scanner, refuse
from hfcap.recipe import strict_yaml

FILES_PER_COMMIT = 50
"""The Hub advises against more than 100 in one commit."""
_DATA = "data"
_REPLACED = (f"{_DATA}/*", "images/*", "metadata.jsonl")
"""What an earlier push of captions left, of which nothing stays."""
_SIZES = ((3, "n<1K"), (4, "1K<n<10K"), (5, "10K<n<100K"), (6, "100K<n<1M"), (7, "1M<n<10M"), (8, "10M<n<100M"))
_REMEDY = (
    "give inputs by names relative to the working folder, or remove the images that are named, and caption again with "
    "--force"
)


@dataclass(frozen=True)
class PushedShards:
    """What a publication did.

    Attributes:
        url: page of the dataset. n_files: that were sent; 0 = all was there. n_commits: that sent them.
    """

    url: str
    n_files: int
    n_commits: int


def push_caption_shards(folder: Path, repo_id: str, private: bool) -> PushedShards:
    """Push a finished folder of shards.

    Args:
        folder: as `captioning.sharded` leaves it. private: see `publishing.push.publish`.

    Raises:
        UserError: no permission, or a caption or name holds a secret or a path of this machine.
        WorkError: the Hub or the network failed, or somebody else changes the dataset at the same time.
    """
    rows = [row for _, row in read_json_lines(folder / MANIFEST, "manifest")]
    shards: dict[str, Path] = {f"{_DATA}/{row['shard']}": folder / row["shard"] for row in rows}
    last: dict[str, bytes | Path] = {
        JOB: folder / JOB,
        MANIFEST: folder / MANIFEST,
        "README.md": _card(rows, read_json_object(folder / JOB, "captioning"), next(iter(shards.values()))).encode(),
    }
    _refuse_private(shards, last)
    check_may_publish(repo_id)
    api = HfApi()
    open_repository(api, repo_id, private, create_pr=False, kind="dataset")
    _refuse_other_data(Push(api, last, repo_id, DEFAULT_BRANCH, kind="dataset").read(DEFAULT_BRANCH).files, repo_id)
    n_files = n_commits = 0
    paths = list(shards)
    starts = range(0, len(paths), FILES_PER_COMMIT)
    groups: list[Content] = [{path: shards[path] for path in paths[at : at + FILES_PER_COMMIT]} for at in starts]
    for number, group in enumerate([*groups, last]):
        replaces = _REPLACED if number == len(groups) else ()
        sent = _commit(Push(api, group, repo_id, DEFAULT_BRANCH, kind="dataset", replaces=replaces, kept=shards))
        n_files, n_commits = n_files + sent, n_commits + (sent > 0)
    return PushedShards(f"{api.endpoint}/datasets/{repo_id}", n_files, n_commits)


def _refuse_other_data(files: Iterable[str], repo_id: str) -> None:
    """Refuse a dataset that was not pushed by hfcap: what it holds would be deleted.

    Raises:
        UserError: names a file of it.
    """
    others = [name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in _REPLACED)]
    # A push that was stopped leaves shards alone.
    others = [name for name in others if not re.fullmatch(rf"{_DATA}/shard-\d+\.(parquet|tar)", name)]
    if others and not {MANIFEST, JOB}.issubset(files):
        raise UserError(
            f"--push-to-hub {repo_id}: the dataset holds {others[0]}, which hfcap did not push and would delete; give "
            "another name"
        )


def _commit(push: Push) -> int:
    """Commit a group of files; returns how many were not there before."""
    before = push.different(push.read(push.revision))
    push.commit()
    if different := push.different(push.read(push.revision)):
        raise WorkError(
            f"publishing {push.repo_id}: the Hub holds other content than was sent in {', '.join(different[:5])}; "
            "somebody else commits at the same time, or the upload was damaged: run the command again"
        )
    return len(before)


def _refuse_private(shards: Mapping[str, Path], others: Content) -> None:
    """Look for secrets and for paths of this machine in all texts, shard by shard.

    Raises:
        UserError: names where they are.
    """
    scanner = Scanner()
    found: list[Finding] = []
    for name, path in shards.items():
        for part, text in _texts(path):
            found += scanner.findings(name + part, text)
    for name, content in others.items():
        found += scanner.findings(name, content if isinstance(content, bytes) else content.read_bytes())
    refuse(list(dict.fromkeys(found)), _REMEDY)


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield what a shard says: its table as lines of JSON, or the members of a tar, images too, with their names."""
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None, "written by this program: files alone"
                yield f"/{member.name}", stream.read()
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all that it has seen
        return
    import pyarrow.parquet as pq

    rows = pq.read_table(path).to_pylist()
    yield "", b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows)


def _card(rows: Sequence[Mapping[str, Any]], job: Mapping[str, Any], first: Path) -> str:
    images, failures = sum(row["images"] for row in rows), sum(len(row["failures"]) for row in rows)
    duplicates, marked = sum(len(row.get("duplicates", ())) for row in rows), sum(row["marked"] for row in rows)
    values = {
        "pretty_name": "Captions" if job["form"] == "parquet" else "Captioned images",
        "task_categories": ["image-to-text"],
        "tags": ["image-captioning", "synthetic", "hfcap"],
        "size_categories": [next((text for digits, text in _SIZES if images < 10**digits), "100M<n<1B")],
        "configs": [{"config_name": "default", "data_files": f"{_DATA}/*{first.suffix}"}],
    }
    model = str(job["model"]) + (f" at commit {job['commit']}" if job["commit"] else "")
    said = [
        f"{images:,} images with captions that a model wrote: {escape(model)}, with hfcap {hfcap.__version__}.",
        f"{failures:,} could not be read." if failures else "",
        f"{duplicates:,} have the bytes of another one, which `{MANIFEST}` names." if duplicates else "",
        f"{marked:,} captions are marked for review, with the reason under `review`." if marked else "",
    ]
    columns = _TABLE if job["form"] == "parquet" else _TAR
    return f"""\
---
{strict_yaml.dump(values)}---

# {values["pretty_name"]}

{" ".join(text for text in said if text)}
Nobody has checked the captions: models describe what is not there, and guess age, sex and origin of people.

{columns}
`{MANIFEST}` names each shard with its SHA-256 and what could not be read, `{JOB}` says how captions were made: decoding
{code(json.dumps(job["decoding"]), in_table=False)}.

No licence is named, because the images may be other people's: say here who made them and what may be done with them.
"""


_TABLE = """\
| column | what it holds |
|---|---|
| `image_id`, `file_name` | which image it is |
| `caption` | the caption that the model ranked first; null where there is none |
| `score` | log-probability that beam search ranked by; null where captions are greedy or sampled |
| `candidates` | all captions, best first |
| `cut` | the caption ends at the limit of its length |
| `problem` | why the image could not be read |
| `duplicate_of` | where duplicates were left out: the image with the same bytes that has a caption |
"""
_TAR = """\
WebDataset shards: each sample has the image, its caption (`txt`) and what else is known of it (`json`).
"""
