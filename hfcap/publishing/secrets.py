"""Looks for secrets and for paths of this machine in everything that is about to be published.

A finding names file, line and kind, never the secret itself.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hfcap.children import TOKENS, names_secret
from hfcap.data.images import IMAGE_SUFFIXES
from hfcap.errors import UserError

_PATTERNS = {
    **TOKENS,
    "a signed web address": re.compile(
        rb"(?i)[?&](?:token|sig|signature|x-amz-signature|access_?token|api_?key)=[\w%.+/-]{16,}"
    ),
    "a bearer token": re.compile(rb"(?i)authorization[\"']?\s*[:=]\s*[\"']?bearer\s+[\w.~+/-]{12,}"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "a password in a web address": re.compile(rb"[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s:@\"']+@"),
    "a key or password": re.compile(
        rb"(?i)(?:api_?key|access_?token|auth_?token|secret|passw(?:or)?d)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9+/_-]{20,}"
    ),
}
_PATHS = re.compile(
    rb"(?<![\w./-])(?:/(?:home|Users|mnt|media|scratch|workspace|root|tmp|var|nfs|lustre|gpfs|Volumes|kaggle|data|opt)"
    rb"/[^\s\"'`,;)]{2,}|[A-Za-z]:(?:\\\\?|/)Users)|file://[^\s\"'`,;)]{2,}"
)
# A vocabulary holds fragments of any text; there only secrets that this machine really has are looked for.
_VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}
# A wheel is hfcap's own code, in which these patterns stand.
_BINARY = {".png", ".jpg", ".model", ".whl"} | IMAGE_SUFFIXES
_FOLDER_NAMES = ("HF_HOME", "HF_HUB_CACHE", "HFCAP_CACHE", "TORCH_HOME", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Finding:
    """Where something was found that must not be published."""

    file: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.kind}"


def known_secrets() -> list[bytes]:
    """Return the values of this machine that no file may hold: the Hub token and secret environment variables."""
    from huggingface_hub import get_token

    values = {value for name, value in os.environ.items() if names_secret(name) and len(value) >= 12}
    # Variables such as HF_TOKEN_PATH name a file; that is caught as a path where it matters.
    values = {value for value in values if not value.startswith(("/", "~"))}
    if token := get_token():
        values.add(token)
    return [value.encode() for value in values]


def machine_folders(*more: Path) -> list[bytes]:
    """Return folders of this machine that no file may name: home, temporary and working folder, and `more`."""
    named = [Path(os.environ[name]) for name in _FOLDER_NAMES if os.environ.get(name)]
    folders = {Path.home(), Path(tempfile.gettempdir()), Path.cwd(), *named, *(path.resolve() for path in more)}
    return [str(folder).encode() for folder in folders if len(folder.parts) > 2]


def _text_of(path: Path) -> bytes:
    """Return what is searched: the file, and for JSON also what its escapes spell.

    Raises:
        UserError: a file that is called safetensors and is none.
    """
    if path.suffix == ".safetensors":
        return json.dumps(_texts(path), ensure_ascii=False).encode()
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and b"\\" in content:
        # "\/home\/me" and "\u0068f_..." are the same text to whoever reads the JSON.
        plain = content.replace(b"\\/", b"/")
        content = re.sub(rb"\\u00([2-7][0-9a-fA-F])", lambda match: bytes.fromhex(match[1].decode()), plain)
    return content


def _texts(path: Path) -> dict[str, Any]:
    """Return what is free text in safetensors: metadata and names of tensors; the tensors are numbers."""
    from safetensors import SafetensorError, safe_open  # only here: what starts fast does not need it

    try:
        with safe_open(path, framework="np") as handle:
            return {"metadata": handle.metadata() or {}, "names": sorted(handle.keys())}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name}: is no complete safetensors file ({error}); save the model again") from None


class Scanner:
    """Looks for what must stay private; in images and vocabularies only for what this machine really has.

    Args:
        private_folders: of this machine, besides its usual ones.
    """

    def __init__(self, private_folders: Iterable[Path] = ()) -> None:
        self._secrets = known_secrets()
        folders = machine_folders(*private_folders)
        self._folders = [re.compile(re.escape(private) + rb"(?![\w.-])") for private in folders]

    def findings(self, name: str, content: bytes) -> list[Finding]:
        """Return what is found in a file of this name."""
        found: list[tuple[str, int]] = []
        for secret in self._secrets:
            if (position := content.find(secret)) >= 0:
                found.append(("a secret of this machine's environment", position))
        searched = [("a path of this machine", folder) for folder in self._folders]
        path = PurePosixPath(name)
        if path.name not in _VOCABULARIES and path.suffix not in _BINARY:
            searched += [*_PATTERNS.items(), ("a path of this machine", _PATHS)]
        for kind, pattern in searched:
            if match := pattern.search(content):
                found.append((kind, match.start()))
        return [Finding(name, content.count(b"\n", 0, position) + 1, kind) for kind, position in found]


def scan(folder: Path, private_folders: Iterable[Path] = ()) -> list[Finding]:
    """Return all findings in the files below `folder`; see `Scanner`."""
    scanner = Scanner(private_folders)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in paths)
    return list(dict.fromkeys(one for name, path in named for one in scanner.findings(name, _text_of(path))))


def refuse_secrets(folder: Path, private_folders: Iterable[Path] = ()) -> None:
    """Raise unless every file below `folder` is free of secrets and machine paths.

    Raises:
        UserError: names every place that was found.
    """
    refuse(scan(folder, private_folders), "remove it from the run (recipe, captions, model files), then stage again")


def refuse(findings: Sequence[Finding], remedy: str) -> None:
    """Raise where something was found.

    Raises:
        UserError: names every place.
    """
    if findings:
        lines = "\n".join(f"  {finding}" for finding in findings[:20])
        raise UserError(f"not published, because the files hold what should stay private:\n{lines}\n{remedy}")


_REDACTED = re.compile(r"(?:hf_|api_org_)[A-Za-z0-9]{8,}|(?i:(?<=bearer )\S+)")


def redact(text: str) -> str:
    """Return `text` without tokens, for messages that came from elsewhere."""
    for secret in known_secrets():
        text = text.replace(secret.decode(), "[secret]")
    return _REDACTED.sub("[secret]", text)
