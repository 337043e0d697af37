"""Sidecars: a text or JSON file next to an image, with the image's name and another ending, that holds its captions."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hfcap.data.tables.sidecars import sidecar_of as present_sidecar
from hfcap.errors import UserError
from hfcap.files import MAX_LINE_BYTES, parse_json, read_text

SidecarKind = Literal["txt", "json"]
SIDECAR_KINDS: tuple[SidecarKind, ...] = ("txt", "json")

_WHAT = "sidecar"
_CAPTIONS, _CAPTION = "captions", ("caption", "text")
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def sidecar_of(image: Path, kind: SidecarKind) -> Path:
    """Return where the sidecar of an image is (`001.txt` or `001.png.txt`), or would be: `001.png` gets `001.txt`."""
    return present_sidecar(image, f".{kind}") or image.with_suffix(f".{kind}")


@dataclass(frozen=True)
class Sidecar:
    """The content of one sidecar, and how its bytes are written; of one that is not there, nothing.

    Attributes:
        captions: not empty each; a text file has one a line.
        content: the bytes; None where there is no file.
    """

    path: Path
    captions: tuple[str, ...] = ()
    content: bytes | None = None
    _values: Mapping[str, Any] = field(default_factory=dict)

    def with_captions(self, captions: Sequence[str], facts: Mapping[str, Any] | None = None) -> bytes:
        """Return the bytes with other captions; the same bytes where neither captions nor facts are others.

        Text keeps its encoding, byte order mark and line ends, JSON all its other keys.

        Args:
            facts: values that JSON holds next to the captions; None removes a key.
        """
        if self.path.suffix.lower() == ".json":
            return self._as_json(captions, facts or {})
        if self.content is not None and tuple(captions) == self.captions:
            return self.content
        mark, encoding = _encoding(self.content or b"")
        before = (self.content or b"").removeprefix(mark).decode(encoding)
        end = "\r\n" if "\r\n" in before else "\n"
        last = end if not before.strip() or before.endswith("\n") else ""
        return mark + (end.join(captions) + last * bool(captions)).encode(encoding)

    def _as_json(self, captions: Sequence[str], facts: Mapping[str, Any]) -> bytes:
        values = {**self._values, **facts}
        if tuple(captions) != self.captions or self.content is None:
            listed = len(captions) > 1 or _CAPTIONS in self._values
            single = next((name for name in _CAPTION if name in self._values), "" if listed and captions else "caption")
            values = {name: value for name, value in values.items() if name not in (_CAPTIONS, single)}
            first = {single: captions[0] if captions else ""} if single else {}
            values = {**first, **({_CAPTIONS: list(captions)} if listed else {}), **values}
        values = {name: value for name, value in values.items() if value is not None or name not in facts}
        if self.content is not None and values == dict(self._values):
            return self.content
        return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_sidecar_file(path: Path) -> Sidecar:
    """Read a sidecar; without a file, an empty one.

    Raises:
        UserError: it is no UTF-8 (or UTF-16 with its mark), larger than a sidecar is, or JSON without captions.
    """
    if not path.exists():
        return Sidecar(path)
    text = read_text(path, _WHAT, MAX_LINE_BYTES)
    content = path.read_bytes()
    if path.suffix.lower() != ".json":
        return Sidecar(path, tuple(line.strip() for line in text.split("\n") if line.strip()), content)
    values = parse_json(text, f"{path}: {_WHAT}", lines=True)
    if not isinstance(values, dict):
        raise UserError(f"{path}: {_WHAT} must be a JSON object, not {type(values).__name__}")
    return Sidecar(path, _captions_of(values, path), content, values)


def _captions_of(values: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    listed = values.get(_CAPTIONS)
    if listed is None:
        listed = [values[name] for name in _CAPTION if values.get(name) is not None][:1]
    if not isinstance(listed, list) or not all(isinstance(caption, str) for caption in listed):
        raise UserError(f"{path}: {_WHAT} must hold text under 'caption', or a list of texts under 'captions'")
    return tuple(caption for caption in listed if caption.strip())


def _encoding(content: bytes) -> tuple[bytes, str]:
    return next(((mark, name) for mark, name in _MARKS.items() if content.startswith(mark)), (b"", "utf-8"))
