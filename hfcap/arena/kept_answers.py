"""Answers of a judge, kept as they come: a stopped comparison goes on, and a later one asks only what is new."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hfcap.errors import UserError
from hfcap.files import only_one, read_json_lines, write_bytes

_HASH_DIGITS = 32


def answer_key(judge: Mapping[str, Any], image: str, text: str) -> str:
    """Return what names an answer: the judge with its settings, the image's bytes, and the question.

    Args:
        image: hash of the image's bytes.
    """
    digest = hashlib.sha256()
    for part in (json.dumps(judge, sort_keys=True), image, text):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:_HASH_DIGITS]


class KeptAnswers:
    """Answers by their key; `kept_answers` gives one.

    Args:
        known: key -> answer, from an earlier run. handle: where new ones are written; None = nowhere.
    """

    def __init__(self, known: dict[str, str], handle: BinaryIO | None) -> None:
        self._known, self._handle = known, handle

    def get(self, key: str) -> str | None:
        """Return the answer of this key, None where there is none."""
        return self._known.get(key)

    def keep(self, key: str, answer: str, **facts: str) -> None:
        """Keep an answer; it is on the disk when this returns.

        Args:
            facts: what a person wants to know of it.
        """
        self._known[key] = answer
        if self._handle is not None:
            row = {"key": key, **facts, "answer": answer}
            self._handle.write(json.dumps(row).encode() + b"\n")
            self._handle.flush()
            os.fsync(self._handle.fileno())


@contextlib.contextmanager
def kept_answers(path: Path | None) -> Iterator[KeptAnswers]:
    """Open a file of JSON lines with `key` and `answer`; a line that a kill left unfinished is dropped.

    Args:
        path: of the file; None = answers are kept inside the block alone.

    Raises:
        UserError: another process writes there, or the file holds something else.
    """
    if path is None:
        yield KeptAnswers({}, None)
        return
    busy = f"{path}: another process is asking a judge there; wait until it has ended"
    with only_one(path.with_name(f"{path.name}.lock"), busy):
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_bytes(path, whole)
        known: dict[str, str] = {}
        for number, row in read_json_lines(path, "file of a judge's answers") if whole else ():
            key, answer = row.get("key"), row.get("answer")
            if not isinstance(key, str) or not isinstance(answer, str):
                raise UserError(f"{path}: line {number}: is no answer of a judge; give another output folder")
            known[key] = answer
        with path.open("ab") as handle:
            yield KeptAnswers(known, handle)
