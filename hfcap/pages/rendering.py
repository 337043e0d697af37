"""Templates with everything escaped, and small copies of images inside the page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from hfcap.data.images import decode_image
from hfcap.schema import ImageBytes
from hfcap.text import printable

THUMBNAIL_SIDE = 240
"""Longer side of a small copy in pixels."""


def _safe(value: Any) -> Any:
    """Replace control characters of plain text; Jinja escapes it after that."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def data_block(values: Any) -> Markup:
    """Return values as JSON that can stand inside a page's `<script type="application/json">` and never ends it."""
    return htmlsafe_json_dumps(_printable(values), dumps=json.dumps, ensure_ascii=False, separators=(",", ":"))


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return _safe(value)


def render_page(template: str, script: str | None = None, **values: Any) -> str:
    """Return a page from a template inside the package, e.g. `search/hits.html.jinja`, which extends the base page.

    Captions, names and file names may come from strangers: every value is escaped unless it is Markup, and the base
    page forbids the browser scripts and everything outside the file (Content-Security-Policy).

    Args:
        script: a script inside the package, e.g. `comparison/leaderboard.js`: the only one that the browser may run,
            by its hash, whatever a caption smuggles in.
    """
    source, digest = ("", "") if script is None else _script(script)
    environment = Environment(
        loader=PackageLoader("hfcap", "."),
        undefined=StrictUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )
    scripts = {"script": Markup(source), "script_hash": digest}  # the package's own file
    return environment.get_template(template).render(scripts | values)


def script_hash(script: str) -> str:
    """Return by what a Content-Security-Policy lets in a script inside the package, e.g. `review/review.js`."""
    return _script(script)[1]


def _script(script: str) -> tuple[str, str]:
    source = files("hfcap").joinpath(script).read_text(encoding="utf-8")
    return source, "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def thumbnail(image: ImageBytes) -> str:
    """Return a small JPEG of an image, without the metadata of the original, as a data URI.

    Raises:
        UnreadableImageError: the image is missing or cannot be decoded.
    """
    small = decode_image(image, THUMBNAIL_SIDE)
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    # Pillow would write the profile and the comment of the original file.
    small.info.clear()
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
