"""What tests of the leaderboard's page share: reading it, and showing it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfcap.comparison import compare, write_leaderboard
from tests.browser import chromium

Scored = Callable[..., Path]
FEW = ("rouge_l", "cider")
"""Metrics: every value is drawn twice."""

ITS_SCRIPTS: list[dict[str, str | None]] = [{"type": "application/json", "id": "images-data"}, {}]
"""Data, which no browser runs, and the one script that the page's policy allows by its hash."""

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> $x^{ & </style></svg>"


class Outline(HTMLParser):
    """Tags with attributes, and the text outside of style and of the page's own script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script" and not attrs

    def handle_data(self, data: str) -> None:
        self.text += "" if self._script else data

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    @property
    def scripts(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "script"]

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.tags)


def encoded(file_format: str, size: tuple[int, int] = (60, 40), **extra: Any) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, file_format, **extra)
    return buffer.getvalue()


def written(paths: list[Path], folder: Path, **options: Any) -> str:
    write_leaderboard(compare(paths, n_resamples=200, warn=lambda _: None), folder, **options)
    return (folder / "leaderboard.html").read_text(encoding="utf-8")


def in_browser(page: str, script: str, folder: Path, *, dark: bool = False, policy: bool = True) -> Any:
    """Show a page in a frame as wide as a telephone, run a script in it and return what it assigns to `found`.

    The page's own policy stays: the script is let in by its hash, next to the page's. Without `policy` every script
    may run, so that one hidden in a caption would.
    """
    ours = f"let found;{script};parent.document.body.dataset.found = JSON.stringify(found);"
    digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
    if policy:
        page, n_policies = re.subn(r"(script-src [^\"]*)", rf"\1 'sha256-{digest}'", page, count=1)
    else:
        page, n_policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert n_policies == 1
    # A window cannot be as narrow as a telephone, a frame can.
    shown = html.escape(page.replace("</body>", f"<script>{ours}</script></body>"))
    frame = f'<!doctype html><meta charset="utf-8"><iframe width="390" height="900" style="border:0" srcdoc="{shown}">'
    (folder / "shown.html").write_text(frame + "</iframe>", encoding="utf-8")
    dumped = chromium((folder / "shown.html").as_uri(), folder, dark=dark)
    return json.loads(dict(Outline(dumped).tags)["body"]["data-found"] or "")
