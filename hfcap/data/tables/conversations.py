"""Conversations about one image, in the forms of TRL (`messages`, or `prompt` and `completion`) and LLaVA
(`conversations`): pairs of a question and its answer, each of which is an example of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hfcap.data.checks import clean_caption
from hfcap.data.tables.cell_paths import parsed
from hfcap.errors import UserError
from hfcap.metrics.shared.caption_files import warn_on_terminal
from hfcap.text import counted

FORMS: tuple[tuple[str, ...], ...] = (("messages",), ("conversations",), ("prompt", "completion"))
"""Columns that a conversation stands in, the surest first."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_IMAGE = "<image>"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is said about an image.

    Attributes:
        pairs: (question, answer), in order; the history of a conversation is left out.
        n_images: how many images it is about, as far as the marks in it and the column `images` tell.
        system: whether it begins with instructions for the whole conversation.
    """

    pairs: tuple[tuple[str, str], ...]
    n_images: int
    system: bool


def conversation_columns(columns: Collection[str]) -> tuple[str, ...] | None:
    """Return the columns that hold a conversation; None where none do."""
    return next((form for form in FORMS if all(name in columns for name in form)), None)


def conversation_in(cells: Mapping[str, Any], where: str) -> Conversation | None:
    """Return the conversation of a row; None where its columns hold none.

    Raises:
        UserError: a turn is nobody's or holds something else than text and images, or nothing is answered.
    """
    columns = conversation_columns(cells)
    turns = [turn for name in columns or () for turn in _listed(parsed(cells[name]))]
    if not turns or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    said = [_said(turn, f"{where}: {' and '.join(columns or ())}, turn {number}") for number, turn in enumerate(turns)]
    pairs: list[tuple[str, str]] = []
    asked: list[str] = []
    for role, text, _ in said:
        if role == "user":
            asked.append(text)
        elif role == "assistant":
            if answer := clean_caption(text):
                pairs.append(("\n".join(filter(None, asked)), answer))
            asked = []
    if not pairs:
        raise UserError(f"{where}: nothing is answered in its conversation; remove the row, or add an answer")
    n_images = max(sum(count for *_, count in said), len(_listed(cells.get("images"))))
    return Conversation(tuple(pairs), n_images, any(role == "system" for role, *_ in said))


def warn_of_system(where: str, count: int) -> None:
    """Say that instructions for whole conversations are left out, where some have any."""
    if count:
        said = f"{counted(count, 'conversation')} with a message of role system, which is left out"
        warn_on_terminal(f"{where}: {said}: the captioner is asked without one")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _said(turn: Mapping[str, Any], where: str) -> tuple[str, str, int]:
    """Return who says what in a turn, and how many images it shows."""
    role = _ROLES.get(str(turn.get("role") or turn.get("from")))
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if role is None or not isinstance(content, str | list):
        raise UserError(
            f"{where}: is no turn of a conversation; give role (user, assistant, system) and content, or from (human, "
            "gpt) and value"
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [str(part.get("text") or "") for part in parts if isinstance(part, Mapping)]
    shown = sum(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)
    shown += sum(text.count(_IMAGE) for text in texts)
    return role, "\n".join(filter(None, (text.replace(_IMAGE, " ").strip() for text in texts))), shown
