"""Styles of captions that a captioner can be asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Style = Literal["short", "detailed", "tags", "alt_text"]

STYLE_TOKENS: Mapping[str, int] = {"short": 64, "detailed": 384, "tags": 96, "alt_text": 64}
"""Style -> max_new_tokens: a caption of this style ends before, as a rule."""


def with_room_for_style(given: Any) -> Any:
    """Return decoding options with the length that their style needs, where they name a style and no length."""
    if not isinstance(given, dict) or "max_new_tokens" in given:
        return given
    style = given.get("style")  # whatever a recipe says
    length = STYLE_TOKENS.get(style) if isinstance(style, str) else None
    return given if length is None else {**given, "max_new_tokens": length}
