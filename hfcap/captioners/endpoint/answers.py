"""From a chat completion to a caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfcap.captioners.asking.thinking import without_thinking
from hfcap.captioners.facts import GeneratedCaption
from hfcap.errors import WorkError
from hfcap.text import printable

_COUNTED = ("prompt_tokens", "completion_tokens")


def caption_of(answer: Mapping[str, Any], base_url: str) -> GeneratedCaption:
    """Return the caption that a server answers with, and what it cost; thinking is no part of it.

    A caption is cut where the server says so, or where the model was still thinking.

    Raises:
        WorkError: the answer is no chat completion.
    """
    try:
        choice = answer["choices"][0]
        content = choice["message"].get("content")
        text = content if isinstance(content, str) else _joined(content)
    except (LookupError, TypeError, AttributeError):
        raise WorkError(
            f"{base_url}: answers what is no chat completion ({printable(str(dict(answer)))[:120]!r}); check "
            "model.base_url, which usually ends in /v1"
        ) from None
    said, unended = without_thinking(text)
    cut = unended or choice.get("finish_reason") == "length"
    return GeneratedCaption(" ".join(said.split()), None, cut, _usage(answer.get("usage")))


def _joined(content: Any) -> str:
    """The text of content that comes in parts; nothing of what is no text."""
    if content is None:
        return ""
    return " ".join(part["text"] for part in content if part.get("type") == "text" and isinstance(part["text"], str))


def _usage(found: Any) -> dict[str, int] | None:
    counts = {name: found.get(name) for name in _COUNTED} if isinstance(found, Mapping) else {}
    known = {name: value for name, value in counts.items() if isinstance(value, int) and 0 <= value < 1 << 53}
    return known if len(known) == len(_COUNTED) else None


def added(usages: list[dict[str, int] | None]) -> dict[str, int] | None:
    """Return the sum of what is known; None where nothing is."""
    known = [usage for usage in usages if usage is not None]
    return {name: sum(usage[name] for usage in known) for name in _COUNTED} if known else None
